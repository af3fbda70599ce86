"""Whatever is killed, the next run ends in the same bytes and nobody unlocks anything."""

import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
from processes import alive, start, wait_for
from repository import RESULTS

from capgap.workflow import ledger

RUN = "students/3k/pruned-t6k/from-t6k/tokens-5k/seed-0"


def checkpoints(study):
    return list((study / f"scratch/{RESULTS}/{RUN}").glob("*/*/step-*"))


@pytest.mark.slow
def test_killed_run_and_killed_job_resume_and_end_in_the_same_bytes(finished, study):
    shutil.rmtree(study / RESULTS / RUN)

    run = start(study, "capgap.cli", "run", "--cores", "2")
    wait_for(lambda: alive(study, "capgap.stages.distill"))
    run.kill()
    run.wait()
    wait_for(lambda: not alive(study), seconds=20)  # neither Snakemake nor the job goes on

    run = start(study, "capgap.cli", "run", "--cores", "2", CAPGAP_CHECKPOINT_SECONDS="0")
    wait_for(lambda: checkpoints(study))
    for job in alive(study, "capgap.stages.distill"):
        job.send_signal(signal.SIGKILL)
    assert run.wait() != 0
    assert not (study / RESULTS / RUN / "train.json").exists()
    assert {f"distill_student {RUN}", "write_report report"} <= study.planned()

    study.capgap("run", "--cores", "2")
    log = (study / f"logs/distill_student/{RESULTS}/{RUN}.log").read_text()
    assert "resumed after step" in log
    assert study.contents() == finished.contents()
    assert study.planned() == set()


def test_finished_output_without_a_record_is_made_again(study):
    """A kill between the end of a job and its record, behind the checkpoint."""
    output = f"{RESULTS}/students/4k/pruned-t6k/from-t6k/tokens-8k/seed-0/metrics.json"
    (study / ledger.location(ledger.RECORDS, output)).unlink()
    begun = study / ledger.location(ledger.UNFINISHED, output)
    begun.parent.mkdir(parents=True, exist_ok=True)
    begun.write_text("{}")
    assert f"{output} is unfinished" in study.capgap("verify", check=False).stderr
    assert study.capgap("save", check=False).returncode
    plan = study.capgap("run", "-n")
    assert "evaluate_student 4k/pruned-t6k" in plan.stdout + plan.stderr


@pytest.mark.slow
def test_twenty_kills_at_random_moments_change_nothing(finished, study):
    """capgap run and dvc repro in turn; the run, Snakemake, DVC or a job is killed."""
    draw = random.Random(0)
    for part in ("students", "law", "final", "report", "metrics.json"):
        path = study / RESULTS / part
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for attempt in range(20):
        words = ("dvc", "repro") if attempt % 3 == 2 else ("capgap.cli", "run", "--cores", "2")
        run = start(study, *words, CAPGAP_CHECKPOINT_SECONDS="0.2")
        time.sleep(draw.uniform(1, 25))
        candidates = [p for p in alive(study) if p.pid != run.pid]
        victim = draw.choice([*candidates, run])
        victim.send_signal(signal.SIGKILL)
        if victim is not run:
            time.sleep(draw.uniform(0, 3))
            run.kill()
        run.wait()
        wait_for(lambda: not alive(study), seconds=30)
        damage = study.capgap("verify", check=False).stderr
        assert "other contents than its manifest" not in damage
        assert "manifest.json is damaged" not in damage
    study.capgap("run", "--cores", "2")
    assert study.contents() == finished.contents()
    assert study.planned() == set()
    study.capgap("verify")


CLAIM = """
import os, sys, time
from capgap.workflow.locks import claim_output
claim = claim_output("out/model")
open(sys.argv[1], "w").close()
time.sleep(float(sys.argv[2]))
"""


def claim(study, mark, seconds, **environment):
    return subprocess.Popen(
        [sys.executable, "-c", CLAIM, mark, str(seconds)],
        cwd=study.path,
        env=study.environment(**environment),
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def folder(finished, tmp_path):
    """An empty folder with the source of the finished study."""
    copy = type(finished)(tmp_path / "empty")
    (copy / ".snakemake").mkdir(parents=True)
    (copy / "src").symlink_to(finished / "src")
    return copy


def test_second_writer_waits_until_the_first_is_gone(folder):
    first = claim(folder, "first", 60)
    wait_for((folder / "first").exists)
    second = claim(folder, "second", 0)
    time.sleep(1)
    assert not (folder / "second").exists()
    first.kill()
    assert second.wait(60) == 0
    assert (folder / "second").exists()
    first.wait()


def test_late_job_of_an_older_run_writes_nothing(folder):
    (folder / ".snakemake/capgap.lock").write_text("new")
    late = claim(folder, "mark", 0, CAPGAP_RUN="old")
    assert late.wait(60) != 0
    assert "newer run has taken over" in late.stderr.read()
    assert not (folder / "mark").exists()


def test_second_run_in_a_folder_is_refused(study):
    held = "from capgap.workflow.locks import only_run\nimport time\n"
    held += "with only_run():\n open('held', 'w').close()\n time.sleep(60)\n"
    holder = subprocess.Popen([sys.executable, "-c", held], cwd=study.path, env=study.environment())
    wait_for((study / "held").exists)
    result = study.capgap("run", check=False)
    assert result.returncode == 1
    assert "another run is active in this folder" in result.stderr
    holder.kill()
    holder.wait()
    assert "nothing to do" in study.capgap("run").stderr
