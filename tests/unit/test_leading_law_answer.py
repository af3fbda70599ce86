"""A recommendation by the law that predicted best what it had not seen."""

from pathlib import Path

import pytest

from capgap.config import Law
from capgap.law.answers.ask import open_law
from capgap.law.answers.leading_law_answer import LeadingLaw
from capgap.law.law_record import LawRecord
from capgap.law.table.read_runs import read_table
from capgap.law.table.run_means import cell_table
from capgap.reporting.law_text import text
from capgap.reporting.recommendation_text import text as recommended
from capgap.stages.fit import run

TABLE = Path(__file__).parents[1] / "law_pilots" / "family.csv"
BAD_RUN = {"teacher": "t116", "tokens": 250_000}  # which no law holds


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    law = run(TABLE, Law(exclude=[BAD_RUN]))
    path = tmp_path_factory.mktemp("law") / "law.json"
    path.write_text(law.to_json())
    return path, LawRecord.read(path)


def test_the_fit_prints_both_causes_and_which_law_leads(fitted):
    _, law = fitted
    printed = text(law)
    assert law.leading == "two_causes"
    assert "two_causes leads (mean regret 0.00" in printed
    assert "g: nats of the student for each of its teacher" in printed
    assert "t116 (by 0.135 nats) has a higher loss than the other teachers predict" in printed
    assert "T* of h28 at 1M tokens within this family: 1" in printed


def test_the_answer_is_that_of_the_two_causes(fitted):
    path, law = fitted
    answer = open_law(path, TABLE).teachers_for(20_000, 700_000)
    assert answer.basis == "two_causes"
    assert answer.status == "recommended"
    assert answer.ranked[0].teacher in ("t44", "t60")
    assert answer.ranked[-1].teacher == "t116"  # large and badly trained
    assert answer.ranked[0].predicted_regret.value == 0
    star = answer.teacher_params_star
    assert 50e3 < star.low < star.value < star.high < 200e3
    assert answer.target_params == star.value
    rules = {rule.rule: rule for rule in answer.rules}
    regret = {one.teacher: one.predicted_regret.value for one in answer.ranked}
    assert rules["largest"].expected_regret_nats == regret["t116"]
    loss = answer.ranked[0].predicted_loss
    assert 3.0 < loss.low < loss.value < loss.high < 3.3
    shown = recommended(answer, law)
    assert "Basis: the law of two causes (mean regret" in shown


def test_more_tokens_want_a_larger_teacher(fitted):
    path, _ = fitted
    stars = [
        open_law(path, TABLE).teachers_for(20_000, tokens).target_params
        for tokens in (500_000, 700_000, 1_000_000)
    ]
    assert stars[0] < stars[1] < stars[2]


def test_a_teacher_of_another_size_has_the_loss_of_the_family(fitted):
    path, _ = fitted
    answer = open_law(path, TABLE).teachers_for(20_000, 700_000, ["t44", "100k", "283k"])
    assert answer.basis == "two_causes"
    assert answer.ranked[0].teacher == "100k"


def test_beyond_the_family_the_power_law_answers(fitted):
    path, _ = fitted
    answer = open_law(path, TABLE).teachers_for(20_000, 700_000, ["t44", "7B"])
    assert answer.basis != "two_causes"
    assert any(
        "the loss of 7B is not known: the family has 23.3k to 283k" in n for n in answer.notes
    )


def test_a_rival_that_leads_is_used_without_intervals(fitted):
    path, law = fitted
    answer = open_law(path, TABLE).teachers_for(20_000, 700_000)
    runs = read_table(TABLE, exclude=[BAD_RUN]).runs
    led = law.model_copy(update={"leading": "busbridge"})
    by_rival = LeadingLaw(led, cell_table(runs)).answer(answer)
    assert by_rival.basis == "busbridge"
    regrets = [one.predicted_regret for one in by_rival.ranked]
    assert [r.value for r in regrets] == sorted(r.value for r in regrets)
    assert {r.low for r in regrets} == {None}
    by_power_law = LeadingLaw(law.model_copy(update={"leading": "power_law"}), None)
    assert by_power_law.answer(answer) == answer
