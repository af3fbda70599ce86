"""The report's explorer: the law's answers on a grid of students and budgets."""

import pandas as pd
import pytest
from report_records import TEACHERS, TOKENS, make_law, make_runs

from capgap.law.answers.ask import refit
from capgap.law.answers.leading_law_answer import LeadingLaw
from capgap.law.answers.power_law_answer import recommend
from capgap.law.table.run_means import cell_table
from capgap.reporting.explorer import explorer


@pytest.fixture(scope="module")
def fitted():
    runs = make_runs()
    table, law = pd.DataFrame([row.model_dump() for row in runs]), make_law(runs)
    return refit(law, table, "here"), law, cell_table(table)


def test_every_answer_is_that_of_the_law_for_teachers_larger_than_the_student(fitted):
    fit, law, cells = fitted
    law = law.model_copy(update={"leading": "power_law"})
    found = explorer(fit, law, TEACHERS, cells, (21e3, 400_000))
    assert found["tokens"] == [TOKENS]  # with one budget the law cannot move along the other axis
    assert min(found["students"]) == 31_000
    assert max(found["students"]) <= 320_000
    middle = len(found["students"]) // 2
    size, answer = found["students"][middle], found["answers"][middle][0]
    larger = {name: params for name, params in TEACHERS.items() if params > size}
    expected = recommend(fit, law, larger, size, TOKENS, 0.0)
    assert [row[0] for row in answer["ranked"]] == [row.teacher for row in expected.ranked]
    assert answer["star"][0] == pytest.approx(expected.teacher_params_star.value, rel=1e-3)
    for row, ranked in zip(answer["ranked"], expected.ranked, strict=True):
        assert row[2][0] == pytest.approx(ranked.predicted_regret.value, rel=1e-3, abs=1e-9)
    assert answer["beyond"] == 1.0
    assert found["answers"][0][0]["beyond"] > 1.5  # half the smallest student measured


def test_without_a_joint_law_there_is_no_explorer():
    runs = [run for run in make_runs() if run.teacher in ("t600k", "t1m")]
    law = make_law(runs)
    table = pd.DataFrame([row.model_dump() for row in runs])
    law = law.model_copy(update={"leading": "power_law"})
    fit = refit(law, table, "here")
    assert explorer(fit, law, TEACHERS, cell_table(table), (21e3, 400_000)) is None


def test_the_explorer_and_the_recommendation_ask_the_law_that_leads(fitted):
    fit, law, cells = fitted
    law = law.model_copy(update={"leading": "two_causes"})
    found = explorer(fit, law, TEACHERS, cells, (21e3, 400_000))
    size = found["students"][5]
    larger = {name: params for name, params in TEACHERS.items() if params > size}
    power = recommend(fit, law, larger, size, TOKENS, 0.0)
    expected = LeadingLaw(law, cells).answer(power)
    assert expected.basis == "two_causes"
    shown = [(row[0], row[2][0]) for row in found["answers"][5][0]["ranked"]]
    assert shown == [
        (row.teacher, pytest.approx(row.predicted_regret.value, rel=1e-3, abs=1e-9))
        for row in expected.ranked
    ]
    assert shown[-1][1] != pytest.approx(power.ranked[-1].predicted_regret.value, rel=1e-3)
