"""The small study on a real Slurm: `make test-slurm`."""

import json
import re
import signal
import time
from pathlib import Path

import pytest
from login_node import Login, checkpoints, reason, wait_for
from processes import alive
from repository import RESULTS

from capgap.config.study_file import load_study
from capgap.cost.requests import Requests

pytestmark = [pytest.mark.slurm, pytest.mark.skipif(bool(reason), reason=str(reason))]

LONG = "400k"  # tokens of a training job that lasts long enough to be disturbed


def pretraining(study, tokens=LONG):
    """A study whose teachers train for some tens of seconds; a target that needs one of them."""
    study.configure(lambda data: data["pretrain"].update(tokens=tokens))
    return f"{RESULTS}/teachers/t6k/model/manifest.json"


def training_log(study):
    path = study / f"logs/pretrain_teacher/{RESULTS}/teachers/t6k.log"
    return path.read_text() if path.is_file() else ""


def test_small_study_runs_to_the_end_two_jobs_at_a_time(study, slurm):
    login, most, asked = Login(study, slurm), 0, {}
    while login.process.poll() is None:
        rows = slurm.ask("squeue", "-h", "-o", "%T|%k|%m").splitlines()
        most = max(most, sum(row.startswith("RUNNING") for row in rows))
        for _, comment, memory in (row.split("|") for row in rows):
            asked.setdefault(comment, set()).add(memory)
        time.sleep(0.5)
    assert login.finish() == 0, login.said()
    assert most == 2
    assert (study / RESULTS / "report/report.html").is_file()
    assert study.planned() == set()
    needs = Requests(load_study(study / "config.yaml"))
    for comment, memories in asked.items():
        rule = comment.removeprefix("rule_").split("_wildcards")[0]
        for size in ("t6k", "t16k"):
            assert rule in study_rules(study), comment
            names = {"teacher": size, "student": "3k", "init": f"pruned-{size}", "tokens": "5k"}
            expected = needs.mem_mb(rule)(names, 1)
            found = {int(re.match(r"\d+", memory)[0]) for memory in memories}
            if any(abs(value - expected) <= 0.02 * expected for value in found):
                break
        else:
            raise AssertionError((comment, memories, expected))


def study_rules(study):
    text = "".join(p.read_text() for p in (study / "rules").glob("*.smk"))
    return set(re.findall(r"^(?:rule|checkpoint) (\w+):", text, re.M))


def test_cancelled_job_is_resubmitted_and_resumes(study, slurm):
    login = Login(study, slurm, pretraining(study))
    wait_for(lambda: checkpoints(study), login)
    (job,) = slurm.running("pretrain_teacher")
    slurm.ask("scancel", job)
    assert login.finish() == 0, login.said()
    assert "resumed after step" in training_log(study)


@pytest.mark.parametrize("state", ["drain", "down"])
def test_job_on_a_lost_node_is_resubmitted_and_resumes(study, slurm, state):
    login = Login(study, slurm, pretraining(study))
    wait_for(lambda: checkpoints(study), login)
    (job,) = slurm.running("pretrain_teacher")
    node = slurm.ask("squeue", "-h", "-j", job, "-o", "%N")
    slurm.ask("scontrol", "update", f"nodename={node}", f"state={state}", "reason=test")
    try:
        if state == "drain":  # which lets the job go on
            slurm.ask("scancel", job)  # what an administrator does who cannot wait for it
        assert login.finish() == 0, login.said()
        assert "resumed after step" in training_log(study)
        assert slurm.ask("sinfo", "-h", "-n", node, "-o", "%T").startswith(state)
    finally:
        slurm.ask("scontrol", "update", f"nodename={node}", "state=resume")


def test_two_processes_distil_in_one_job(study, slurm):
    run = f"{RESULTS}/students/3k/pruned-t16k/from-t16k/tokens-{LONG}/seed-0"
    study.configure(lambda data: data["grid"].update(tokens=[LONG]))
    study.capgap("run", "--cores", "2", f"{RESULTS}/inits/3k/pruned-t16k/model/manifest.json")
    study.configure(lambda data: data.update(plan={"processes": 2}))
    login = Login(study, slurm, f"{run}/model/manifest.json")
    (job,) = wait_for(lambda: slurm.running("distill_student"), login)
    assert slurm.ask("squeue", "-h", "-j", job, "-o", "%C %D") == "2 1"  # cores, nodes
    workers = wait_for(
        lambda: [p for p in alive(study, "capgap.stages.distill") if "RANK" in p.environ()][1:],
        login,
    )
    assert workers[0].environ()["WORLD_SIZE"] == "2"
    assert {p.environ()["SLURM_JOB_ID"] for p in workers} == {job}
    assert login.finish() == 0, login.said()
    assert json.loads((study / run / "train.json").read_text())["lineage"]["teacher"] == "t16k"


def test_error_names_the_logs(study, slurm):
    study.replace("config.yaml", "corpus/*.txt", "corpus/*.nothing")
    login = Login(study, slurm, "--retries", "0", f"{RESULTS}/corpus/manifest.json")
    assert login.finish() != 0
    log = f"logs/prepare_corpus/{RESULTS}.log"
    assert log in login.said()
    assert "corpus/*.nothing matches no file" in (study / log).read_text()


def test_killed_login_process_is_started_again_and_nothing_is_done_twice(study, slurm):
    target = pretraining(study)
    login = Login(study, slurm, target)
    wait_for(lambda: checkpoints(study), login)
    corpus = (study / f"{RESULTS}/corpus/manifest.json").stat().st_mtime_ns
    (job,) = slurm.running("pretrain_teacher")
    login.process.send_signal(signal.SIGKILL)
    login.finish()
    assert slurm.running("pretrain_teacher") == [job]  # it outlives the login process
    again = Login(study, slurm, target)
    assert again.finish() == 0, again.said()
    assert (study / f"{RESULTS}/corpus/manifest.json").stat().st_mtime_ns == corpus
    assert "resumed after step" in training_log(study)
    assert Path(study / target).is_file()
