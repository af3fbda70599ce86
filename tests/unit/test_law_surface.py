from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from capgap.config import Law
from capgap.law.cells import cells_of, pool
from capgap.law.line import FittedLine
from capgap.law.relation import elasticity, influence, student_for
from capgap.law.simulate import simulate_runs, simulate_study
from capgap.law.study import fit_law, law_record
from capgap.law.surface import bowl, fit_surface, interval_of

STUDENTS = (60e3, 100e3, 160e3)
BUDGETS = (1_000_000, 2_000_000, 4_000_000)
STEPS = np.array([1.3, 2.3, 4.1, 7.4, 13.0])
QUICK = Law(resamples=200)


def grow(rng, power=0.4, budgets=BUDGETS, students=STUDENTS, settled=None, jitter=0.2, **world):
    """Runs whose ratio is 2.5 at 1M tokens and grows as tokens to a power, up to `settled`."""
    frames = []
    for s in students:
        ladder = s * STEPS * np.exp(rng.uniform(-jitter, jitter))
        for d in budgets:
            slope = 2.5 * (min(d, settled or d) / 1e6) ** power
            frames.append(simulate_runs(rng, [s], [ladder], tokens=d, slope=slope, **world))
    return pd.concat(frames)


def surface_of(runs, **kwargs):
    cells = cells_of(runs)
    return fit_surface(
        cells, pool(cells), **{"resamples": 200, "confidence": 0.95, "seed": 0, **kwargs}
    )


def test_a_parabolic_surface_is_recovered_exactly():
    runs = grow(np.random.default_rng(0), noise_sd=0, seed_sd=0, jitter=0)
    surface = surface_of(runs)
    assert surface.status == "fitted"
    assert surface.terms == ("u", "bend", "u_s", "u_d")
    for d in BUDGETS:
        ratio = surface.ratio(100e3, d, 0.95)
        assert ratio.value == pytest.approx(2.5 * (d / 1e6) ** 0.4, rel=1e-4)
    moves = surface.elasticities(0.95)
    assert moves["size"].value == pytest.approx(1, abs=1e-4)
    assert moves["tokens"].value == pytest.approx(0.4, abs=1e-4)
    assert moves["size_at_fixed_tokens_per_param"].value == pytest.approx(1.4, abs=1e-4)
    # curvature of the simulation is 0.25 nats per squared unit of log T
    bend_R, k_R = surface.at_optimum(100e3, 2e6)
    assert bend_R == pytest.approx(0.25, abs=1e-3)
    assert not k_R.any()


def test_a_skewed_surface_is_hardly_biased():
    runs = grow(np.random.default_rng(0), skew=0.5, noise_sd=1e-5, seed_sd=0)
    surface = surface_of(runs)
    assert "k" in surface.terms
    assert surface.ratio(100e3, 2e6, 0.95).value == pytest.approx(2.5 * 2**0.4, rel=0.01)
    assert surface.elasticities(0.95)["tokens"].value == pytest.approx(0.4, abs=0.02)


def test_a_curve_that_bends_ever_less_is_followed_at_every_budget():
    """Damage by pruning against a teacher's help of 1 - S/T: T*/S = 2.5 (D / 1M)^0.4 exactly."""
    rng = np.random.default_rng(0)
    world = {"damage": 0.16, "help_nats": 0.4, "decay": 0.4, "budgets": BUDGETS, "arms": ()}
    ladders = [s * STEPS for s in STUDENTS]
    runs = pd.concat(
        simulate_study(rng, [s], ladder, noise_sd=1e-5, **world)
        for s, ladder in zip(STUDENTS, ladders, strict=True)
    )
    surface = surface_of(runs)
    k = surface.term_P[surface.terms.index("k")]
    assert k == pytest.approx(-1, abs=0.05)
    for d in BUDGETS:
        assert surface.ratio(100e3, d, 0.95).value == pytest.approx(
            2.5 * (d / 1e6) ** 0.4, rel=0.003
        )
    assert surface.elasticities(0.95)["tokens"].value == pytest.approx(0.4, abs=0.003)
    # the second derivative of 0.4 S / T by log T is 0.4 / ratio at T*
    bend_R, _ = surface.at_optimum(100e3, 1e6)
    assert np.median(bend_R) == pytest.approx(0.16, rel=0.02)


def test_a_curve_beyond_the_form_says_so():
    runs = grow(np.random.default_rng(0), power=0, skew=5, noise_sd=1e-5, seed_sd=0)
    assert "(k at its limit of 3)" in surface_of(runs).reason
    assert "limit" not in surface_of(grow(np.random.default_rng(0), skew=0.5)).reason


def test_a_way_that_ends_where_there_is_no_minimum_is_left_out():
    surface = surface_of(grow(np.random.default_rng(0)))
    terms = {"u": 0.0, "bend": 1.0, "u_s": 0.1, "u_d": 0.1, "bend_d": 2.0}  # 1 - 2 log 2 < 0
    row = np.array(list(terms.values()))
    bent = replace(surface, terms=tuple(terms), term_P=row, term_RP=np.tile(row, (50, 1)))
    assert np.isfinite(bent.log_ratio(100e3, 2e6)[0])
    assert not np.isfinite(bent.log_ratio(100e3, 1e6)[0])
    assert surface.elasticities(0.95).keys() - bent.elasticities(0.95).keys() == {"tokens"}
    assert np.isnan(bent.at_optimum(100e3, 1e6)[0]).all()


def test_the_bowl_by_hand():
    # (e^2 - 2 - 1) / 4 at u = 1, k = 2; its series near k = 0; u^2 / 2 at 0
    assert bowl(1.0, 2.0) == pytest.approx((np.exp(2) - 3) / 4)
    assert bowl(np.array([-1.5, 2.0]), 0.0) == pytest.approx([1.125, 2.0])
    u = np.array([-2.0, -0.3, 0.0, 1.7])
    assert bowl(u, 0.99e-3) == pytest.approx(bowl(u, 1.01e-3), abs=1e-4)
    assert bowl(u, np.array([[-1.0], [1.0]])).shape == (2, 4)


def test_surface_intervals_cover_the_truth():
    """60 studies; at 95 % three intervals miss 2 to 17 of 180 in 98 % of repetitions."""
    rng = np.random.default_rng(4)
    inside = []
    for _ in range(60):
        surface = surface_of(grow(rng))
        moves = surface.elasticities(0.95)
        for interval, truth in (
            (surface.ratio(100e3, 2e6, 0.95), 2.5 * 2**0.4),
            (moves["tokens"], 0.4),
            (moves["size"], 1.0),
        ):
            inside.append(interval.low <= truth <= interval.high)
    assert 0.90 <= np.mean(inside) <= 0.99


def test_one_budget_or_one_student_leaves_its_term_out():
    rng = np.random.default_rng(0)
    one_budget = surface_of(grow(rng, budgets=BUDGETS[:1]))
    assert "u_d" not in one_budget.terms
    assert set(one_budget.elasticities(0.95)) == {"size"}
    one_student = surface_of(grow(rng, students=STUDENTS[:1]))
    assert set(one_student.elasticities(0.95)) == {"tokens"}


def test_flat_runs_have_no_minimum_beyond_doubt():
    assert surface_of(grow(np.random.default_rng(0), curvature=0)).status == "flat"
    monotone = law_record(grow(np.random.default_rng(0), power=0, seeds=2), QUICK)
    assert monotone.surface.status == "fitted"


def test_edge_optima_enter_the_surface():
    rng = np.random.default_rng(0)
    # T* = 0.9 S at the smallest student's ladder: its best teacher is the smallest
    runs = pd.concat(
        simulate_runs(rng, [s], [s * STEPS], slope=slope)
        for s, slope in zip(STUDENTS, (0.9, 2.0, 2.0), strict=True)
    )
    fit = fit_law(runs, QUICK)
    assert fit.located[10**6][0].status == "upper_bound"
    assert ("60000", 10**6) in fit.surface.levels
    without = surface_of(runs[runs["student"] != "60000"])
    assert fit.surface.ratio(60e3, 1e6, 0.95).value < without.ratio(60e3, 1e6, 0.95).value


def test_two_teachers_give_no_surface():
    runs = simulate_runs(np.random.default_rng(0), STUDENTS, [[1e6, 2e6]] * 3)
    assert surface_of(runs) is None
    assert law_record(runs, QUICK).surface is None


def test_one_seed_takes_its_errors_from_the_misfit():
    runs = grow(np.random.default_rng(0), seeds=1)
    surface = surface_of(runs)
    assert surface.error_sd_nats == pytest.approx(0.003, rel=0.4)
    assert surface.ratio(100e3, 2e6, 0.95).low is not None


def test_budgets_that_share_their_errors_widen_the_ratio_but_not_its_growth():
    rng = np.random.default_rng(1)
    base = grow(rng, noise_sd=0, seed_sd=0, jitter=0, curvature=0.25)
    noise = {key: rng.normal(0, 0.01) for key in zip(base["student"], base["teacher"], strict=True)}
    shared = base.copy()
    shared["val_loss_nats_per_token"] += [
        noise[key] for key in zip(base["student"], base["teacher"], strict=True)
    ]
    own = base.copy()
    draws = {
        k: rng.normal(0, 0.01) for k in zip(base.student, base.teacher, base.tokens, strict=True)
    }
    own["val_loss_nats_per_token"] += [
        draws[k] for k in zip(base.student, base.teacher, base.tokens, strict=True)
    ]

    def relative(runs):
        surface = surface_of(runs, resamples=2000)
        tokens, ratio = surface.elasticities(0.95)["tokens"], surface.ratio(1e5, 2e6, 0.95)
        return (tokens.high - tokens.low) / np.log(ratio.high / ratio.low)

    assert relative(shared) < relative(own)


def test_a_resample_without_a_minimum_opens_both_sides():
    drawn = np.linspace(1, 2, 100)
    assert interval_of(1.5, drawn, 0.9).low == pytest.approx(drawn[5])
    drawn[:20] = np.nan
    opened = interval_of(1.5, drawn, 0.9)
    assert (opened.low, opened.high) == (None, None)


# --- the record -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def record():
    return law_record(grow(np.random.default_rng(0)), QUICK)


def test_ratios_go_by_tokens_per_student_parameter(record):
    ratios = record.surface.ratios
    assert len(ratios) == 9
    per_param = [r.tokens_per_param for r in ratios]
    assert per_param == sorted(per_param)
    assert all(r.inside_grid for r in ratios)
    for r in ratios:
        assert r.ratio.low < 2.5 * (r.tokens / 1e6) ** 0.4 * 1.02
        assert r.tie_low < r.ratio.value * r.student_params_non_embedding < r.tie_high
        # 0.125 x^2 = 0.005 at x = 0.2
        assert np.log(r.tie_high / r.tie_low) == pytest.approx(0.4, abs=0.08)
    assert record.surface.tokens_shape == "rising"


@pytest.mark.parametrize(
    ("world", "shape"),
    [
        ({"power": 0}, "constant"),
        ({"power": -0.4}, "falling"),
        (
            {"power": 0.8, "settled": 2_000_000, "budgets": (500_000, 2_000_000, 8_000_000)},
            "saturating",
        ),
    ],
)
def test_how_the_ratio_goes_with_tokens(world, shape):
    found = law_record(grow(np.random.default_rng(2), **world), QUICK)
    assert found.surface.tokens_shape == shape


def test_the_record_holds_all_that_its_formula_needs():
    """T*/S by hand from terms and centres, where no term in brackets is asked for."""
    found = law_record(grow(np.random.default_rng(0), noise_sd=1e-4, seed_sd=0), QUICK).surface
    b = found.terms
    assert set(b) == {"u", "u_s", "u_d", "bend"}
    s, d = np.log(100e3 / found.centre_student_params), np.log(4e6 / found.centre_tokens)
    a = b["u"] + b["u_s"] * s + b["u_d"] * d
    star = found.centre_ratio * np.exp(-a / b["bend"])
    assert star == pytest.approx(2.5 * 4**0.4, rel=1e-3)


# --- lines ----------------------------------------------------------------------------------------


def located(power):
    """Optima at 2.5 S (S / 100k)^(power - 1)."""
    rng = np.random.default_rng(0)
    frames = [
        simulate_runs(rng, [s], [s * STEPS], slope=2.5 * (s / 1e5) ** (power - 1)) for s in STUDENTS
    ]
    return fit_law(pd.concat(frames), QUICK)


def test_elasticity_is_1_in_proportion_and_found_otherwise():
    for power in (1.0, 1.3):
        for found in elasticity(located(power).located[10**6], 0.95):
            assert found.value == pytest.approx(power, abs=0.05)
            assert found.low < power < found.high
    assert elasticity(located(1.0).located[10**6][:2], 0.95) is None


def test_influence_by_hand():
    fit = located(1.0)
    star = {p.cells.student: p.star for p in fit.located[10**6]}
    found = {i.student: i.slope_without for i in influence(fit.located[10**6])}
    assert found["60000"] == pytest.approx((star["160000"] - star["100000"]) / 60e3)
    assert found["100000"] == pytest.approx((star["160000"] - star["60000"]) / 100e3)
    assert influence(fit.located[10**6][:2]) == []


def test_the_inverse_returns_the_student_the_line_came_from():
    rng = np.random.default_rng(0)
    students = np.geomspace(50e3, 200e3, 6)
    star = 2.5 * students + 5e3 + rng.normal(0, 2e3, 6)
    line = FittedLine(1e5, students / 1e5, star / 1e5, None, None, 0.95)
    found = student_for(line, line.predict(120e3).value)
    assert found.value == pytest.approx(120e3)
    assert found.low < 120e3 < found.high
    # at the limits the teacher stands on the edge of the interval of T*
    teacher = line.predict(120e3).value
    assert line.predict(found.low).high == pytest.approx(teacher, rel=1e-3)
    assert line.predict(found.high).low == pytest.approx(teacher, rel=1e-3)


def test_a_falling_line_fits_no_student():
    line = FittedLine(1.0, np.array([1.0, 2.0, 3.0]), np.array([3.0, 2.1, 1.0]), None, None, 0.95)
    assert student_for(line, 2.0) is None
