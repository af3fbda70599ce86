"""What `make` ends with."""

from pathlib import Path

import pytest
import yaml
from report_records import make_final, make_law, make_runs
from rich.console import Console

from capgap.commands.next_runs import price
from capgap.commands.summary import run
from capgap.config.study_file import load_study
from capgap.records import paths
from capgap.records.artifacts import write_text
from capgap.reporting.answer import Experiment

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def law():
    return make_law(make_runs())


@pytest.fixture
def study():
    return load_study(yaml.safe_load((REPOSITORY / "config.yaml").read_text()))


@pytest.fixture
def shown(tmp_path, monkeypatch, study):
    """Function that writes a study's records and returns its summary as one line of words."""
    monkeypatch.chdir(tmp_path)

    def summary(law, final=None):
        final = final or make_final()
        for path, record in ((paths.LAW, law), (paths.FINAL, final)):
            write_text(path.format(study=study.study), record.to_json())
        console = Console(width=4000)
        with console.capture() as captured:
            run(study, console)
        return " ".join(captured.get().split())

    return summary


def test_the_answer_comes_first_then_costs_verdict_and_report(shown, law):
    text = shown(law)
    places = [
        text.index(word)
        for word in ("answer", "cost of another", "final student", "published law", "report.html")
    ]
    assert places == sorted(places)
    assert "take t340k" in text or "guess is t340k" in text or "t340k" in text


def test_an_optimum_that_the_init_makes_is_called_so(shown, law):
    def caused_by(cause):
        overall = law.overall.model_copy(update={"cause": cause})
        return shown(law.model_copy(update={"overall": overall}))

    assert "the pruned init makes it, not the teacher" in caused_by("init")
    assert "not the teacher" not in caused_by("teacher")


def test_an_experiment_has_the_jobs_and_the_time_of_the_plan(study):
    students = [*study.grid.students, 30_000]
    step = price(study, Experiment("?", "add a student", {"grid": {"students": students}}))
    words = step.split()
    assert step.startswith("add a student (")
    jobs = int(words[3].strip("("))
    assert jobs >= 3 * len([name for name in study.teachers if study.teacher_size(name) > 30_000])
    assert words[-1].endswith(")")
    assert price(study, Experiment("?", "add a teacher", {})) == "add a teacher"
    too_large = {"grid": {"students": [10**9]}}
    assert price(study, Experiment("?", "add a giant", too_large)) == "add a giant"
