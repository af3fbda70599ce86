"""
The law itself: T* = intercept + slope S over the optima of one token budget.

Fitted by least squares over the optima inside the grid (arXiv 2311.07052 fits the same line), and
with those at an edge as bounds where there are any (censored.py). Two things make its slope
uncertain, and each has its own interval:

  runs      every resample of the runs moves every T* and with it the line. Right if the optima lie
            exactly on a line.
  scatter   the t interval of the regression, from the distances of the optima to the line. Right
            if optima scatter about it independently, of a law that is only roughly linear too, but
            it knows the size of the scatter from these few distances alone.

The interval that is reported is the hull of both; docs/method.md says why neither can stand alone
with few students, and benchmarks/coverage.py measures all three. The interval over runs is kept
beside it: it is the one to quote by a reader who takes the law to be exactly linear.

The slope, the intercept, the ratio through the origin and the prediction at a student size are all
weighted sums of the coefficients and, without bounds, of the optima, so that one function bounds
them over resamples, also where a resample says only that T* lies beyond the grid.

Shapes: I interior optima, C bounds, R resamples.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import stats

from capgap.config import Law
from capgap.law.censored import Bounds, CensoredFit, fit_censored
from capgap.law.optimum import Located, limits, size_interval
from capgap.law.words import listed
from capgap.records import BandPoint, Interval, Line

BAND_POINTS = 25
LEAST = 3  # optima; a line through two has no scatter to judge it by


@dataclass(frozen=True)
class Edges:
    """Students whose optimum is only bounded: above `limit_C` where `above_C`, else below it."""

    student_C: np.ndarray
    limit_C: np.ndarray
    above_C: np.ndarray


NO_EDGES = Edges(np.zeros(0), np.zeros(0), np.zeros(0, dtype=bool))


@dataclass(frozen=True)
class FittedLine:
    """A line over optima, in units of the mean student size."""

    unit: float  # parameters
    student_I: np.ndarray  # in units
    star_I: np.ndarray
    low_RI: np.ndarray | None  # resamples, None with one seed a cell
    high_RI: np.ndarray | None
    confidence: float
    edges: Edges = NO_EDGES

    def over_runs(self, weight_I: np.ndarray) -> tuple[float, float] | None:
        """Limits of a weighted sum of the optima over resamples, None with one seed a cell."""
        if self.low_RI is None:
            return None
        zero = 1e-9 * np.abs(weight_I).max()  # rounding must not weigh an infinite bound
        up_I, down_I = weight_I > zero, weight_I < -zero
        low_R = self.low_RI[:, up_I] @ weight_I[up_I] + self.high_RI[:, down_I] @ weight_I[down_I]
        high_R = self.high_RI[:, up_I] @ weight_I[up_I] + self.low_RI[:, down_I] @ weight_I[down_I]
        return limits(low_R, high_R, self.confidence)

    @cached_property
    def line(self) -> CensoredFit:
        """The regression of T* on 1 and S."""
        return self._fit(_with_constant(self.student_I), _with_constant(self.edges.student_C))

    @cached_property
    def proportion(self) -> CensoredFit:
        """The regression of T* on S alone: a line through the origin."""
        return self._fit(self.student_I[:, None], self.edges.student_C[:, None])

    def _fit(self, design_IP: np.ndarray, design_CP: np.ndarray) -> CensoredFit:
        bounds = Bounds(design_CP, self.edges.limit_C, self.edges.above_C)
        return fit_censored(design_IP, self.star_I, bounds)

    def estimate(self, fit: CensoredFit, weight_P: list[float]) -> tuple[float, float, float]:
        """A weighted sum of coefficients with its reported interval."""
        value = float(fit.coefficient_P @ weight_P)
        return value, *hull(
            fit.interval(np.array(weight_P), self.confidence), self._over_runs(fit, weight_P)
        )

    def _over_runs(self, fit: CensoredFit, weight_P: list[float]) -> tuple[float, float] | None:
        """Limits of the same sum over resamples of the optima inside the grid."""
        return self.over_runs(weight_P @ np.linalg.pinv(fit.design_IP))

    def band(self) -> list[BandPoint]:
        """The line and its interval from 1/1.5 of the smallest student to 1.5 of the largest."""
        known = np.concatenate([self.student_I, self.edges.student_C])
        points = []
        for at in np.geomspace(known.min() / 1.5, known.max() * 1.5, BAND_POINTS):
            value, low, high = (
                self.unit * number for number in self.estimate(self.line, [1.0, float(at)])
            )
            points.append(
                BandPoint(
                    student_params_non_embedding=float(at * self.unit),
                    teacher_params=size_interval(value, low, high),
                )
            )
        return points

    def predict(self, student_params: float) -> Interval:
        """T* of a student size, with the interval of one more optimum there (hull as above)."""
        row = [1.0, student_params / self.unit]
        value = float(self.line.coefficient_P @ row)
        low, high = self.line.interval(np.array(row), self.confidence)
        own = stats.t.ppf((1 + self.confidence) / 2, self.line.df) * self.line.unbiased_sd
        low, high = value - np.hypot(value - low, own), value + np.hypot(high - value, own)
        low, high = hull((low, high), self._over_runs(self.line, row))
        return size_interval(value * self.unit, low * self.unit, high * self.unit)

    def coefficients(self) -> dict[str, Interval]:
        """Slope, intercept (parameters), ratio through the origin, and the slope over runs alone."""
        slope, *slope_ends = self.estimate(self.line, [0.0, 1.0])
        intercept, *ends = self.estimate(self.line, [1.0, 0.0])
        ratio, *ratio_ends = self.estimate(self.proportion, [1.0])
        runs = self._over_runs(self.line, [0.0, 1.0])
        inside = float(np.linalg.pinv(self.line.design_IP)[1] @ self.star_I)
        return {
            "slope": _interval(slope, slope_ends),
            "intercept": _interval(intercept * self.unit, np.multiply(ends, self.unit)),
            "ratio_through_origin": _interval(ratio, ratio_ends),
            "slope_resampled": None if runs is None else _interval(inside, runs),
        }


def _with_constant(student: np.ndarray) -> np.ndarray:
    return np.column_stack([np.ones(len(student)), student])


def hull(scatter: tuple[float, float], runs: tuple[float, float] | None) -> tuple[float, float]:
    """The smallest interval that contains both."""
    both = [scatter] if runs is None else [scatter, runs]
    return min(low for low, _ in both), max(high for _, high in both)


def _interval(value: float, bounds: tuple[float, float]) -> Interval:
    low, high = (float(bound) if np.isfinite(bound) else None for bound in bounds)
    return Interval(value=float(value), low=low, high=high)


def edges_of(located: list[Located], unit: float) -> Edges:
    """The optima of one budget that are only bounded, in units."""
    found = []
    for place in located:
        if place.status in ("lower_bound", "upper_bound"):
            sizes, above = place.cells.by_size()[0], place.status == "lower_bound"
            found.append((place.cells.student_params, sizes[-2] if above else sizes[1], above))
    if not found:
        return NO_EDGES
    student_C, limit_C, above_C = zip(*found, strict=True)
    return Edges(np.array(student_C) / unit, np.array(limit_C) / unit, np.array(above_C))


def fit_line(located: list[Located], confidence: float) -> FittedLine | None:
    """The line through the optima of one budget; None with fewer than three sizes inside the grid."""
    inside = [place for place in located if place.status == "interior"]
    student_I = np.array([place.cells.student_params for place in inside])
    if len(np.unique(student_I)) < LEAST:
        return None
    unit = float(student_I.mean())
    star_I = np.array([place.star for place in inside])
    low_RI = high_RI = None
    if inside[0].low_R is not None:
        low_RI = np.stack([place.low_R for place in inside], axis=1) / unit
        high_RI = np.stack([place.high_R for place in inside], axis=1) / unit
    edges = edges_of(located, unit)
    return FittedLine(unit, student_I / unit, star_I / unit, low_RI, high_RI, confidence, edges)


def describe_line(located: list[Located], fitted: FittedLine | None, settings: Law) -> Line:
    """The record of the line of one budget."""
    inside = [place for place in located if place.status == "interior"]
    common = {
        "tokens": located[0].cells.tokens,
        "n_students": len(inside),
        "n_bounds": len(located) - len(inside) - len(_unseen(located)),
        "published_slope": settings.published_slope,
    }
    if fitted is None:
        return Line(
            status="not_identifiable",
            reason=(
                f"students with an optimum inside the teacher grid: {len(inside)} of "
                f"{len(located)}, and a line needs {LEAST} of different sizes{_others(located)}"
            ),
            slope=None,
            intercept=None,
            ratio_through_origin=None,
            slope_resampled=None,
            r_squared=None,
            published_slope_inside=None,
            **common,
        )
    coefficients = fitted.coefficients()
    slope = coefficients["slope"]
    low = -np.inf if slope.low is None else slope.low
    high = np.inf if slope.high is None else slope.high
    how = "least squares" if common["n_bounds"] == 0 else "censored regression"
    reason = f"{how} over {len(inside)} interior optima{_others(located)}"
    assumed = [p.cells.student for p in inside if len(np.unique(p.cells.teacher_params_K)) == 3]
    if assumed:
        reason += f"; the curve of {listed(assumed)} is a parabola through three sizes, unchecked"
    if fitted.low_RI is None:
        reason += "; one seed a cell: the intervals rest on the scatter about the line alone"
    return Line(
        status="fitted",
        reason=reason,
        r_squared=_r_squared(fitted),
        published_slope_inside=bool(low <= settings.published_slope <= high),
        band=fitted.band(),
        **coefficients,
        **common,
    )


def _r_squared(fitted: FittedLine) -> float | None:
    """Share of the variance of the optima inside the grid that a line explains; None without any."""
    if np.ptp(fitted.star_I) == 0:
        return None
    return float(np.corrcoef(fitted.student_I, fitted.star_I)[0, 1] ** 2)


def _unseen(located: list[Located]) -> list[Located]:
    return [place for place in located if place.status == "not_identifiable"]


def _others(located: list[Located]) -> str:
    """Which students have no optimum inside the grid, and what becomes of them."""
    words = {
        "upper_bound": "best with the smallest teacher and only a bound",
        "lower_bound": "best with the largest teacher and only a bound",
        "not_identifiable": "left out with fewer than three teacher sizes",
    }
    parts = []
    for status, word in words.items():
        names = [place.cells.student for place in located if place.status == status]
        if names:
            parts.append(f"{listed(names)} {word}")
    return f"; {', '.join(parts)}" if parts else ""
