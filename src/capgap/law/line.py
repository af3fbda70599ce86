"""
The law itself: T* = intercept + slope S over the interior optima of one token budget.

Fitted by ordinary least squares (arXiv 2311.07052 fits the same line). Two things make its slope
uncertain, and each has its own interval:

  runs      every resample of the runs moves every T* and with it the line. Right if the optima lie
            exactly on a line.
  scatter   the t interval of the regression, from the distances of the optima to the line. It
            holds whatever moves the optima independently, a law that is only roughly linear too.
            With three students it rests on one degree of freedom and is wide (t = 12.7 at 95 %).

The interval that is reported is the hull of both. With few students neither can replace the other:
runs are blind to a law that is not exact (with optima that scatter by 5 % about the line, the
interval over runs covered the slope in 58 % of simulated studies), and one distance to a line can
be small by luck. The price is that the hull covers more often than its level where the law is
exact; the interval over runs alone is kept beside it. benchmarks/coverage.py measures both.

The slope, the intercept, the ratio through the origin and the prediction at a student size are all
weighted sums of the optima, so one function bounds them over resamples, also where a resample says
only that T* lies beyond the grid.

Shapes: I interior optima, R resamples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import statsmodels.api as sm

from capgap.config import Law
from capgap.law.optimum import Located, limits, size_interval
from capgap.law.words import listed
from capgap.records import Interval, Line

LEAST = 3  # optima; a line through two has no scatter to judge it by


@dataclass(frozen=True)
class FittedLine:
    """A line over interior optima, in units of the mean student size."""

    unit: float  # parameters
    student_I: np.ndarray  # in units
    star_I: np.ndarray
    low_RI: np.ndarray | None  # resamples, None with one seed a cell
    high_RI: np.ndarray | None
    confidence: float

    def over_runs(self, weight_I: np.ndarray) -> tuple[float, float] | None:
        """Limits of a weighted sum of the optima over resamples, None with one seed a cell."""
        if self.low_RI is None:
            return None
        zero = 1e-9 * np.abs(weight_I).max()  # rounding must not weigh an infinite bound
        up_I, down_I = weight_I > zero, weight_I < -zero
        low_R = self.low_RI[:, up_I] @ weight_I[up_I] + self.high_RI[:, down_I] @ weight_I[down_I]
        high_R = self.high_RI[:, up_I] @ weight_I[up_I] + self.low_RI[:, down_I] @ weight_I[down_I]
        return limits(low_R, high_R, self.confidence)

    def predict(self, student_params: float) -> Interval:
        """T* of a student size, with the interval of one more optimum there (hull as above)."""
        at = student_params / self.unit
        row = np.array([[1.0, at]])
        model = self.regression()
        frame = model.get_prediction(row).summary_frame(alpha=1 - self.confidence)
        value, low, high = frame[["mean", "obs_ci_lower", "obs_ci_upper"]].iloc[0]
        low, high = hull((low, high), self.over_runs((row @ self._weights())[0]))
        return size_interval(value * self.unit, low * self.unit, high * self.unit)

    def regression(self):
        """The statsmodels fit of T* on 1 and S."""
        return sm.OLS(self.star_I, sm.add_constant(self.student_I)).fit()

    def proportion(self):
        """The statsmodels fit of T* on S alone: a line through the origin."""
        return sm.OLS(self.star_I, self.student_I).fit()

    def _weights(self) -> np.ndarray:
        """Rows of weights that turn the optima into intercept and slope, (2, I)."""
        return np.linalg.pinv(sm.add_constant(self.student_I))

    def coefficients(self) -> dict[str, Interval]:
        """Slope, intercept (parameters), ratio through the origin, and the slope over runs alone."""
        model, proportion = self.regression(), self.proportion()
        alpha = 1 - self.confidence
        (_, slope), (scatter_intercept, scatter_slope) = model.params, model.conf_int(alpha)
        weight_intercept, weight_slope = self._weights()
        weight_ratio = self.student_I / (self.student_I @ self.student_I)
        runs = self.over_runs(weight_slope)
        return {
            "slope": _interval(slope, hull(scatter_slope, runs)),
            "intercept": _interval(
                model.params[0] * self.unit,
                np.multiply(hull(scatter_intercept, self.over_runs(weight_intercept)), self.unit),
            ),
            "ratio_through_origin": _interval(
                proportion.params[0],
                hull(proportion.conf_int(alpha)[0], self.over_runs(weight_ratio)),
            ),
            "slope_resampled": None if runs is None else _interval(slope, runs),
        }


def hull(scatter: tuple[float, float], runs: tuple[float, float] | None) -> tuple[float, float]:
    """The smallest interval that contains both."""
    both = [scatter] if runs is None else [scatter, runs]
    return min(low for low, _ in both), max(high for _, high in both)


def _interval(value: float, bounds: tuple[float, float]) -> Interval:
    low, high = (float(bound) if np.isfinite(bound) else None for bound in bounds)
    return Interval(value=float(value), low=low, high=high)


def fit_line(located: list[Located], confidence: float) -> FittedLine | None:
    """The line through the interior optima of one budget; None with fewer than three sizes."""
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
    return FittedLine(unit, student_I / unit, star_I / unit, low_RI, high_RI, confidence)


def describe_line(located: list[Located], fitted: FittedLine | None, settings: Law) -> Line:
    """The record of the line of one budget."""
    inside = [place for place in located if place.status == "interior"]
    common = {
        "tokens": located[0].cells.tokens,
        "n_students": len(inside),
        "published_slope": settings.published_slope,
    }
    if fitted is None:
        return Line(
            status="not_identifiable",
            reason=(
                f"students with an optimum inside the teacher grid: {len(inside)} of "
                f"{len(located)}, and a line needs {LEAST} of different sizes{_left_out(located)}"
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
    reason = f"least squares over {len(inside)} interior optima{_left_out(located)}"
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
        **coefficients,
        **common,
    )


def _r_squared(fitted: FittedLine) -> float | None:
    """Share of the variance of T* that the line explains; None where T* does not vary."""
    if np.ptp(fitted.star_I) == 0:
        return None
    return float(fitted.regression().rsquared)


def _left_out(located: list[Located]) -> str:
    """Which students are not in the line, and why."""
    words = {
        "upper_bound": "best with the smallest teacher",
        "lower_bound": "best with the largest teacher",
        "not_identifiable": "with fewer than three teacher sizes",
    }
    parts = []
    for status, word in words.items():
        names = [place.cells.student for place in located if place.status == status]
        if names:
            parts.append(f"{listed(names)} {word}")
    return f"; left out: {', '.join(parts)}" if parts else ""
