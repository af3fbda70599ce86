"""Before a run computes what is saved already, it prints what a pull would save; no network is asked."""

import sys

import pytest

NOTE = "note: "


def notes(result):
    text = result.stdout + result.stderr
    return [line for line in text.splitlines() if line.startswith(NOTE) and "pull" in line]


@pytest.fixture
def clone(finished, tmp_path):
    """A clone that pulled nothing, and whose remote does not exist."""
    other = finished.clone(tmp_path / "clone", pull=False)
    other.dvc("remote", "modify", "--local", "storage", "url", tmp_path / "nowhere")
    return other


def test_a_clone_that_pulled_nothing_learns_what_a_pull_would_save(clone, finished):
    [note] = notes(clone.capgap("run", "-n"))
    records = [p for p in (finished / ".snakemake/metadata").rglob("*") if p.is_file()]
    files = len(finished.contents()) + len(records)
    assert f"{files:,} files of finished results of this study" in note
    assert "CPU seconds of work by the plan, are in the remote 'storage'; `capgap pull`" in note
    result = clone.capgap("run", "results/tiny/corpus/manifest.json")
    assert len(notes(result)) == 1
    text = (result.stdout + result.stderr).splitlines()
    assert text.index(notes(result)[0]) < next(i for i, t in enumerate(text) if "[1/" in t)


def test_a_clone_with_other_settings_is_not_promised_anything(clone):
    clone.configure(lambda data: data["law"].update(tie_nats=0.01))
    assert notes(clone.capgap("run", "-n")) == []


def test_a_run_with_nothing_to_do_does_not_look(study):
    code = (
        "import capgap.cost.saved_work as w; w.saved_work = w.wanted_of = None; "
        "from capgap.commands.run import main; main(['-n'])"
    )
    result = study.command(sys.executable, "-c", code)
    assert "nothing to do" in result.stdout + result.stderr
    assert notes(result) == []


def test_after_another_branch_was_checked_out(study):
    """Exactly what was saved with today's settings counts, by the time on its records."""
    study.git("checkout", "-q", "-b", "wider")
    study.configure(lambda data: data["law"].update(tie_nats=0.01))
    study.capgap("run", "--cores", "2")
    study.capgap("save")
    study.commit("a wider tie")
    study.git("checkout", "-q", "main")
    [note] = notes(study.capgap("run", "-n"))
    assert "from DVC's cache on this machine" in note
    assert "CPU seconds of finished work; `capgap pull --models --force` puts them in place" in note
    study.dvc("checkout", "-q")
    assert notes(study.capgap("run", "-n")) == []
    assert study.planned() == set()
