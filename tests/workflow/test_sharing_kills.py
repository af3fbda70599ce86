"""Pull, push, save, accept and DVC's checkout, killed: the next command works and reports the true state."""

import json
import random
import shutil
import signal
import time

import pytest
from processes import start
from repository import RESULTS, edit_distillation_loss

from capgap.workflow import private

# Everything that is put in place is renamed into place: kill before the n-th time.
HOOK = """
import os, signal
left, rename = int(os.environ["KILL_AT"]), os.replace
def replace(*names, **options):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(*names, **options)
os.replace = replace
"""


@pytest.fixture
def killed(study, tmp_path):
    """Function: run a command that is killed before its n-th renaming; whether it was."""
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook/sitecustomize.py").write_text(HOOK)

    def run(n, *words):
        path = f"{tmp_path / 'hook'}:{study / 'src'}"
        result = study.capgap(*words, check=False, PYTHONPATH=path, KILL_AT=str(n))
        assert "Traceback" not in result.stderr
        return result.returncode == -signal.SIGKILL

    return run


def forget(study, *parts):
    for part in parts:
        shutil.rmtree(study / part)


def is_whole(study, results):
    assert study.contents() == results
    study.capgap("verify")


@pytest.mark.parametrize("moments", [(1, 2, 90), (180, 250, 330), (400,)], ids=str)
def test_killed_pull(study, remote, killed, moments):
    results = study.contents()
    for moment in moments:
        forget(study, RESULTS, str(private.RECORDS), ".dvc/cache")
        killed(moment, "pull", "--models")
        study.capgap("verify", check=False)
        said = study.capgap("pull", "--models").stdout
        assert f"{count(study)} files are here" in said
        is_whole(study, results)
    assert study.planned() == set()


def count(study):
    roots = [study / RESULTS, study / private.RECORDS]
    return len([p for root in roots for p in root.rglob("*") if p.is_file()])


def test_killed_push(study, remote, killed):
    forget(study, "../storage")
    remote.mkdir()
    study.capgap("push")
    stored = {p.relative_to(remote) for p in remote.rglob("*") if p.is_file()}
    for moment in (1, 3, 100):
        forget(study, "../storage")
        remote.mkdir()
        assert killed(moment, "push")
        already = stored & {p.relative_to(remote) for p in remote.rglob("*")}
        assert f"; {len(stored - already)} objects were new" in study.capgap("push").stdout
        assert stored <= {p.relative_to(remote) for p in remote.rglob("*") if p.is_file()}
        assert "; 0 objects were new" in study.capgap("push").stdout


def test_killed_save(study, killed):
    lock = (study / "dvc.lock").read_text()
    for moment in (1, 2, 3, 4):
        forget(study, ".dvc/cache")
        killed(moment, "save")
        study.capgap("save")
        assert (study / "dvc.lock").read_text() == lock
        assert not (study / ".dvc/tmp/capgap-dvc.lock").exists()
    study.capgap("push")
    study.capgap("verify")


def test_killed_accept(study, killed):
    results = study.contents()
    for part in ("accepted.json", "checksums.json"):
        results.pop(part, None)
    edit_distillation_loss(study)
    for moment in (1, 2, 3, 4, 9):
        killed(moment, "accept", "--reason", "the same numbers")
        study.capgap("verify")
    study.capgap("accept", "--reason", "the same numbers")
    after = study.contents()
    assert after.keys() == {*results, "accepted.json", "checksums.json"}
    assert {name: after[name] for name in results} == results
    entries = json.loads(after["accepted.json"])
    assert all(entry not in entries[:n] for n, entry in enumerate(entries))
    study.capgap("verify")
    assert study.planned() == set()


def test_killed_checkout_of_dvc(study):
    draw, results = random.Random(0), study.contents()
    for _ in range(4):
        forget(study, RESULTS, str(private.RECORDS))
        process = start(study, "dvc", "checkout", "--quiet")
        time.sleep(draw.uniform(0.5, 3))
        process.kill()
        process.wait()
        study.capgap("verify", check=False)
        study.capgap("pull", "--models")
        is_whole(study, results)
    assert study.planned() == set()
