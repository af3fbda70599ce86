"""Clone and pull, check out and back: nothing runs."""

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
