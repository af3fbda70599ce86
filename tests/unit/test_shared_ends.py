"""SIGTERM to some processes of a job whose others are done: all end as interrupted, nothing is lost."""

import os
import subprocess
import sys
from pathlib import Path

import process_group
import pytest
from test_shared_stages import with_manifest

from capgap.config.devices import COLLECTIVE_VARIABLE
from capgap.config.study_file import load_study
from capgap.engine.parallel import join
from capgap.errors import CapgapError
from capgap.workflow import rule_params
from capgap.workflow.tracking import SETTINGS

# Targets by two processes. The second gets SIGTERM in the middle of its part, while the first is
# done and waits; it may get the signal, too.
CACHING = """
import os, signal, sys, time
from pathlib import Path
from capgap.engine import teacher_targets
from capgap.engine.parallel import DistContext
from capgap.stages import cache_teacher
from capgap.stages.base import run_stage

both, waiting = sys.argv[1] == "both", Path(sys.argv[2])
rank, agree, reduce = os.environ["RANK"], DistContext.any_process, teacher_targets.reduce_to_targets
teacher_targets.SHARD_BYTES = 8 * 16 * 16  # eight windows of 16 tokens, 16 bytes each
calls = []

def waits(dist, *flags):
    waiting.write_text(str(os.getpid()))
    return agree(dist, *flags)

def reduced(*arguments):
    calls.append(1)
    if rank == "1" and len(calls) == 2 and sys.argv[1] != "none":
        end = time.monotonic() + 60
        while not waiting.exists() and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(0.3)  # it is in the collective now
        if both:
            os.kill(int(waiting.read_text()), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
    return reduce(*arguments)

if rank == "0":
    DistContext.any_process = waits
teacher_targets.reduce_to_targets = reduced
run_stage(cache_teacher.main, sys.argv[3:])
"""


@pytest.mark.parametrize("told", ["one", "both"])
def test_a_process_that_is_done_ends_with_those_that_are_told_to(
    token_streams, tokenizer_file, tiny_model, tmp_path, told
):
    teacher, script = tmp_path / "teacher", tmp_path / "caching.py"
    with_manifest(teacher, tiny_model(9, hidden=32, heads=4), tokenizer_file)
    script.write_text(CACHING)
    options = ["--teacher", teacher, "--token-streams", token_streams(), "--sequence-length", "16"]
    options += ["--kind", "sampled", "--entries", "8", "--unique-tokens", "256"]
    options += ["--batch-tokens", "16", "--scratch", tmp_path / "scratch"]

    def run(who, name, processes=2):
        words = [who, tmp_path / f"waiting-{name}", *options, "--out", tmp_path / name]
        return process_group.ends(process_group.start(script, *words, processes=processes))

    cut = run(told, "cut")
    assert [status for status, _, _ in cut] == [os.EX_TEMPFAIL] * 2, cut
    said = [errors for _, _, errors in cut]
    assert "terminated after 128 tokens of one of 2 processes" in said[0]
    assert "terminated after 32 tokens of one of 2 processes" in said[1]
    assert "lost another" not in "".join(said)
    assert not (tmp_path / "cut").exists()
    done = [*run("none", "cut"), *run("none", "whole", processes=1)]
    assert [status for status, _, _ in done] == [0] * 3, done
    assert "resumed after 128 tokens" in done[0][1]
    manifests = [(tmp_path / name / "manifest.json").read_bytes() for name in ("cut", "whole")]
    assert manifests[0] == manifests[1]


# Processes that exchange one number, of which the second hangs for longer than they wait.
WAITING = """
import os, sys, time
from pathlib import Path
from capgap.engine.parallel import join
from capgap.stages.base import run_stage

def main(argv):
    with join() as dist:
        dist.wait()
        if argv[0] == "hang" and dist.rank == 1:
            while not Path(argv[1]).exists():
                time.sleep(0.05)
        dist.wait()

run_stage(main, sys.argv[1:])
"""


@pytest.fixture
def waiting(tmp_path):
    script = tmp_path / "waiting.py"
    script.write_text(WAITING)

    def start(*words, wait_s=3.0, processes=2, **variables):
        variables["CAPGAP_COLLECTIVE_MINUTES"] = str(wait_s / 60)
        return process_group.start(script, *words, processes=processes, **variables)

    return start


def test_a_process_that_hangs_ends_the_job_with_what_to_look_at(waiting, tmp_path):
    started = waiting("hang", tmp_path / "end")
    errors = started[0].communicate(timeout=120)[1]
    (tmp_path / "end").write_text("")
    other = process_group.ends(started[1:])[0]
    assert started[0].returncode == other[0] == 1
    assert errors.startswith("error: process 0 of 2 has waited 0.05 minutes for another one")
    assert "(GLOO_SOCKET_IFNAME chooses it)" in errors
    assert "raise plan.collective_timeout_minutes" in errors
    assert errors.count("\n") == 1
    assert "process 1 of 2 lost another one, which has ended" in other[2]


def test_a_process_that_never_comes_ends_the_job_too(waiting):
    [[status, _, errors]] = process_group.ends(waiting("meet", processes=1, size=2))
    assert status == 1
    assert "process 0 of 2 has waited 0.05 minutes for another one" in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize("text", ["0", "-1", "soon", "nan"])
def test_a_bound_that_is_no_time_is_refused(monkeypatch, text):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("CAPGAP_COLLECTIVE_MINUTES", text)
    with pytest.raises(CapgapError, match=f"CAPGAP_COLLECTIVE_MINUTES: '{text}' is not a number"):
        join().__enter__()


def test_a_network_interface_that_is_not_there_is_named(waiting, tmp_path):
    """Started as a rule starts it, which hands the user's variables down."""
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    launch = [sys.executable, "-m", "capgap.workflow.launch", "--processes", "2", tmp_path / "time"]
    ended = subprocess.run(
        [*launch, "waiting", "meet"],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": path, "GLOO_SOCKET_IFNAME": "nosuch0"},
    )
    assert ended.returncode == 1
    assert "GLOO_SOCKET_IFNAME is nosuch0: name one that every machine has" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_the_bound_of_a_study_reaches_its_jobs(monkeypatch):
    study = load_study(Path(__file__).parents[1] / "tiny" / "config.yaml")
    for name in (SETTINGS, rule_params.SOURCES, COLLECTIVE_VARIABLE):
        monkeypatch.setenv(name, "")
    plan = study.plan.model_copy(update={"collective_timeout_minutes": 7})
    rule_params.hand_down(study.model_copy(update={"plan": plan}))
    assert os.environ[COLLECTIVE_VARIABLE] == "7"
