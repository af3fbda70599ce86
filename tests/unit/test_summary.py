"""The summary that `make` ends with."""

import re
from pathlib import Path

import pytest
import yaml
from report_records import make_final, make_law, make_runs
from rich.console import Console

from capgap.commands.summary import on_this_machine, run
from capgap.config.counts import parse_count
from capgap.config.study_file import load_study
from capgap.cost.next_runs import price
from capgap.records import paths
from capgap.records.artifacts import write_text
from capgap.reporting.answer_text import Experiment
from capgap.reporting.report_text import Passage

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

    def summary(law, final=None, *, everything=True, file="config.yaml"):
        final = final or make_final()
        for path, record in ((paths.LAW, law), (paths.FINAL, final)):
            write_text(path.format(study=study.study), record.to_json())
        console = Console(width=4000)
        with console.capture() as captured:
            run(study, Path(file), console, everything=everything)
        return " ".join(captured.get().split())

    return summary


def test_the_answer_comes_first_then_costs_verdict_and_report(shown, law):
    text = shown(law)
    places = [
        text.index(word)
        for word in ("answer", "cost of another", "final student", "published law", "report.html")
    ]
    assert places == sorted(places)
    assert "t340k" in text


def test_the_first_summary_is_the_beginning_of_each_part_and_names_the_rest(shown, law):
    text = shown(law, everything=False)
    for label in ("answer", "cost of another", "how it grows", "final student", "published law"):
        assert label in text
    for label in ("two causes", "which law", "by init"):
        assert label not in text
    assert "more capgap summary --all │" in text
    assert "capgap summary --all --study mine.yaml │" in shown(
        law, everything=False, file="mine.yaml"
    )


def test_what_stands_in_brackets_is_shown(shown, law, monkeypatch):
    """rich would take "[no interval]" for the name of a style and leave it out."""
    words = "T* is 3.1 [no interval] times S [or so]"
    monkeypatch.setattr("capgap.reporting.report_text.verdict", lambda law: Passage(words))
    assert words in shown(law)


def test_an_optimum_that_the_init_makes_is_called_so(shown, law):
    def caused_by(cause):
        overall = law.overall.model_copy(update={"cause": cause})
        return shown(law.model_copy(update={"overall": overall}))

    assert "the pruned init makes it, not the teacher" in caused_by("init")
    assert "not the teacher" not in caused_by("teacher")


def priced(step):
    """Jobs and minutes of a step in words."""
    found = re.search(r"\((\d+) jobs, (?:about )?([\d.]+) (?:min|h|days)(?: of one core)?\)$", step)
    assert found, step
    return int(found[1]), float(found[2])


def sizes_of(step):
    """The counts that a step names, in parameters or tokens."""
    return [parse_count(word) for word in re.findall(r"\b[\d.]+[kM]\b", step.split("(")[0])]


def test_an_experiment_has_the_jobs_and_the_time_of_the_plan(study):
    step = price(study, Experiment("?", "students", [30_000]))
    jobs, minutes = priced(price(study, Experiment("?", "students", [5_900])))
    here = price(study, Experiment("?", "students", [5_900]), on_this_machine)
    assert priced(here)[0] >= jobs  # and those of the study that are not done yet
    assert jobs >= 2 * 3 * len(study.grid.tokens)  # replicas, teachers, budgets
    assert minutes > 0
    assert "these teachers do not allow it" in step  # between the students there are


def test_a_student_that_the_study_cannot_run_becomes_the_nearest_that_it_can(study):
    step = price(study, Experiment("?", "students", [5_200, 82_000]))
    priced(step)
    small, large = sizes_of(step)
    teachers = sorted(study.teacher_size(name) for name in study.teachers)
    assert large * study.grid.teacher_ratio[0] <= teachers[-3]  # three teachers are larger
    assert large > 1.2 * max(study.grid.students)
    assert small == 5_900  # 4 layers of 12 channels: what pruning in proportion gives


@pytest.mark.parametrize(
    ("adds", "values"), [("tokens", [1_600_000]), ("teachers", [420_000]), ("replicas", [])]
)
def test_every_kind_of_experiment_has_a_price(study, adds, values):
    priced(price(study, Experiment("?", adds, values)))


def test_teachers_named_for_each_student_get_the_new_one(study):
    data = study.model_dump(exclude_none=True, exclude_unset=True)
    del data["grid"]["teacher_ratio"]
    listed = [name for name in study.teachers if study.teacher_size(name) > 42_000]
    data["grid"]["teachers"] = dict.fromkeys(study.grid.students, listed)
    named = load_study(data)
    jobs, _ = priced(price(named, Experiment("?", "teachers", [420_000])))
    assert jobs > 2 * 3 * 3  # replicas, students, budgets
    priced(price(named, Experiment("?", "students", [5_900])))
