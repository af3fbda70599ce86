"""Clone and pull, check out and back: nothing runs."""

import hashlib
import shutil

import pytest
from repository import RESULTS, scramble_times


def test_clone_and_pull_run_nothing_whatever_the_times(finished, tmp_path):
    clone = finished.clone(tmp_path / "elsewhere/deep/clone")
    assert clone.contents() == finished.contents()
    assert clone.planned() == set()
    for seed in range(3):
        scramble_times(clone, seed)
        assert clone.planned() == set()
    assert "up to date" in clone.dvc("status").stdout
    result = clone.capgap("run")
    said = result.stdout + result.stderr
    assert "nothing to do" in said
    assert "recommended" in said


@pytest.mark.slow
def test_checkout_of_another_commit_and_back_runs_nothing(study):
    def law(data):
        data["law"]["resamples"] = 120

    first, results = study.git("rev-parse", "HEAD").stdout.strip(), study.contents()
    study.configure(law)
    study.capgap("run", "--cores", "2")
    study.capgap("save")
    second, others = study.commit("more resamples"), study.contents()
    assert results != others
    for commit, expected in [(first, results), (second, others), (first, results)]:
        study.git("checkout", "-q", commit)
        study.dvc("checkout", "-q")
        assert study.contents() == expected
        assert study.planned() == set()
        assert "up to date" in study.dvc("status").stdout


@pytest.mark.slow
def test_saving_refuses_what_is_not_up_to_date(study):
    def law(data):
        data["law"]["resamples"] = 120

    lock = (study / "dvc.lock").read_text()
    study.configure(law)
    result = study.capgap("save", check=False)
    assert result.returncode
    assert "nothing was saved" in result.stderr
    assert "fit_law" in result.stderr
    assert (study / "dvc.lock").read_text() == lock


@pytest.mark.slow
def test_saving_refuses_a_damaged_result(study):
    weights = study / RESULTS / "teachers/t6k/model/model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    result = study.capgap("save", check=False)
    assert result.returncode
    assert "teachers/t6k/model/model.safetensors has other contents" in result.stderr


@pytest.mark.slow
def test_merge_that_conflicts_in_the_lock_runs_the_difference_only(study):
    """The documented steps: keep our dvc.lock, check out, run, save."""
    study.git("checkout", "-q", "-b", "other")
    study.configure(lambda data: data["final"].update(tokens="9k"))
    study.capgap("run", "--cores", "2")
    study.capgap("save")
    study.commit("longer final run")
    study.git("checkout", "-q", "main")
    study.dvc("checkout", "-q")
    study.configure(lambda data: data["law"].update(resamples=120))
    study.capgap("run", "--cores", "2")
    study.capgap("save")
    study.commit("more resamples")

    merge = study.git("merge", "other", check=False)
    assert "dvc.lock" in merge.stdout
    assert merge.returncode
    study.git("checkout", "--ours", "dvc.lock")
    study.commit("both")
    study.dvc("checkout", "-q")
    assert study.planned() == {
        "choose_teacher law",
        "compare_final final",
        "write_headline .",
        "write_report report",
    }
    study.capgap("run", "--cores", "2")
    study.capgap("save")
    assert "up to date" in study.dvc("status").stdout


def test_tampered_object_in_the_remote_is_refused(finished, tmp_path):
    """DVC trusts a remote unless `verify` is set, as .dvc/config does."""
    storage = tmp_path / "storage"
    shutil.copytree(finished.path.parent / "storage", storage)
    law = (finished / RESULTS / "law/law.json").read_bytes()
    digest = hashlib.md5(law).hexdigest()
    stored = storage / "files/md5" / digest[:2] / digest[2:]
    stored.chmod(0o644)
    stored.write_bytes(law.replace(b"0", b"1", 1))
    clone = finished.clone(tmp_path / "clone", pull=False)
    clone.dvc("remote", "modify", "--local", "storage", "url", storage)
    assert clone.dvc("pull", check=False).returncode
    path = clone / RESULTS / "law/law.json"
    assert not path.exists() or path.read_bytes() == law


def test_missing_remote_is_explained(finished, tmp_path):
    clone = finished.clone(tmp_path / "clone", pull=False)
    clone.dvc("remote", "modify", "--local", "storage", "url", tmp_path / "nowhere")
    result = clone.capgap("pull", check=False)
    assert result.returncode == 1
    assert "dvc remote list" in result.stderr
    assert "Traceback" not in result.stderr
