"""The curve, its derivatives, and the fit at a known noise."""

import numpy as np
import pytest
from law_simulation import Design, World, power, shared_ladder
from law_simulation import simulate as simulate_world
from law_worlds import noise_free, simulate

from capgap.law.power_law import curve_fit
from capgap.law.power_law.loss_curve import bowl, bowl_by_k
from capgap.law.power_law.power_law import fit_power_law
from capgap.law.table.grouped_runs import group_runs

GRID = np.geomspace(4e3, 300e3, 9)


def test_the_curve_is_the_stated_function():
    x = np.array([-2.0, -0.3, 0.0, 0.4, 3.0])
    for k in (-1.3, 0.7):
        assert bowl(x, np.float64(k)) == pytest.approx((np.exp(k * x) - k * x - 1) / k**2)
    assert bowl(x, np.float64(0)) == pytest.approx(x**2 / 2)
    assert bowl(x, np.float64(-1)).min() == 0
    # series and formula meet: an easy mistake is a jump between them
    assert bowl(np.array([1.0]), np.float64(0.0499)) == pytest.approx(
        bowl(np.array([1.0]), np.float64(0.0501)), rel=1e-3
    )


@pytest.mark.parametrize("k", [-1.2, -1e-4, 0.0, 0.03, 0.9])
def test_the_derivative_by_k_is_the_difference(k):
    x, h = np.array([-1.5, -0.2, 0.6, 2.0]), 1e-5
    difference = (bowl(x, np.float64(k + h)) - bowl(x, np.float64(k - h))) / (2 * h)
    assert bowl_by_k(x, np.float64(k)) == pytest.approx(difference, rel=1e-4, abs=1e-7)


def test_derivatives_of_the_model_are_differences():
    runs = group_runs(simulate())
    curves = curve_fit.Curves(runs, curve_fit.axes_of(runs))
    x = np.array([0.7, 0.1, -1.4, -0.8])
    _, slope = curves.evaluate(x[None])
    for p in range(curves.p):
        step = np.zeros(curves.p)
        step[p] = 1e-6
        up, down = (curves.evaluate((x + sign * step)[None])[0][0] for sign in (1, -1))
        assert slope[0, :, p] == pytest.approx((up - down) / 2e-6, rel=1e-4, abs=1e-6)


def test_the_remover_whitens_and_forgets_levels():
    runs = group_runs(simulate())
    n = len(runs.loss_N)
    half = np.random.default_rng(0).normal(size=(n, n))
    covariance = half @ half.T + np.eye(n)
    remove = curve_fit.remover(runs, covariance)
    groups = runs.group_N.max() + 1
    assert remove.shape == (n - groups, n)
    assert remove @ covariance @ remove.T == pytest.approx(np.eye(n - groups), abs=1e-8)
    assert remove @ (runs.group_N * 3.0 + 1) == pytest.approx(np.zeros(n - groups), abs=1e-8)


@pytest.mark.parametrize(("a", "b"), [(0.3, 0.68), (1.0, 0.0), (0.8, -0.4)])
def test_an_exact_power_law_is_found(a, b):
    """Without noise the exponents and every T* are the truth's, on unequal ladders."""
    students = (6e3, 12e3, 24e3)
    design = Design(
        shared_ladder(students, GRID, 4, 2.0 * np.exp(0.0)),
        dict.fromkeys(students, (100000.0, 300000.0, 900000.0)),
    )
    world = World(power(a, b, 40e3, (12e3, 3e5)), order_sd=1e-6, skew=-1.0)
    law = fit_power_law(group_runs(simulate_world(np.random.default_rng(0), world, design)))
    assert law.exponent(1, 0, 0.95).value == pytest.approx(a, abs=0.005)
    assert law.exponent(0, 1, 0.95).value == pytest.approx(b, abs=0.005)
    assert law.exponent(1, 1, 0.95).value == pytest.approx(a + b, abs=0.01)
    for size in students:
        assert law.star(size, 2e5, 0.95).value == pytest.approx(world.star(size, 2e5), rel=0.01)


def test_what_a_study_does_not_vary_is_not_determined():
    one_budget = fit_power_law(group_runs(simulate()))
    assert one_budget.exponent(1, 0, 0.95) is not None
    assert one_budget.exponent(0, 1, 0.95) is None
    assert one_budget.exponent(1, 1, 0.95) is None
    assert one_budget.star(1e5, 1e6, 0.95) is not None
    assert one_budget.star(1e5, 2e6, 0.95) is None
    one_student = fit_power_law(group_runs(simulate(students=(100e3,))))
    assert one_student.exponent(1, 0, 0.95) is None
    assert one_student.star(100e3, 1e6, 0.95) is not None
    assert one_student.star(200e3, 1e6, 0.95) is None


def test_missing_cells_change_little():
    runs = noise_free(students=(60e3, 80e3, 100e3, 130e3, 160e3))
    whole = fit_power_law(group_runs(runs)).star(100e3, 1e6, 0.95)
    gone = runs.drop(index=runs.index[[0, 7, 13, 22, 31]])
    part = fit_power_law(group_runs(gone)).star(100e3, 1e6, 0.95)
    assert whole.value == pytest.approx(250e3, rel=0.01)
    assert part.value == pytest.approx(250e3, rel=0.02)


def test_two_students_give_an_exponent_with_an_interval():
    law = fit_power_law(group_runs(simulate(students=(60e3, 160e3))))
    growth = law.exponent(1, 0, 0.95)
    assert growth.low < 1 < growth.high
    assert growth.value == pytest.approx(1, abs=0.15)
