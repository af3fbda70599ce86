"""T*, regrets and recommendations from a fit."""

import numpy as np
import pytest
from law_worlds import FIVE, LADDER, QUICK, STUDENTS, case, noise_free, simulate

from capgap.config import Law
from capgap.law.answers.power_law_answer import costs_of, level_of, predict, recommend, student_for
from capgap.law.fit_law import fit_law
from capgap.law.make_record import law_record
from capgap.law.power_law.loss_curve import bowl

WIDE = np.geomspace(70e3, 1.3e6, 7)


@pytest.fixture(scope="module")
def fit():
    return fit_law(simulate(students=FIVE, ladder=WIDE), QUICK)


def test_the_narrower_of_joint_law_and_line_is_used_and_named(fit):
    found = predict(fit, 120e3, 1e6, 0.95)
    assert found.star.low < 300e3 < found.star.high
    assert found.basis in ("power_law", "line")
    assert "narrower than that of the" in found.note
    joint = fit.power_law.star(120e3, 1e6, 0.95)
    (line,) = [line for _, line in fit.lines]
    widths = {
        "power_law": joint.high / joint.low,
        "line": line.predict(120e3).high / line.predict(120e3).low,
    }
    assert found.basis == min(widths, key=widths.get)


def test_another_budget_uses_the_nearest_one_and_says_so(fit):
    found = predict(fit, 120e3, 3e6, 0.95)
    assert found.law_tokens == 1_000_000
    assert found.value == pytest.approx(predict(fit, 120e3, 1e6, 0.95).value)
    assert "do not show how T* moves with tokens" in found.note


def test_a_student_of_another_size_than_the_only_one_takes_its_ratio():
    one = fit_law(simulate(students=(100e3,)), QUICK)
    found = predict(one, 200e3, 1e6, 0.95)
    assert found.basis == "nearest_student"
    assert found.star is None
    assert found.value == pytest.approx(2 * one.power_law.star(100e3, 1e6, 0.95).value)


def test_regrets_are_those_of_the_true_curve():
    exact = fit_law(noise_free(students=FIVE, ladder=WIDE, curvature=0.2, skew=0.0), QUICK)
    found = predict(exact, 120e3, 1e6, 0.95)
    sizes = np.array([150e3, 300e3, 600e3])
    true = 0.2 * bowl(np.log(sizes / 300e3), np.float64(0))
    given = costs_of(exact, found, sizes, 120e3, 0.95)[1]
    assert [r.value for r in given] == pytest.approx(true - true.min(), abs=0.002)
    for regret, truth in zip(given, true, strict=True):
        assert regret.low <= truth + 0.003
        assert regret.high >= truth - 0.003


def test_the_level_of_a_group_is_its_lowest_loss(fit):
    level = level_of(fit, 100e3, 1e6, 0.95)
    truth = 4 * 10**-0.06 * 2**-0.025  # as the simulator has it
    assert level.value == pytest.approx(truth, abs=0.01)
    assert level.low < truth < level.high
    between = level_of(fit, 115e3, 1e6, 0.95)
    assert between.value == pytest.approx(4 * 11.5**-0.06 * 2**-0.025, abs=0.01)


def test_the_student_of_a_teacher_is_the_inverse(fit):
    found = student_for(fit, 300e3, 1e6, 0.95)
    assert found.value == pytest.approx(120e3, rel=0.02)
    assert found.low < 120e3 < found.high
    assert fit.power_law.star(found.value, 1e6, 0.95).value == pytest.approx(300e3, rel=1e-2)
    assert fit.power_law.star(found.high, 1e6, 0.95).low == pytest.approx(300e3, rel=1e-2)
    assert student_for(fit, 300e3, 2e6, 0.95) is None  # how T* moves with tokens is not known


def test_a_recommendation_ranks_by_regret_and_adds_up():
    runs = simulate(students=FIVE, ladder=WIDE)
    fit, law = fit_law(runs, QUICK), law_record(runs, QUICK)
    offered = {"small": 150_000, "right": 300_000, "large": 900_000}
    answer = recommend(fit, law, offered, 120_000, 1_000_000, 1e15)
    assert answer.status == "recommended"
    assert answer.ranked[0].teacher == "right"
    assert answer.ranked[0].predicted_regret.value == 0
    assert answer.ranked[0].train_flops == 1e6 * (6 * 120e3 + 2 * 300e3)
    assert answer.exhaustive_flops == sum(row.train_flops for row in answer.ranked)
    best = min(answer.ranked, key=lambda row: row.predicted_loss.value)
    assert best.teacher == "right"
    rules = {rule.rule: rule for rule in answer.rules}
    assert rules["2.5 times"].teacher == "right"
    assert rules["largest"].expected_regret_nats > 0.05
    assert answer.student_extrapolation == 1


def test_it_abstains_if_the_runs_do_not_say():
    flat = simulate(curvature=0.0)
    fit, law = fit_law(flat, QUICK), law_record(flat, QUICK)
    answer = recommend(fit, law, {"a": 200_000, "b": 500_000}, 100_000, 1_000_000, 0.0)
    assert answer.status == "abstains"
    assert "hardly matters" in answer.reason
    assert answer.ranked[0].teacher == "a"
    few = simulate(ladder=LADDER[:2])
    fit, law = fit_law(few, QUICK), law_record(few, QUICK)
    answer = recommend(fit, law, {"a": 200_000, "b": 500_000}, 100_000, 1_000_000, 0.0)
    assert answer.status == "abstains"
    assert "three" in answer.reason
    assert answer.ranked[0].predicted_loss is None


def test_the_recommendation_is_no_worse_than_the_nearest_student_s_best():
    """Mean true regret over 20 studies with teacher effects, for a student that was not tried."""
    own, near = [], []
    for seed in range(20):
        runs = simulate(seed, students=STUDENTS, ladder=WIDE, between_init_sd=0.005)
        fit = fit_law(runs, QUICK)
        true = 0.25 * np.log(WIDE / (2.5 * 130e3)) ** 2 / 2
        values = costs_of(fit, predict(fit, 130e3, 1e6, 0.95), WIDE, 130e3, 0.95)[1]
        own.append(true[int(np.argmin([r.value for r in values]))] - true.min())
        close = min(fit.located, key=lambda place: abs(np.log(place.size / 130e3)))
        best = close.means.size_U[close.means.mean_U.argmin()]
        near.append(true[int(np.abs(np.log(WIDE / best)).argmin())] - true.min())
    assert np.mean(own) <= np.mean(near) + 0.0005


def test_the_published_tables_recommend_what_was_best():
    fit = fit_law(case("published_default"), Law())
    sizes = np.array([23256, 41248, 64000, 126000])
    values = costs_of(fit, predict(fit, 18e3, 5e5, 0.95), sizes, 18e3, 0.95)[1]
    assert int(np.argmin([r.value for r in values])) == 1
