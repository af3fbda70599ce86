"""Verdicts with a margin on both sides, and the tests behind them."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from law_simulation import Design, World, power
from law_simulation import simulate as simulate_world
from law_worlds import FIVE, LADDER, QUICK, noise_free, simulate

from capgap.config import Law
from capgap.law.fit_law import fit_law
from capgap.law.law_record import ArmEffects, Interval
from capgap.law.make_record import law_record
from capgap.law.optima.single_optima import Means, judge
from capgap.law.optimum_records import optima_of
from capgap.law.power_law.power_law import fit_power_law
from capgap.law.simulate import simulate_study
from capgap.law.table.grouped_runs import group_runs
from capgap.law.verdicts.claims import overall_of
from capgap.law.verdicts.control_arms import effects_of
from capgap.law.verdicts.flatness import is_flat, pooled_differences

WIDE = np.geomspace(70e3, 1.3e6, 7)


def judged(runs, settings=QUICK, effects=()):
    fit = fit_law(runs, settings)
    overall = overall_of(
        fit.power_law, fit.why_not, optima_of(fit, settings), list(effects), settings
    )
    return overall, {claim.name: claim for claim in overall.claims}


def interval(value, low, high):
    return Interval(value=value, low=low, high=high)


def test_equal_different_and_neither():
    inside, across, outside = interval(1, 0.9, 1.1), interval(1, 0.8, 1.3), interval(1.5, 1.3, 1.9)
    assert inside.within(0.85, 1.15)
    assert not across.within(0.85, 1.15)
    assert not across.beyond(0.85, 1.15)
    assert outside.beyond(0.85, 1.15)
    assert not interval(1, None, 1.1).within(0.85, 1.15)
    assert not interval(1, None, 1.3).beyond(0.85, 1.15)
    assert interval(0.3, None, 0.8).beyond(0.85, 1.15)


def test_the_published_law_is_supported():
    overall, by_name = judged(simulate(students=FIVE, ladder=WIDE, slope=2.5))
    assert overall.status == "supported"
    assert by_name["proportional"].verdict == by_name["ratio"].verdict == "equal"
    assert by_name["grows"].answer == "yes"
    assert by_name["tokens"].answer == "unknown"
    assert "for the budgets tried" in overall.reason


@pytest.mark.parametrize("slope", [1.7, 3.5])
def test_another_ratio_is_not_called_the_published_one(slope):
    for seed in range(4):
        _, by_name = judged(simulate(seed, students=(60e3, 100e3, 160e3), slope=slope, ladder=WIDE))
        assert by_name["ratio"].answer != "yes"
    overall, by_name = judged(noise_free(students=FIVE, slope=slope, ladder=WIDE))
    assert by_name["ratio"].verdict == "different"
    assert overall.status == "contradicted"


def test_a_margin_decides():
    runs = simulate(students=FIVE, ladder=WIDE, slope=2.8)
    assert judged(runs, Law(ratio_margin=0.25))[1]["ratio"].verdict == "equal"
    assert judged(runs, Law(ratio_margin=0.02))[1]["ratio"].verdict == "different"


def test_a_small_intercept_over_a_wide_range_is_no_contradiction():
    students = (30e3, 60e3, 110e3, 200e3, 360e3, 640e3)
    ladders = np.geomspace(45e3, 4e6, 11)
    design = Design(
        {s: [t for t in ladders if 1.2 * s < t < 8 * s] for s in students},
        dict.fromkeys(students, (1000000.0,)),
        seeds=(0, 1),
    )
    world = World(lambda s, d: 2.5 * s + 5e3, order_sd=0.003)
    for seed in range(3):
        overall, _ = judged(simulate_world(np.random.default_rng(seed), world, design))
        assert overall.status != "contradicted"


def test_a_law_that_moves_with_tokens_is_contradicted():
    students = (13e3, 17e3, 22e3)
    design = Design(
        dict.fromkeys(students, (23000.0, 41000.0, 92000.0, 164000.0)),
        dict.fromkeys(students, (250000.0, 500000.0, 1000000.0)),
        seeds=(0, 1),
    )
    world = World(power(0.3, 0.7), order_sd=0.001)
    overall, by_name = judged(simulate_world(np.random.default_rng(0), world, design))
    assert overall.status == "contradicted"
    assert by_name["tokens"].answer == "yes"
    assert by_name["tokens"].estimate.low < 0.7 < by_name["tokens"].estimate.high


def test_flat_curves_are_flat():
    """No teacher differs: in every one of four studies the law is flat and no ratio is found."""
    for seed in range(4):
        runs = simulate(seed, curvature=0.0)
        fit = fit_law(runs, QUICK)
        assert is_flat(fit.power_law, QUICK)
        overall, by_name = judged(runs)
        assert by_name["interior"].answer == "no"
        assert by_name["ratio"].answer != "yes"
        assert overall.status == "contradicted"
    assert law_record(simulate(0, curvature=0.0), QUICK).status == "flat"
    assert not is_flat(fit_law(simulate(), QUICK).power_law, QUICK)


def test_teachers_that_differ_by_chance_alone_make_no_difference_significant():
    """Teachers of sd 0.005 nats, shared by all students, whose size makes no difference.

    Five of them cannot show that ends and middle differ by less than 0.02 nats in every study, so
    some are left open, but hardly any is called curved.
    """
    design = Design(
        dict.fromkeys((6e3, 12e3, 24e3), (16e3, 29e3, 53e3, 97e3, 176e3)),
        dict.fromkeys((6e3, 12e3, 24e3), (500000.0,)),
        seeds=(0, 1),
    )
    world = World(power(1, 0), curvature=0.0, order_sd=0.003, init_sd=0.004, teacher_sd=0.005)
    rng = np.random.default_rng(2)
    laws = [fit_power_law(group_runs(simulate_world(rng, world, design))) for _ in range(20)]
    assert sum(pooled_differences(law, 0.95).p < 0.025 for law in laws) <= 1
    assert sum(is_flat(law, QUICK) for law in laws) >= 9
    exact = dataclasses.replace(world, teacher_sd=0.0)
    laws = [fit_power_law(group_runs(simulate_world(rng, exact, design))) for _ in range(20)]
    assert sum(is_flat(law, QUICK) for law in laws) >= 17


def test_the_pooled_parabola_is_that_of_least_squares():
    """Without noise and with one curve in log T/S its differences are exact."""
    runs = noise_free(slope=2.5, curvature=0.2, students=(100e3,))
    law = fit_law(runs, Law(noise_sd=0.001)).power_law
    u = law.runs.log_ratio_N - law.runs.log_ratio_N.mean()
    fitted = np.polyfit(u, law.runs.loss_N, 2)
    low, high = np.quantile(u, [0.1, 0.9])
    expected = np.diff(np.polyval(fitted, [low, (low + high) / 2, high]))
    assert pooled_differences(law, 0.95).difference_3[:2] == pytest.approx(expected, rel=1e-6)


def test_monotone_curves_whose_ladder_holds_the_published_ratio_speak_against_it():
    overall, by_name = judged(noise_free(students=FIVE, ladder=WIDE, slope=14, curvature=0.3))
    assert by_name["ratio"].verdict == "different"
    assert overall.status == "contradicted"


def test_too_little_is_not_identifiable():
    record = law_record(simulate(ladder=LADDER[:2]), QUICK)
    assert record.status == "not_identifiable"
    assert record.overall.status == "inconclusive"
    assert "three" in record.reason
    one = law_record(simulate(students=(60e3,), ladder=LADDER[:3], seeds=1), QUICK)
    assert "noise" in one.reason
    stated = law_record(simulate(students=(60e3,), ladder=LADDER[:3], seeds=1), Law(noise_sd=0.003))
    assert stated.status == "fitted"
    assert {o.place for o in one.optima} == {"not_identifiable"}


def means(losses, sd=0.001, df=20.0):
    sizes = np.geomspace(1e5, 1e6, len(losses))
    return Means(sizes, np.array(losses), sd**2 * np.eye(len(losses)), df)


@pytest.mark.parametrize(
    ("losses", "shape"),
    [
        ([4.10, 4.05, 4.02, 4.06], "interior"),
        ([4.10, 4.05, 4.02, 4.00], "monotone"),
        ([4.00, 4.03, 4.08, 4.13], "monotone"),
        ([4.10, 4.05, 4.021, 4.02], "saturating"),
        ([4.020, 4.021, 4.019, 4.022], "flat"),
        ([4.10, 4.05], "not_identifiable"),
    ],
)
def test_shapes(losses, shape):
    assert judge(means(losses), 0.95, 0.005)[0] == shape


def test_a_test_blind_to_differences_that_matter_does_not_call_a_curve_flat():
    shape, reason = judge(means([4.10, 4.05, 4.02, 4.06], sd=0.05), 0.95, 0.005)
    assert shape == "not_identifiable"
    assert "differences up to" in reason
    assert "nats would drown in the noise" in reason


def test_reasons_name_the_unit_of_the_metric():
    for curve, sd in (([4.10, 4.05, 4.02, 4.06], 0.001), ([4.10, 4.05, 4.02, 4.06], 0.05)):
        assert " logits " in judge(means(curve, sd), 0.95, 0.005, "logits")[1]
    effect = ArmEffects(
        student="100000",
        tokens=1_000_000,
        init_nats=0.1,
        teacher_nats=0.01,
        noise_nats=0.004,
        fixed_init_shapes={"pruned-x": "monotone"},
        gain_nats=None,
    )
    overall, _ = judged(simulate(), Law(metric="accuracy"), effects=[effect])
    assert "moves the loss by 0.100 logits" in overall.cause_reason
    record = law_record(simulate(), Law(metric="error"))
    assert "nats" not in " ".join(o.shape_reason for o in record.optima)


def test_the_cause_is_the_init_or_the_teacher():
    def effect(start, teacher, shape):
        return ArmEffects(
            student="100000",
            tokens=1_000_000,
            init_nats=start,
            teacher_nats=teacher,
            noise_nats=0.004,
            fixed_init_shapes={"pruned-x": shape},
            gain_nats=None,
        )

    runs = simulate()
    assert judged(runs, effects=[effect(0.1, 0.01, "monotone")])[0].cause == "init"
    assert judged(runs, effects=[effect(0.01, 0.1, "interior")])[0].cause == "teacher"
    assert judged(runs, effects=[effect(0.05, 0.05, "interior")])[0].cause == "both"
    assert judged(runs)[0].cause == "unknown"


def test_effects_of_control_arms_are_spans_of_means():
    rng = np.random.default_rng(0)
    runs = simulate_study(
        rng, [60e3, 100e3, 160e3], np.geomspace(75e3, 1.6e6, 5), budgets=[10**6], noise_sd=0.0005
    )
    record = law_record(runs, QUICK)
    assert len(record.effects) == 3
    effect = record.effects[0]
    alone = runs[(runs["arm"] == "no_teacher") & (runs["student"] == effect.student)]
    observed = alone.groupby("init")["val_loss_nats_per_token"].mean()
    assert effect.init_nats == pytest.approx(observed.max() - observed.min(), rel=1e-9)
    assert effect.noise_nats < effect.init_nats
    assert record.overall.cause in ("init", "both", "unknown")


def test_worth_of_a_teacher_compares_runs_that_share_init_and_order():
    losses = {"a": (3.00, 3.10), "b": (2.90, 2.96)}
    rows = [
        ("main", f"pruned-{name}", name, draw, loss)
        for name, both in losses.items()
        for draw, loss in enumerate(both, 1)
    ]
    rows += [
        ("no_teacher", f"pruned-{name}", "none", 1, loss)
        for name, loss in (("a", 3.02), ("b", 3.05))
    ]
    columns = ["arm", "init", "teacher", "seed", "val_loss_nats_per_token"]
    runs = pd.DataFrame(rows, columns=columns).assign(student="s", tokens=1000)
    runs["init_seed"] = runs["seed"]
    runs["teacher_params_non_embedding"] = runs["teacher"].map({"a": 100, "b": 200})
    runs["student_params_non_embedding"] = 60
    (found,) = effects_of(runs, None, Law())
    assert found.gain_nats == pytest.approx((0.02 + 0.15) / 2)
    assert found.both_ways == ("a", "b")
    # 3.05 + 0.02 for the init of a without a teacher, less 2.93 with b; that of b has 2.93 + 0.15
    assert (found.alone.value, found.alone.low) == (pytest.approx(0.14), None)
    law = SimpleNamespace(component_variances={"order": 1e-4, "teacher": 2e-4}, noise_df=10)
    (found,) = effects_of(runs, law, Law())
    half = 2.2281 * ((2 * 1e-4 + 2e-4) + 2 * (1e-4 + 2e-4) / 2) ** 0.5
    assert found.alone.high - found.alone.value == pytest.approx(half, rel=1e-4)
    # b's init was trained with b alone: whether it would do better without a teacher is not known
    (found,) = effects_of(runs[runs["init"].ne("pruned-b") | runs["arm"].eq("main")], law, Law())
    assert found.both_ways == ("a",)
    assert found.alone.value == pytest.approx(0.02)
    assert found.alone.high - found.alone.value == pytest.approx(2.2281 * 4e-4**0.5, rel=1e-4)


def test_a_table_of_means_and_the_runs_behind_it_tell_the_same_worth():
    rng = np.random.default_rng(0)
    rows = [
        (arm, "pruned-a", teacher, seed, base + rng.normal(0, 0.01))
        for arm, teacher, base in (("main", "a", 3.0), ("no_teacher", "none", 3.1))
        for seed in range(1, 6)
    ]
    columns = ["arm", "init", "teacher", "seed", "val_loss_nats_per_token"]
    runs = pd.DataFrame(rows, columns=columns).assign(student="s", tokens=1000)
    runs["teacher_params_non_embedding"] = runs["teacher"].map({"a": 100})
    runs["student_params_non_embedding"] = 60
    key = [name for name in runs if name not in ("seed", "val_loss_nats_per_token")]
    means = runs.groupby(key, dropna=False, as_index=False)["val_loss_nats_per_token"].mean()
    law = SimpleNamespace(component_variances={"order": 1e-4, "teacher": 2e-4}, noise_df=10)
    (whole,), (mean,) = (
        effects_of(table, law, Law()) for table in (runs, means.assign(n=5, seed=1))
    )
    for one, other in zip(whole.alone, mean.alone, strict=True):
        assert one[1] == pytest.approx(other[1])
    assert mean.noise_nats == pytest.approx(whole.noise_nats)


def test_one_random_init_of_all_teachers_has_one_loss_without_them():
    losses = {"a": (3.00, 3.10), "b": (2.90, 2.96)}
    rows = [
        ("main", "random", name, seed, loss)
        for name, both in losses.items()
        for seed, loss in enumerate(both, 1)
    ]
    rows.append(("no_teacher", "random", "none", 1, 3.02))
    columns = ["arm", "init", "teacher", "seed", "val_loss_nats_per_token"]
    runs = pd.DataFrame(rows, columns=columns).assign(student="s", tokens=1000)
    runs["teacher_params_non_embedding"] = runs["teacher"].map({"a": 100, "b": 200})
    runs["student_params_non_embedding"] = 60
    law = SimpleNamespace(component_variances={"order": 1e-4, "teacher": 2e-4}, noise_df=10)
    (found,) = effects_of(runs, law, Law())
    assert found.alone.value == pytest.approx(3.02 - 2.93)
    half = 2.2281 * (1e-4 + 3e-4 / 2) ** 0.5  # the control, and two runs with b
    assert found.alone.high - found.alone.value == pytest.approx(half, rel=1e-4)


def test_worth_for_its_compute_is_against_a_student_that_saw_more_tokens():
    """S = 100, teachers of 100 and 200: their passes buy 4/3 and 5/3 of the tokens (6 S + 2 T)."""
    alone = {1000: 3.0, 2000: 2.8, 4000: 2.7}
    taught = {1000: (2.90, 2.95), 2000: (2.72, 2.66), 4000: (2.65, 2.60)}
    rows = [
        ("no_teacher", f"pruned-{name}", "none", tokens, loss + more)
        for tokens, loss in alone.items()
        for name, more in (("a", 0.0), ("b", 0.05))
    ]
    for tokens, losses in taught.items():
        rows += [
            ("main", f"pruned-{name}", name, tokens, loss)
            for name, loss in zip("ab", losses, strict=True)
        ]
    columns = ["arm", "init", "teacher", "tokens", "val_loss_nats_per_token"]
    runs = pd.DataFrame(rows, columns=columns).assign(student="s", seed=1, init_seed=1)
    runs["student_params_non_embedding"] = 100
    runs["teacher_params_non_embedding"] = runs["teacher"].map({"a": 100, "b": 200})
    small, middle, large = effects_of(runs, None, Law())
    assert small.at_equal_compute.teacher == "a"
    assert small.at_equal_compute.tokens_alone == pytest.approx(4000 / 3)
    expected = 3.0 - 0.2 * np.log2(4 / 3) - 2.90
    assert small.at_equal_compute.gain.value == pytest.approx(expected)
    assert middle.at_equal_compute.teacher == "b"
    expected = 2.8 - 0.1 * np.log2(5 / 3) - 2.66
    assert middle.at_equal_compute.gain.value == pytest.approx(expected)
    assert middle.at_equal_compute.gain.low is None  # the noise is not known
    assert large.at_equal_compute is None  # no budget lies beyond 4000 tokens
    law = SimpleNamespace(component_variances={"order": 1e-4, "teacher": 2e-4}, noise_df=10)
    small = effects_of(runs, law, Law())[0]
    half = 2.2281 * (2 * (1e-4 + 2e-4)) ** 0.5
    gain = small.at_equal_compute.gain
    assert gain.high - gain.value == pytest.approx(half, rel=1e-4)
    # a teacher smaller than the best one has no control, so it may be worth more
    more = pd.concat([runs, runs[runs["teacher"] == "a"].assign(teacher="c", init="pruned-c")])
    more.loc[more["teacher"] == "c", "teacher_params_non_embedding"] = 50
    assert [
        e.at_equal_compute and e.at_equal_compute.teacher for e in effects_of(more, None, Law())
    ] == [
        None,
        "b",
        None,
    ]
    # the best teacher within reach is the last one within reach: a larger one may be worth more
    runs.loc[
        (runs["tokens"] == 2000) & (runs["teacher"] == "b"), "teacher_params_non_embedding"
    ] = 400
    assert effects_of(runs, None, Law())[1].at_equal_compute is None


def test_order_of_rows_does_not_matter():
    runs = simulate()
    mixed = runs.sample(frac=1, random_state=1)
    assert law_record(pd.DataFrame(mixed), QUICK).to_json() == law_record(runs, QUICK).to_json()
