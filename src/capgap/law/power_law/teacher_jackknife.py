"""
The power law without each draw of a teacher in turn, and intervals from it.

All runs of a draw share its random effect, so a draw is left out as a whole: under all laws that are compared,
with the noise as it is (cluster-robust variance CR3; MacKinnon, Nielsen and Webb 2023, arXiv
2205.03285). Limits are those of t with draws less one. Used for what is no weighted sum of the law's
parameters, and for what several laws share teachers in.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import stats

from capgap.law.law_record import Interval
from capgap.law.loss_plane import group_means
from capgap.law.power_law import curve_fit
from capgap.law.power_law.loss_curve import above_lowest
from capgap.law.power_law.power_law import PowerLaw
from capgap.law.table.grouped_runs import GroupedRuns

LEAST_DRAWS = 3  # of teachers, for an interval


@dataclass(frozen=True)
class Refitted:
    """The law of some of the runs."""

    law: PowerLaw  # of all runs: coordinates and noise
    runs: GroupedRuns
    x_P: np.ndarray

    def log_star(self, size: float, tokens: float | np.ndarray) -> np.ndarray:
        """log T* (parameters) of a student at some budgets (tokens), (...)."""
        law = self.law
        weights = law.axes.coordinates(np.float64(size), np.asarray(tokens, dtype=float))
        return np.log(size) + weights @ law.axes.basis_3Q @ self.x_P[: law.curves.q]

    def excess(
        self, log_teacher: np.ndarray, size: float, tokens: float | np.ndarray
    ) -> np.ndarray:
        """Loss above the lowest point of a student's curve, nats; teachers and budgets broadcast."""
        star = self.log_star(size, tokens)
        lean = star - np.log(size) - self.law.axes.middle
        return above_lowest(log_teacher - star, lean, *self.x_P[-2:])

    def floor_G(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Student sizes, tokens and lowest losses over all teachers of the groups, (G,) each."""
        curves = curve_fit.Curves(self.runs, self.law.axes)
        floor_N = self.runs.loss_N - curves.evaluate(self.x_P[None])[0][0]
        group_N, first = self.runs.group_N, self.runs.first_G
        floor_G = group_means(floor_N, group_N)
        return self.runs.size_N[first], self.runs.tokens_N[first], floor_G


def whole(law: PowerLaw) -> Refitted:
    """The law of all runs."""
    return Refitted(law, law.runs, law.x_P)


def draws_of(*laws: PowerLaw) -> list[str]:
    """The draws of teachers of some laws."""
    return sorted(set().union(*(law.runs.teacher_draw_N.tolist() for law in laws)))


def without(law: PowerLaw, draw: str) -> Refitted | None:
    """The law without the runs of one draw of a teacher; None if too few are left."""
    keep_N = law.runs.teacher_draw_N != draw
    runs = law.runs.select(keep_N)
    if len(runs.loss_N) - len(runs.first_G) < law.curves.q:
        return None
    curves = curve_fit.Curves(runs, law.axes)
    remove_MN = curve_fit.remover(runs, law.noise_NN[np.ix_(keep_N, keep_N)])
    found = curve_fit.solve(curves, runs.loss_N, remove_MN, law.x_P[None])
    return Refitted(law, runs, found.x_P)


class Spread:
    """Intervals of numbers that were found with all runs and without each draw, (K + 1, ...)."""

    def __init__(self, found: np.ndarray, left: np.ndarray, confidence: float):
        self.found, self.left = found, left
        self.limit = float(stats.t.ppf((1 + confidence) / 2, len(left) - 1))

    def interval(
        self,
        of: Callable[[np.ndarray], float],
        scale: Callable[[float], float] = float,
        least: float = -math.inf,
        by: Callable[[np.ndarray], float] | None = None,
    ) -> Interval:
        """Interval of a function of the numbers, on another scale.

        least: what it cannot be below. by: the function whose spread decides the width, if another one.
        """
        value = float(of(self.found))
        left_K = np.array([(by or of)(found) for found in self.left], dtype=float)
        k = len(left_K)
        half = self.limit * math.sqrt((k - 1) / k * float(np.sum((left_K - left_K.mean()) ** 2)))
        ends = (value, max(least, value - half), value + half)
        value, low, high = (float(scale(end)) for end in ends)
        return Interval(value=value, low=low, high=high)
