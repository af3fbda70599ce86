import pandas as pd
import pytest
from law_worlds import LADDER, STUDENTS, simulate

from capgap.config import Law
from capgap.errors import CapgapError
from capgap.law.answers.answer_records import Choice
from capgap.law.make_record import law_record
from capgap.stages.choose import main, neighbour_of, run


@pytest.fixture
def study(tmp_path):
    """Write a table and its law, and return their paths."""

    def write(runs):
        (tmp_path / "runs.csv").write_text(runs.to_csv(index=False))
        record = law_record(runs, Law())
        (tmp_path / "law.json").write_text(record.to_json())
        return tmp_path / "law.json", tmp_path / "runs.csv"

    return write


SIZES = {"a": 100, "b": 200, "c": 400, "d": 800}


@pytest.mark.parametrize(
    ("target", "chosen", "neighbour"),
    [
        (210, "b", "c"),
        (190, "b", "a"),
        (200, "b", "c"),
        (290, "c", "b"),  # above the geometric mean of b and c, 283
        (50, "a", "b"),
        (-10, "a", "b"),
        (9999, "d", "c"),
    ],
)
def test_the_neighbour_is_the_nearest_across_the_target(target, chosen, neighbour):
    assert neighbour_of(chosen, SIZES, target) == neighbour


def test_one_teacher_has_no_neighbour():
    assert neighbour_of("a", {"a": 100}, 500) is None


def test_the_law_chooses(study):
    choice = run(*study(simulate()), student=125_000, tokens=10**6)
    star = choice.teacher_params_star
    assert choice.basis == "power_law"
    assert star.value == pytest.approx(2.5 * 125e3, rel=0.05)
    assert star.low < 2.5 * 125e3 < star.high
    assert choice.chosen == "t280000"
    assert choice.neighbour == "t530000"
    assert choice.largest == "t990000"
    assert choice.teachers() == ["t280000", "t530000", "t990000"]
    assert "beyond" not in choice.basis_note
    assert "may move" not in choice.basis_note


def test_extrapolation_in_size_and_budget_is_said(study):
    choice = run(*study(simulate()), student=300_000, tokens=8 * 10**6)
    assert choice.law_tokens == 10**6
    assert "beyond every student studied, 60k to 160k" in choice.basis_note
    assert "the student gets 8M tokens" in choice.basis_note


@pytest.mark.parametrize("student", [79_999, 80_000, 150_000, 989_999])
def test_never_a_teacher_that_is_not_larger(study, student):
    sizes = {f"t{size:.0f}": size for size in LADDER}
    choice = run(*study(simulate(slope=1.1, intercept=30e3)), student=student, tokens=10**6)
    assert all(sizes[name] > student for name in choice.teachers())


def test_an_optimum_beyond_the_teachers_is_said(study):
    paths = study(simulate())
    choice = run(*paths, student=700_000, tokens=10**6)
    assert choice.chosen == choice.largest == "t990000"
    assert choice.neighbour is None
    assert "larger than every available teacher, and t990000 is the nearest" in choice.basis_note
    choice = run(*paths, student=10_000, tokens=10**6)
    assert (choice.chosen, choice.neighbour) == ("t80000", "t150000")
    assert "smaller than every available teacher" in choice.basis_note


def test_two_students_are_enough(study):
    choice = run(*study(simulate(students=STUDENTS[1:])), student=150_000, tokens=10**6)
    assert choice.basis == "power_law"
    assert choice.chosen == "t280000"  # 2.5 x 150k = 375k, below the middle of 280k and 530k
    assert choice.neighbour == "t530000"


def test_one_student_lends_its_ratio(study):
    choice = run(*study(simulate(students=[100e3])), student=130_000, tokens=10**6)
    assert choice.basis == "nearest_student"
    assert choice.teacher_params_star is None
    assert choice.chosen == "t280000"  # 2.5 x 130k = 325k
    assert "whose T* is 2.5" in choice.basis_note


def test_a_law_of_another_table_is_refused(study):
    law, runs = study(simulate())
    runs.write_text(simulate(students=STUDENTS[:2]).to_csv(index=False))
    with pytest.raises(CapgapError, match="do not belong together"):
        run(law, runs, student=125_000, tokens=10**6)


def test_a_student_that_no_teacher_exceeds_is_refused(study):
    with pytest.raises(CapgapError, match="no teacher is larger than the student, 990,000"):
        run(*study(simulate()), student=990_000, tokens=10**6)
    with pytest.raises(CapgapError, match="tokens is 0"):
        run(*study(simulate()), student=100, tokens=0)


def test_teachers_of_control_arms_are_candidates(study):
    runs = simulate()
    extra = runs.iloc[[0]].assign(
        teacher="t3000000", arm="cross_teacher", teacher_params_non_embedding=3_000_000
    )
    choice = run(*study(pd.concat([runs, extra])), student=125_000, tokens=10**6)
    assert choice.largest == "t3000000"


def test_command_line(study, tmp_path, capsys):
    law, runs = study(simulate())
    out = tmp_path / "choice.json"
    options = ["--law", str(law), "--runs", str(runs), "--out", str(out)]
    main([*options, "--student", "125k", "--tokens", "1M"])
    choice = Choice.read(out)
    assert choice == run(law, runs, student=125_000, tokens=10**6)
    assert capsys.readouterr().out.startswith("t280000: the power law puts")
