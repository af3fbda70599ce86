from collections import Counter

import numpy as np
import pandas as pd
import pytest

from capgap.config import Law
from capgap.law.arms import effects_of
from capgap.law.cells import cells_of, pool
from capgap.law.claims import excludes, overall_of, sentence
from capgap.law.ratios import describe_surface
from capgap.law.law_record import Interval
from capgap.law.shape import judge
from capgap.law.simulate import simulate_runs, simulate_study
from capgap.law.study import fit_law, law_record, lines_of, optima_of
from capgap.law.unevenness import unevenness_of

STUDENTS = (60e3, 100e3, 160e3)
STEPS = np.array([1.3, 2.3, 4.1, 7.4, 13.0])
LADDERS = [s * STEPS for s in STUDENTS]
LADDER = tuple(np.geomspace(75e3, 2e6, 6))
QUICK = Law(resamples=200)


def shapes(runs):
    cells = cells_of(runs)
    noise = pool(cells)
    return [judge(c, noise, unevenness_of(cells, noise), 0.95, 0.005).shape for c in cells]


def one_curve(losses, noise=0.001):
    """Two seeds a teacher, a fixed distance apart in both directions."""
    rows = []
    for k, loss in enumerate(losses):
        for seed in (0, 1):
            sign = noise if (seed + k) % 2 else -noise
            rows.append(("s", f"pruned-t{k}", f"t{k}", seed, 100, 200 * 2**k, 1000, loss + sign))
    columns = ["student", "init", "teacher", "seed", "student_params_non_embedding"]
    columns += ["teacher_params_non_embedding", "tokens", "val_loss_nats_per_token"]
    return pd.DataFrame(rows, columns=columns).assign(arm="main")


@pytest.mark.parametrize(
    ("losses", "shape"),
    [
        ([4.10, 4.02, 4.00, 4.03, 4.12], "interior"),
        ([4.20, 4.15, 4.10, 4.05, 4.00], "monotone"),
        ([4.00, 4.05, 4.10, 4.15, 4.20], "monotone"),
        ([4.20, 4.10, 4.02, 4.001, 4.00], "saturating"),
        ([4.001, 4.00, 4.02, 4.10, 4.20], "saturating"),
        ([4.000, 4.002, 4.001, 4.003, 4.001], "flat"),
        ([4.00, 4.10, 4.10, 4.10, 4.00], "not_identifiable"),
        ([4.00, 4.10], "not_identifiable"),
    ],
)
def test_shapes_by_hand(losses, shape):
    assert shapes(one_curve(losses)) == [shape]


def test_one_seed_and_too_much_noise_are_not_identifiable():
    runs = one_curve([4.10, 4.02, 4.00, 4.03, 4.12])
    assert shapes(runs[runs["seed"] == 0]) == ["not_identifiable"]
    assert shapes(one_curve([4.01, 4.00, 4.02, 4.03, 4.01], noise=0.2)) == ["not_identifiable"]


def test_without_any_noise_the_smallest_difference_counts():
    assert shapes(one_curve([4.10, 4.02, 4.00, 4.03, 4.12], noise=0)) == ["interior"]


@pytest.mark.parametrize(
    ("world", "shape"),
    [
        ({"curvature": 0}, "flat"),
        ({"slope": 0.5}, "monotone"),
        ({"slope": 40}, "monotone"),
        ({}, "interior"),
    ],
)
def test_a_known_truth_is_called_so(world, shape):
    rng = np.random.default_rng(1)
    found = Counter()
    for _ in range(40):
        found.update(shapes(simulate_runs(rng, STUDENTS, LADDERS, **world)))
    assert found[shape] >= 0.95 * 120


# --- the law --------------------------------------------------------------------------------------


def overall(runs):
    """The verdict as in the record, without the rivals and scores that take most of its time."""
    fit = fit_law(runs, QUICK)
    optima, lines = optima_of(fit, QUICK), lines_of(fit, QUICK)
    effects = effects_of(runs, fit.noise, QUICK.confidence, QUICK.tie_nats)
    surface = None if fit.surface is None else describe_surface(fit.surface, optima, QUICK)
    return overall_of(optima, lines, surface, effects, 2.5)


def test_the_record_holds_the_same_verdict():
    runs = study(arms=("random_init",), noise_sd=0.004)
    assert law_record(runs, QUICK).overall == overall(runs)


FIVE = (60e3, 80e3, 100e3, 130e3, 160e3)


def simulate(seed=0, ladders=None, students=STUDENTS, **world):
    ladders = [s * STEPS for s in students] if ladders is None else ladders
    return simulate_runs(np.random.default_rng(seed), students, ladders, **world)


def answers(found):
    return {claim.name: claim.answer for claim in found.claims}


def test_the_published_law_is_supported_where_it_is_true():
    found = overall(simulate(noise_sd=0.001))
    assert found.status == "supported"
    assert answers(found) == {
        "interior": "yes",
        "proportional": "yes",
        "ratio": "yes",
        "all_budgets": "unknown",
    }
    assert "one token budget was tried" in found.reason
    assert found.cause == "unknown"


@pytest.mark.parametrize(
    ("world", "claim"),
    [
        ({"curvature": 0}, "interior"),
        ({"slope": 0.5}, "interior"),
        ({"slope": 0, "intercept": 250e3, "students": FIVE}, "proportional"),
        ({"slope": 6, "ladders": [s * STEPS * 2 for s in STUDENTS], "noise_sd": 0.001}, "ratio"),
    ],
)
def test_another_truth_contradicts_the_claim_it_breaks(world, claim):
    found = overall(simulate(**world))
    assert found.status == "contradicted"
    assert answers(found)[claim] == "no"


def test_a_ladder_that_does_not_reach_the_published_ratio_is_no_contradiction():
    steps = np.array([1.1, 1.3, 1.5, 1.7, 1.9])  # 2.5 lies beyond
    found = overall(simulate(ladders=[s * steps for s in STUDENTS], curvature=0.6))
    assert answers(found)["interior"] == "unknown"
    assert found.status == "inconclusive"


def test_one_seed_is_inconclusive():
    assert overall(simulate(seeds=1)).status == "inconclusive"


def test_an_optimum_that_moves_with_tokens_contradicts_one_law_for_all_budgets():
    runs = pd.concat([simulate(slope=2.2, tokens=10**6), simulate(1, slope=3.4, tokens=4 * 10**6)])
    found = overall(runs)
    assert answers(found)["all_budgets"] == "no"
    assert found.status == "contradicted"
    runs = pd.concat([simulate(tokens=10**6), simulate(1, tokens=4 * 10**6)])
    assert answers(overall(runs))["all_budgets"] == "yes"


def test_a_flat_or_monotone_law_is_called_contradicted():
    rng = np.random.default_rng(3)
    for world in ({"curvature": 0}, {"slope": 0.5}):
        found = Counter()
        for _ in range(20):
            fit = fit_law(simulate_runs(rng, STUDENTS, LADDERS, **world), QUICK)
            optima, lines = optima_of(fit, QUICK), lines_of(fit, QUICK)
            found[overall_of(optima, lines, None, [], 2.5).status] += 1
        assert found["contradicted"] >= 19


@pytest.mark.parametrize(
    ("slope", "runs", "ratio"),
    [
        ((2.2, 2.8), (2.3, 2.7), "yes"),
        ((2.6, 2.8), (2.6, 2.7), "no"),
        ((2.6, 2.8), (2.4, 2.9), "yes"),  # distances that are small by luck decide nothing
        ((2.4, 2.9), (2.6, 2.8), "yes"),
        ((-1, 5), (2.3, 2.7), "unknown"),
        ((2.6, 2.8), None, "no"),
    ],
)
def test_a_decision_asks_both_intervals(slope, runs, ratio):
    line = lines_of(fit_law(simulate(), QUICK), QUICK)[0]
    ends = {
        "slope": Interval(value=2.5, low=slope[0], high=slope[1]),
        "slope_resampled": runs and Interval(value=2.5, low=runs[0], high=runs[1]),
    }
    found = overall_of([], [line.model_copy(update=ends)], None, [], 2.5)
    assert answers(found)["ratio"] == ratio


def test_excludes_by_hand():
    assert excludes(Interval(value=2, low=1.5, high=None), 1)
    assert not excludes(Interval(value=2, low=0.5, high=None), 1)
    assert excludes(Interval(value=2, low=None, high=0.9), 1)
    assert not excludes(Interval(value=2, low=None, high=None), 1)
    assert not excludes(None, 1)


def test_the_sentence_names_the_status_and_the_students():
    record = law_record(simulate(noise_sd=0.001), QUICK)
    text = sentence(record.overall, record.optima)
    assert text.startswith("The law is supported: at 1M tokens T* grows with S by 2.")
    assert text.endswith("Students of 60k to 160k parameters.")
    found = overall_of([], [], None, [], 2.5)
    assert found.status == "inconclusive"


# --- the cause ------------------------------------------------------------------------------------


def study(**world):
    return simulate_study(np.random.default_rng(0), STUDENTS, LADDER, budgets=[10**6], **world)


def test_an_optimum_only_with_pruned_starts_is_the_start():
    found = overall(study())
    assert answers(found)["interior"] == "yes"
    assert found.cause == "init"
    assert "shows only with pruned starts" in found.cause_reason
    random = overall(study(arms=("random_init",)))
    assert random.cause == "init"


def test_an_optimum_at_fixed_starts_too_is_the_teacher():
    found = overall(study(damage=0, help_nats=0, bend=0.1))
    assert found.cause == "teacher"


def test_without_arms_the_cause_is_unknown():
    assert overall(study(arms=())).cause == "unknown"
    one_side = overall(study(arms=("no_teacher",)))
    assert one_side.cause == "unknown"


def test_effects_by_hand():
    runs = study(noise_sd=0, damage=0.1, help_nats=0.2)
    found = next(e for e in effects_of(runs, None, 0.95, 0.005) if e.student == "60000")
    larger = np.array(LADDER)
    assert found.start_nats == pytest.approx(0.1 * np.log(larger[-1] / larger[0]))
    assert found.teacher_nats == pytest.approx(0.2 * (60e3 / larger[0] - 60e3 / larger[-1]))
    assert found.gain_nats == pytest.approx(0.2 * np.mean(1 - 60e3 / larger))
    assert found.noise_nats is None
    noisy = effects_of(study(), pool(cells_of(study(arms=()))), 0.95, 0.005)
    assert all(e.noise_nats < 0.02 for e in noisy)


def test_a_single_arm_measures_its_own_side_only():
    found = effects_of(study(arms=("no_teacher",)), None, 0.95, 0.005)[0]
    assert found.start_nats is not None
    assert found.teacher_nats is None
    found = effects_of(study(arms=("random_init",)), None, 0.95, 0.005)[0]
    assert found.start_nats is None
    assert found.teacher_nats is not None
    assert effects_of(study(arms=()), None, 0.95, 0.005) == []
