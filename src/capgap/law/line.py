"""
The law itself: T* = intercept + slope S over the optima of one token budget.

Fitted by weighted least squares over the optima inside the grid, and with those at an edge as
bounds where there are any (censored.py). The error of T* grows with T*, and one student's curve may
be flatter than another's, so each optimum i has the weight

  1 / (v_i + tau^2 S_i^2)

v_i the variance of T*_i over resamples of the runs and tau the relative scatter of the optima about
the line, by the rule of Mandel and Paule: the smallest tau >= 0 at which the weighted squares of the
distances are no larger than their degrees of freedom. With one seed a cell v_i is unknown, and the
weights are 1 / S_i^2.

The interval that is reported is the t interval of this regression, from the distances of the
optima to the line. They hold the noise of the runs and any scatter alike, so that it is right
whether the law is exactly linear or only roughly (the interval of Knapp and Hartung for a
regression over estimates with errors). A second one is kept beside it:

  runs  every resample of the runs moves every T* and with it the line. Right only if the optima lie
        exactly on a line, and then much narrower with few students.

The hull of both would cover more than its level. But with three students the distances are by luck
so small in one study of six that the t interval is the narrower one: what decides something
(claims.py, the T* of another student) asks both. benchmarks/coverage.py measures all of this.

The slope, the intercept, the ratio through the origin and the prediction at a student size are all
weighted sums of the coefficients and, without bounds, of the optima, so that one function bounds
them over resamples, also where a resample says only that T* lies beyond the grid.

Shapes: I interior optima, C bounds, R resamples.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import optimize, stats

from capgap.config import Law
from capgap.law.censored import Bounds, CensoredFit, fit_censored
from capgap.law.optimum import Located, limits, size_interval
from capgap.law.records import BandPoint, Interval, Line
from capgap.law.words import listed

BAND_POINTS = 25
LEAST = 3  # optima; a line through two has no scatter to judge it by
LEAST_SCATTER = 1e-6  # of T*/S; keeps the weights of optima without noise finite


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
    relative: bool = True  # the scatter of an optimum is in proportion to S; else alike for all

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
    def noise_I(self) -> np.ndarray:
        """Standard deviation of each optimum over resamples, in multiples of its `_scale`.

        Half of the central 68 % of log T*, so that an optimum that came out small does not weigh
        more for it. A resample that says only that T* lies beyond the grid counts with that bound.
        0 with one seed a cell.
        """
        if self.low_RI is None:
            return np.zeros(len(self.star_I))
        known_RI = np.where(np.isfinite(self.high_RI), self.high_RI, self.low_RI)
        if self.relative:
            known_RI = np.log(known_RI)
        low_I, high_I = np.quantile(known_RI, stats.norm.cdf([-1, 1]), axis=0)
        ratio = np.exp(np.mean(np.log(self.star_I / self.student_I))) if self.relative else 1.0
        return ratio * (high_I - low_I) / 2

    @cached_property
    def scatter(self) -> float:
        """Standard deviation of the optima about the line beyond noise (Mandel and Paule 1970)."""
        design_IP = _with_constant(self.student_I)
        scale_I = self._scale(self.student_I)

        def excess(scatter: float) -> float:
            sd_I = scale_I * np.hypot(self.noise_I, scatter)
            weighted_IP, star_I = design_IP / sd_I[:, None], self.star_I / sd_I
            distance_I = star_I - weighted_IP @ (np.linalg.pinv(weighted_IP) @ star_I)
            return float(distance_I @ distance_I) - (len(star_I) - design_IP.shape[1])

        if excess(LEAST_SCATTER) <= 0:
            return LEAST_SCATTER
        flat_I = self.star_I - design_IP @ (np.linalg.pinv(design_IP) @ self.star_I)
        most = float(np.linalg.norm(flat_I / scale_I)) + LEAST_SCATTER
        return float(optimize.brentq(excess, LEAST_SCATTER, most, xtol=LEAST_SCATTER))

    def _scale(self, student: np.ndarray) -> np.ndarray:
        return student if self.relative else np.ones_like(student)

    def _sd(self, student: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """Standard deviations of optima about the line, as the weights take them."""
        return self._scale(student) * np.hypot(noise, self.scatter)

    @cached_property
    def line(self) -> CensoredFit:
        """The regression of T* on 1 and S."""
        return self._fit(_with_constant(self.student_I), _with_constant(self.edges.student_C))

    @cached_property
    def proportion(self) -> CensoredFit:
        """The regression of T* on S alone: a line through the origin."""
        return self._fit(self.student_I[:, None], self.edges.student_C[:, None])

    def _fit(self, design_IP: np.ndarray, design_CP: np.ndarray) -> CensoredFit:
        """Rows in units of their standard deviations, so that all weigh alike."""
        sd_I = self._sd(self.student_I, self.noise_I)
        sd_C = self._sd(self.edges.student_C, np.median(self.noise_I))
        bounds = Bounds(design_CP / sd_C[:, None], self.edges.limit_C / sd_C, self.edges.above_C)
        return fit_censored(design_IP / sd_I[:, None], self.star_I / sd_I, bounds)

    def estimate(self, fit: CensoredFit, weight_P: list[float]) -> tuple[float, float, float]:
        """A weighted sum of coefficients with its t interval."""
        value = float(fit.coefficient_P @ weight_P)
        return value, *fit.interval(np.array(weight_P), self.confidence)

    def resampled(self, fit: CensoredFit, weight_P: list[float]) -> Interval | None:
        """The same sum over the optima inside the grid, with its limits over resamples."""
        weight_I = self._weights(fit, weight_P)
        ends = self.over_runs(weight_I)
        return None if ends is None else _interval(float(weight_I @ self.star_I), ends)

    def _weights(self, fit: CensoredFit, weight_P: list[float]) -> np.ndarray:
        return weight_P @ np.linalg.pinv(fit.design_IP) / self._sd(self.student_I, self.noise_I)

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
        """T* of a student size, with the interval of one more optimum there.

        A decision rests on it: it is never narrower than the noise of the runs, as the hull of the
        prediction interval of the regression and that over runs.
        """
        at = student_params / self.unit
        row = [1.0, at]
        value, low, high = self.estimate(self.line, row)
        t = stats.t.ppf((1 + self.confidence) / 2, self.line.df)
        own = t * self.line.unbiased_sd * float(self._sd(np.array(at), np.median(self.noise_I)))
        scatter = value - np.hypot(value - low, own), value + np.hypot(high - value, own)
        low, high = hull(scatter, self.over_runs(self._weights(self.line, row)))
        return size_interval(value * self.unit, low * self.unit, high * self.unit)

    def coefficients(self) -> dict[str, Interval]:
        """Slope, intercept (parameters), ratio through the origin, and the slope over runs alone."""
        slope, *slope_ends = self.estimate(self.line, [0.0, 1.0])
        intercept, *ends = self.estimate(self.line, [1.0, 0.0])
        ratio, *ratio_ends = self.estimate(self.proportion, [1.0])
        return {
            "slope": _interval(slope, slope_ends),
            "intercept": _interval(intercept * self.unit, np.multiply(ends, self.unit)),
            "ratio_through_origin": _interval(ratio, ratio_ends),
            "slope_resampled": self.resampled(self.line, [0.0, 1.0]),
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
    how = "weighted least squares" if common["n_bounds"] == 0 else "censored regression"
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
