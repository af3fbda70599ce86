"""The law of two causes and the law that leads, in words."""

from pathlib import Path

import pytest

from capgap.config import Law
from capgap.reporting.causes_text import (
    damage_rows,
    effects,
    gain,
    lead_rows,
    leads,
    loss,
    off_family,
)
from capgap.stages.fit import run

TABLE = Path(__file__).parents[1] / "law_pilots" / "family.csv"


@pytest.fixture(scope="module")
def law():
    return run(TABLE, Law())


def test_the_law_that_leads_is_the_one_with_the_least_regret(law):
    rows = lead_rows(law)
    regrets = [row.regret.regret.value for row in rows]
    assert regrets == sorted(regrets)
    assert [row.law for row in rows if row.leads] == [law.leading] == ["two_causes"]
    assert set(rows[0].by_kind) == {"students", "budgets", "teachers"}
    text = leads(law)
    regret = {row.law: row.regret.regret.value for row in rows}
    assert text == (
        "The law of two causes predicts best: for runs left out of its fit, the teacher that it chose "
        f"cost {loss(regret['two_causes'])} nats on average; that of the power law T* ~ S^a D^b "
        f"{loss(regret['power_law'])}, that of the P2 law {loss(regret['p2'])} and that of the law of "
        f"Busbridge et al. {loss(regret['busbridge'])}."
    )
    assert leads(law.model_copy(update={"leading": None})) == ""


def test_tokens_repair_the_cut_and_the_larger_cut_harms_more(law):
    by_student = {}
    for row in damage_rows(law):
        assert row.largest.damage.value > row.smallest.damage.value > 0
        assert gain(row).value == -row.largest.teacher_part.value
        assert gain(row).low == -row.largest.teacher_part.high
        by_student.setdefault(row.student, []).append(row.largest.damage.value)
    assert all(found == sorted(found, reverse=True) for found in by_student.values())
    assert set(by_student) == {"h12", "h16", "h20", "h28"}
    # g times the difference of the two teachers' own losses
    row = damage_rows(law)[0]
    assert gain(row).value == pytest.approx(law.two_causes.help.value * 0.4158, rel=0.05)


def test_the_sentence_names_help_damage_and_the_teacher_off_its_family(law):
    text = effects(law)
    help_ = law.two_causes.help
    assert f"makes its student {help_.value / 10:.3f} [" in text
    assert "Pruning t116 down to h28 costs" in text
    assert "after 250k tokens" in text
    assert "after 1M tokens" in text
    assert (
        off_family(law)
        == "t116 (by 0.135 nats) has a higher loss than the other teachers predict for its size."
    )


def test_what_is_not_settled_says_what_would_settle_it(law):
    reason = "the runs do not tell them apart; add the arm cross_teacher"
    found = law.two_causes.model_copy(update={"status": "not_identifiable", "reason": reason})
    text = effects(law.model_copy(update={"two_causes": found}))
    assert text == (
        "These runs do not settle how much a better teacher helps and pruning harms: "
        + reason
        + "."
    )
    assert effects(law.model_copy(update={"two_causes": None})) == ""


def test_another_metric_has_its_own_unit(law):
    other = law.model_copy(update={"metric": "accuracy"})
    assert "nats" not in effects(other) + leads(other)
    assert "0.1 logits better" in effects(other)
