"""
The line T* = a + b S over the separate optima of one budget, as a check on the power law.

Weighted least squares over the optima inside their ladders; those at an edge enter as bounds
(`censored_line.py`). Optimum i has the weight 1 / (v_i + tau^2 S_i^2), v_i its variance from noise and tau
the relative scatter about the line: the smallest tau >= 0 at which the weighted squares of the distances
do not exceed their degrees of freedom (Mandel and Paule 1970). The interval is the t interval of this
regression (Knapp and Hartung 2003), never narrower than the noise of the optima alone makes it. Students
whose budgets are in proportion to their size share none: their line is drawn at equal tokens per parameter.

Shapes: I interior optima, C bounds.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import optimize, stats

from capgap.config import Law
from capgap.law.law_record import BandPoint, Interval, Line
from capgap.law.number_text import listed
from capgap.law.optima.censored_line import Bounds, CensoredFit, fit_censored
from capgap.law.optima.single_optima import Located

BAND_POINTS = 25
LEAST = 3  # optima; a line through two of them has no residual scatter
LEAST_SCATTER = 1e-6  # of T*/S; keeps the weights of optima without noise finite
SAME_TOKENS_PER_PARAM = 0.05  # of the log; students are cut to nearly the size that was asked for


@dataclass(frozen=True)
class Level:
    """Groups at one budget, or at one number of tokens per student parameter."""

    tokens: float | None
    tokens_per_param: float | None
    places: list[Located]


def levels_of(located: list[Located]) -> list[Level]:
    """Every budget; if too few students share one, every number of tokens per parameter instead."""
    levels = []
    for tokens in sorted({place.tokens for place in located}):
        levels.append(Level(tokens, None, [p for p in located if p.tokens == tokens]))
    if max(len(level.places) for level in levels) >= LEAST:
        return levels
    groups: list[list[Located]] = []
    for place in sorted(located, key=lambda p: (p.tokens / p.size, p.size)):
        near = groups and np.log(
            place.tokens / place.size * groups[-1][0].size / groups[-1][0].tokens
        )
        if groups and near < SAME_TOKENS_PER_PARAM:
            groups[-1].append(place)
        else:
            groups.append([place])
    if max(len(group) for group in groups) < 2:
        return levels
    return [
        Level(None, float(np.mean([p.tokens / p.size for p in group])), group) for group in groups
    ]


@dataclass(frozen=True)
class FittedLine:
    """A line over optima, in units of the mean student size."""

    unit: float  # parameters
    student_I: np.ndarray
    star_I: np.ndarray
    error_I: np.ndarray  # standard error of log T*
    noise_factor: float  # ends of a noise interval in standard errors
    bound_C: np.ndarray  # students of the bounds, their limits, and whether T* is above them
    limit_C: np.ndarray
    above_C: np.ndarray
    confidence: float

    @cached_property
    def noise_I(self) -> np.ndarray:
        """Standard error of T*_i / S_i at the mean ratio, so that a low estimate gets no extra weight."""
        return float(np.exp(np.mean(np.log(self.star_I / self.student_I)))) * self.error_I

    @cached_property
    def scatter(self) -> float:
        """Relative scatter of the optima about the line beyond noise (Mandel and Paule 1970)."""
        design_IP = _with_constant(self.student_I)

        def excess(scatter: float) -> float:
            sd_I = self.student_I * np.hypot(self.noise_I, scatter)
            weighted_IP, star_I = design_IP / sd_I[:, None], self.star_I / sd_I
            distance_I = star_I - weighted_IP @ (np.linalg.pinv(weighted_IP) @ star_I)
            return float(distance_I @ distance_I) - (len(star_I) - design_IP.shape[1])

        if excess(LEAST_SCATTER) <= 0:
            return LEAST_SCATTER
        flat_I = self.star_I - design_IP @ (np.linalg.pinv(design_IP) @ self.star_I)
        most = float(np.linalg.norm(flat_I / self.student_I)) + LEAST_SCATTER
        return float(optimize.brentq(excess, LEAST_SCATTER, most, xtol=LEAST_SCATTER))

    def _sd(self, student: np.ndarray, noise: np.ndarray) -> np.ndarray:
        return student * np.hypot(noise, self.scatter)

    @cached_property
    def line(self) -> CensoredFit:
        """The regression of T* on 1 and S."""
        return self._fit(_with_constant(self.student_I), _with_constant(self.bound_C))

    @cached_property
    def proportion(self) -> CensoredFit:
        """The regression of T* on S alone: a line through the origin."""
        return self._fit(self.student_I[:, None], self.bound_C[:, None])

    def _fit(self, design_IP: np.ndarray, design_CP: np.ndarray) -> CensoredFit:
        """Rows in units of their standard deviations, so that all weigh alike."""
        sd_I = self._sd(self.student_I, self.noise_I)
        sd_C = self._sd(self.bound_C, np.median(self.noise_I))
        bounds = Bounds(design_CP / sd_C[:, None], self.limit_C / sd_C, self.above_C)
        return fit_censored(design_IP / sd_I[:, None], self.star_I / sd_I, bounds)

    def estimate(self, fit: CensoredFit, weight_P: list[float]) -> tuple[float, float, float]:
        """A weighted sum of coefficients with its interval, no narrower than noise makes it."""
        value = float(fit.coefficient_P @ weight_P)
        low, high = fit.interval(np.array(weight_P), self.confidence)
        weight_I = weight_P @ np.linalg.pinv(fit.design_IP) / self._sd(self.student_I, self.noise_I)
        noise = self.noise_factor * float(np.linalg.norm(weight_I * self.student_I * self.noise_I))
        return value, min(low, value - noise), max(high, value + noise)

    def predict(self, student_params: float) -> Interval:
        """T* of a student size, with the interval of one more optimum there."""
        at = student_params / self.unit
        value, low, high = self.estimate(self.line, [1.0, at])
        t = stats.t.ppf((1 + self.confidence) / 2, self.line.df)
        own = t * self.line.unbiased_sd * float(at * self.scatter)
        low, high = value - np.hypot(value - low, own), value + np.hypot(high - value, own)
        return _sizes(self.unit * value, self.unit * low, self.unit * high)

    def band(self) -> list[BandPoint]:
        """The line and its interval from 1/1.5 of the smallest student to 1.5 of the largest."""
        known = np.concatenate([self.student_I, self.bound_C])
        points = []
        for at in np.geomspace(known.min() / 1.5, known.max() * 1.5, BAND_POINTS):
            ends = (self.unit * v for v in self.estimate(self.line, [1.0, float(at)]))
            size = float(at * self.unit)
            points.append(
                BandPoint(student_params_non_embedding=size, teacher_params=_sizes(*ends))
            )
        return points


def _with_constant(student: np.ndarray) -> np.ndarray:
    return np.column_stack([np.ones(len(student)), student])


def _interval(value: float, low: float, high: float) -> Interval:
    return Interval(value=float(value), low=_finite(low), high=_finite(high))


def _finite(end: float) -> float | None:
    return float(end) if np.isfinite(end) else None


def _sizes(value: float, low: float, high: float) -> Interval:
    """An interval of sizes: a limit at or below 0 is none."""
    return _interval(value, low if low > 0 else -np.inf, high)


def fit_line(places: list[Located], factor: float, confidence: float) -> FittedLine | None:
    """The line through the optima of one level; None with fewer than three sizes inside.

    factor: half width of a noise interval in standard errors.
    """
    inside = [p for p in places if p.status == "interior" and p.own is not None]
    student_I = np.array([place.size for place in inside])
    if len(np.unique(student_I)) < LEAST:
        return None
    unit = float(student_I.mean())
    edges = [place for place in places if place.bound is not None]
    return FittedLine(
        unit=unit,
        student_I=student_I / unit,
        star_I=np.exp([place.own.log_star for place in inside]) / unit,
        error_I=np.array([place.own.error for place in inside]),
        noise_factor=factor,
        bound_C=np.array([place.size for place in edges]) / unit,
        limit_C=np.array([place.bound for place in edges]) / unit,
        above_C=np.array([place.status == "lower_bound" for place in edges], dtype=bool),
        confidence=confidence,
    )


def describe_line(level: Level, fitted: FittedLine | None, settings: Law) -> Line:
    """The record of one line."""
    places = level.places
    inside = [place for place in places if place.status == "interior"]
    common = {
        "tokens": None if level.tokens is None else round(level.tokens),
        "tokens_per_param": level.tokens_per_param,
        "n_students": len(inside),
        "n_bounds": sum(place.bound is not None for place in places),
        "published_slope": settings.published_slope,
    }
    if fitted is None:
        return Line(
            status="not_identifiable",
            reason=(
                f"{len(inside)} of {len(places)} students have their optimum inside the teachers tried, "
                f"and a line needs {LEAST} of different sizes{_others(places)}"
            ),
            **common,
        )
    slope = _interval(*fitted.estimate(fitted.line, [0.0, 1.0]))
    intercept = [fitted.unit * v for v in fitted.estimate(fitted.line, [1.0, 0.0])]
    how = "weighted least squares" if common["n_bounds"] == 0 else "censored regression"
    return Line(
        status="fitted",
        reason=f"{how} over {len(inside)} interior optima{_others(places)}",
        slope=slope,
        intercept=_interval(*intercept),
        ratio_through_origin=_interval(*fitted.estimate(fitted.proportion, [1.0])),
        band=fitted.band(),
        **common,
    )


def _others(places: list[Located]) -> str:
    """The students without an optimum inside the ladder, and how each of them is used."""
    words = {
        "upper_bound": "best with the smallest teacher, which gives only a bound",
        "lower_bound": "best with the largest teacher, which gives only a bound",
        "not_identifiable": "left out because of fewer than three teacher sizes",
    }
    parts = []
    for status, word in words.items():
        names = [place.student for place in places if place.status == status]
        if names:
            parts.append(f"{listed(names)} {word}")
    return f"; {', '.join(parts)}" if parts else ""
