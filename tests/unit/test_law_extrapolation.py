"""What a recommendation adds from the runs, and the limits that it states."""

import pandas as pd
import pytest
from report_records import STUDENTS, TEACHERS, TOKENS, make_law, make_runs

from capgap.law.answers.ask import refit
from capgap.law.answers.extrapolation import limited
from capgap.law.answers.power_law_answer import recommend


@pytest.fixture(scope="module")
def answered():
    """Function that answers for a student by the runs' power law."""
    runs = make_runs()
    law, table = make_law(runs), pd.DataFrame([row.model_dump() for row in runs])
    fit = refit(law, table, "here")

    def answer(student, tokens=TOKENS, teachers=TEACHERS):
        larger = {name: size for name, size in teachers.items() if size > student}
        return law, recommend(fit, law, larger, student, tokens, 0.0)

    return answer


def test_measured_losses_stand_beside_the_prediction(answered):
    law, answer = answered(STUDENTS["100k"])
    here = next(found for found in law.optima if found.student == "100k")
    cells = {cell.teacher: cell for cell in here.teachers}
    for row in limited(answer, law).ranked:
        assert row.measured_loss.value == cells[row.teacher].mean_loss_nats_per_token
        assert row.measured_loss.low < row.measured_loss.value < row.measured_loss.high
        assert row.measured_regret == cells[row.teacher].regret_nats


def test_nothing_was_measured_at_another_size_or_budget(answered):
    for student, tokens in ((120_000, TOKENS), (STUDENTS["100k"], 2 * TOKENS)):
        law, answer = answered(student, tokens)
        assert all(row.measured_loss is None for row in limited(answer, law).ranked)


def test_it_abstains_further_out_than_the_runs_reach(answered):
    # students of 61k to 159k span a factor of 2.58, so at most 2.58 x 159k = 410k is answered
    large = {"a": 2_000_000, "b": 4_000_000}
    law, answer = answered(400_000, teachers=large)
    assert "times beyond the runs" not in (limited(answer, law).reason or "")
    law, answer = answered(500_000, teachers=large)
    found = limited(answer, law)
    assert found.status == "abstains"
    assert found.reason.startswith("the student lies 3.15 times beyond the runs, which themselves")
    # one budget was tried, so twice as many tokens are answered and three times are not
    for factor, status in ((2, False), (3, True)):
        law, answer = answered(100_000, factor * TOKENS)
        assert ("token budget lies" in (limited(answer, law).reason or "")) is status


def test_a_best_teacher_below_the_student_is_said_to_be_that(answered):
    law, answer = answered(STUDENTS["100k"])
    star = answer.teacher_params_star.model_copy(update={"value": 80_000.0})
    found = limited(answer.model_copy(update={"teacher_params_star": star}), law)
    assert found.status == "abstains"
    assert "the best teacher at 80k" in found.reason
    assert "not larger than the student" in found.reason


@pytest.mark.parametrize(
    ("status", "teacher", "size"),
    [("lower_bound", "t1m", "2M"), ("upper_bound", "t180k", "140k")],
)
def test_a_best_teacher_at_the_edge_names_the_one_to_add(answered, status, teacher, size):
    # above: twice 1.012M; below: sqrt(179k x 102.4k) = 135k, which is more than half of 179k
    law, answer = answered(STUDENTS["100k"])
    optima = [
        o.model_copy(update={"status": status, "best_teacher": teacher})
        if o.student == "100k"
        else o
        for o in law.optima
    ]
    found = limited(answer, law.model_copy(update={"optima": optima}))
    assert any(f"{teacher}, is the best there" in note for note in found.notes)
    assert any(f"add a teacher of about {size}" in note for note in found.notes)
    assert [row.teacher for row in found.ranked] == [row.teacher for row in answer.ranked]
