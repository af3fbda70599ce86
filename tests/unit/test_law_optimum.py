import numpy as np
import pytest
from law_worlds import LADDER, QUICK, noise_free, simulate

from capgap.config import Law
from capgap.law.optimum import limits, minimum
from capgap.law.regression import law_record


@pytest.mark.parametrize("cells", [3, 4, 5, 7])
@pytest.mark.parametrize("best", [10.4, 10.93, 11.2])
def test_minimum_of_a_parabola_is_exact(cells, best):
    x = 11 + 0.6 * (np.arange(cells) - (cells - 1) / 2) + 0.05 * np.cos(np.arange(cells))
    if not x[0] + 0.35 < best < x[-1] - 0.35:
        best = 11.1
    loss = 4 + 0.2 * (x - best) ** 2
    assert minimum(x, loss[None])[0] == pytest.approx(best, abs=1e-9)


@pytest.mark.parametrize(("cells", "power"), [(4, 3), (5, 4)])
def test_minimum_of_a_skewed_curve_is_exact_up_to_the_order_of_its_cells(cells, power):
    x = np.arange(cells) - 1.8
    loss = 0.2 * x**2 + 0.03 * x**3 + (0.004 * x**4 if power == 4 else 0)
    assert minimum(x, loss[None])[0] == pytest.approx(0, abs=1e-9)


def test_minimum_is_less_biased_than_the_parabola_through_three_cells():
    x = np.arange(5) * 0.7 - 1.5
    loss = np.expm1(x) - x  # its lowest point is at 0
    three = minimum(x[1:4], loss[None, 1:4])[0]
    assert abs(minimum(x, loss[None])[0]) < abs(three) / 5


def test_minimum_at_an_edge_is_unbounded_and_each_row_is_judged_alone():
    x = np.arange(4.0)
    rows = np.array([[1, 2, 3, 4], [4, 3, 2, 1], [3, 1, 3, 9.0], [5, 5, 5, 5]])
    found = minimum(x, rows)
    assert found[0] == -np.inf
    assert found[1] == np.inf
    assert 0.5 < found[2] < 1.5
    assert found[3] == -np.inf  # equal losses count for the smallest


def test_minimum_never_leaves_the_neighbours_of_the_best_cell():
    x = np.cumsum([0, 0.2, 1.1, 0.1, 0.9, 0.3, 0.6])
    rows = np.random.default_rng(0).normal(size=(500, 7))
    found, best = minimum(x, rows), rows.argmin(axis=1)
    inner = (best > 0) & (best < 6)
    assert inner.sum() > 200
    assert (found[inner] >= x[best[inner] - 1]).all()
    assert (found[inner] <= x[best[inner] + 1]).all()


def test_limits_are_percentiles_and_keep_infinities():
    values = np.arange(200.0)
    assert limits(values, values, 0.95) == (5, 194)
    high = np.where(values < 5, np.inf, values)
    assert limits(values, high, 0.95)[1] == 199
    high = np.where(values < 6, np.inf, values)
    assert limits(values, high, 0.95)[1] == np.inf


def test_optimum_of_a_parabola_is_exact_with_no_noise():
    optimum = law_record(noise_free(students=[100e3], slope=2.9), QUICK).optima[0]
    assert optimum.status == "interior"
    assert optimum.teacher_params.value == pytest.approx(290e3, rel=1e-6)
    assert optimum.ratio.value == pytest.approx(2.9, rel=1e-6)
    assert optimum.best_teacher == "t280000"
    assert optimum.interior_share == 1


@pytest.mark.parametrize(
    ("slope", "status", "words"),
    [
        (
            0.5,
            "upper_bound",
            "smallest teacher, t80000, is the best of 5: the optimum lies below 150k",
        ),
        (
            30,
            "lower_bound",
            "largest teacher, t990000, is the best of 5: the optimum lies above 530k",
        ),
    ],
)
def test_an_optimum_at_the_edge_is_a_bound(slope, status, words):
    optimum = law_record(simulate(slope=slope, students=[100e3]), QUICK).optima[0]
    assert optimum.status == status
    assert words in optimum.reason
    assert optimum.teacher_params is None
    assert optimum.ratio is None
    assert optimum.interior_share == 0


def test_two_teachers_do_not_identify_an_optimum():
    record = law_record(simulate(ladder=LADDER[:2]), QUICK)
    assert {o.status for o in record.optima} == {"not_identifiable"}
    assert "2 teacher size(s) (t80000 and t150000)" in record.optima[0].reason
    assert record.optima[0].best_teacher in {"t80000", "t150000"}
    assert record.lines[0].status == "not_identifiable"
    assert "not identifiable" in record.verdict


def test_one_seed_gives_an_optimum_without_an_interval():
    record = law_record(simulate(seeds=1), QUICK)
    for optimum in record.optima:
        assert optimum.status == "interior"
        assert optimum.teacher_params.low is None
        assert optimum.teacher_params.high is None
        assert optimum.interior_share is None
        assert "One seed a cell" in optimum.reason
        assert optimum.cells[0].loss_low is None
    line = record.lines[0]
    assert record.seed_sd_nats is None
    assert line.slope_resampled is None
    assert line.slope.low < line.slope.value < line.slope.high
    assert "scatter about the line alone" in line.reason


def test_resamples_that_leave_the_grid_open_the_interval_on_that_side():
    # the curve is so flat that the largest teacher often wins by noise alone
    runs = simulate(1, students=[100e3], ladder=LADDER[:4], curvature=0.02, slope=3.4)
    optimum = law_record(runs, Law()).optima[0]
    assert optimum.status == "interior"
    assert optimum.interior_share < 0.95
    assert optimum.teacher_params.high is None
    assert "the interval is open there" in optimum.reason


def test_ties_and_regret_are_measured_from_the_best():
    optimum = law_record(noise_free(students=[100e3], slope=2.8), QUICK).optima[0]
    regret = {c.teacher: c.regret_nats for c in optimum.cells}
    assert regret["t280000"] == 0
    assert regret["t530000"] == pytest.approx(0.125 * np.log(530 / 280) ** 2)
    assert optimum.within_tie == ["t280000"]
    assert law_record(
        noise_free(students=[100e3], slope=2.8), Law(resamples=100, tie_nats=0.06)
    ).optima[0].within_tie == ["t150000", "t280000", "t530000"]


def test_a_second_dip_is_mentioned():
    runs = noise_free(students=[100e3])
    runs.loc[runs.teacher == "t990000", "val_loss_nats_per_token"] -= 0.2
    assert "dips by" in law_record(runs, QUICK).optima[0].reason
    assert "dips by" not in law_record(noise_free(students=[100e3]), QUICK).optima[0].reason
