"""A line through optima of which some are only bounded."""

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import optimize, stats

from capgap.errors import CapgapError
from capgap.law.optima.censored_line import Bounds, fit_censored

STUDENTS = np.array([1.0, 2.0, 3.0, 4.5])
VALUES = np.array([2.4, 5.3, 7.1, 11.6])


def design(students):
    return np.column_stack([np.ones(len(students)), students])


def bounds(students=(), limits=(), above=()):
    students = np.array(students, dtype=float)
    return Bounds(design(students), np.array(limits, dtype=float), np.array(above, dtype=bool))


@pytest.mark.parametrize("none", [bounds(), bounds([6.0], [-1e4], [True])], ids=["no", "idle"])
def test_without_a_bound_that_bites_it_is_least_squares_with_the_t_interval(none):
    """By the closed formula, and by the profile likelihood if the bound is met by far."""
    fit = fit_censored(design(STUDENTS), VALUES, none)
    model = sm.OLS(VALUES, design(STUDENTS)).fit()
    np.testing.assert_allclose(fit.coefficient_P, model.params, rtol=1e-8)
    assert fit.unbiased_sd == pytest.approx(np.sqrt(model.scale), rel=1e-8)
    for weight in ([0.0, 1.0], [1.0, 0.0], [1.0, 2.5]):
        expected = model.get_prediction(np.array([weight])).conf_int(alpha=0.05)[0]
        assert fit.interval(np.array(weight), 0.95) == pytest.approx(tuple(expected), rel=1e-6)


@pytest.mark.parametrize(
    ("limit", "above"), [(9.0, True), (18.0, True), (30.0, True), (14.0, False), (4.0, False)]
)
def test_the_maximum_is_that_of_the_likelihood(limit, above):
    fit = fit_censored(design(STUDENTS), VALUES, bounds([6.0], [limit], [above]))

    def minus(theta):
        a, b, log_sd = theta
        inside = stats.norm.logpdf(VALUES, a + b * STUDENTS, np.exp(log_sd)).sum()
        z = (a + 6 * b - limit) / np.exp(log_sd)
        return -inside - stats.norm.logcdf(z if above else -z)

    start = [*np.polyfit(STUDENTS, VALUES, 1)[::-1], 0.0]
    found = optimize.minimize(
        minus, start, method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-13, "maxiter": 9999}
    )
    np.testing.assert_allclose(fit.coefficient_P, found.x[:2], rtol=1e-4, atol=1e-4)
    assert fit.sd == pytest.approx(np.exp(found.x[2]), rel=1e-3)
    assert fit.log_likelihood == pytest.approx(-found.fun, abs=1e-6)


def test_a_bound_pulls_the_line_only_towards_itself():
    def slope(limit, above):
        return fit_censored(design(STUDENTS), VALUES, bounds([6.0], [limit], [above]))

    free = fit_censored(design(STUDENTS), VALUES, bounds())
    steeper, flatter = slope(25.0, True), slope(8.0, False)
    assert flatter.coefficient_P[1] < free.coefficient_P[1] < steeper.coefficient_P[1]
    low, high = steeper.interval(np.array([0.0, 1.0]), 0.95)
    assert low < steeper.coefficient_P[1] < high
    assert (
        high - steeper.coefficient_P[1] > steeper.coefficient_P[1] - low
    )  # open towards the bound


def test_too_few_values_are_refused():
    with pytest.raises(CapgapError, match="too few"):
        fit_censored(design(STUDENTS[:2]), VALUES[:2], bounds([6.0], [9.0], [True]))


def test_censoring_is_not_biased_where_dropping_is():
    """600 laws with scatter, whose grid ends in the middle of the optima (at 95 %, +-1.8 points)."""
    rng, students, end = np.random.default_rng(3), np.arange(1.0, 9.0), 15.0
    estimates, dropped, covered = [], [], []
    for _ in range(600):
        star = 2.5 * students + rng.normal(0, 1.5, 8)
        inside = star < end
        dropped.append(np.polyfit(students[inside], star[inside], 1)[0])
        edge = bounds(students[~inside], np.full((~inside).sum(), end), np.full((~inside).sum(), 1))
        fit = fit_censored(design(students[inside]), star[inside], edge)
        low, high = fit.interval(np.array([0.0, 1.0]), 0.95)
        estimates.append(fit.coefficient_P[1])
        covered.append(low <= 2.5 <= high)
    assert np.mean(estimates) == pytest.approx(2.5, rel=0.03)
    assert np.mean(dropped) < 0.96 * 2.5
    assert 0.93 <= np.mean(covered) <= 0.985
