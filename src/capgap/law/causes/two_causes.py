"""
The law of two causes: a better teacher helps, and the pruning that made the init does damage.

    loss(S, D, T) = level(S, D) + g L_T + damage
    damage        = A (1 - exp(-z)),   z = c / A (D / D0)^-q (S / S0)^-r log(T / S)

L_T is the teacher's own loss, T the size of the model that the init was pruned from, S and D student
size and tokens, S0 and D0 their geometric means over the runs. Student, budget, kind of init (pruned, random,
or a given model by its name) and whether there is a teacher have a level of their own. Random and given inits
have no damage, and runs without a teacher no g L_T. docs/method.md explains the form, its fit and its choice.

Intervals are those of the jackknife over draws of teachers: all runs that one taught, or whose init was pruned
from it, are left out together (the cluster-robust variance CR3; MacKinnon, Nielsen and Webb 2023, arXiv
2205.03285), with t limits of teachers less one.

Shapes: N cells (means over seeds), G groups, P parameters, K draws of teachers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from capgap.law.causes.causes_form import NAMES, SD_P, CauseCells, above_level, damage
from capgap.law.law_record import Interval, TwoCausesFit
from capgap.law.loss_plane import group_means, predict_plane

# share of a prior's standard deviation; a parameter known no better is held by its prior
HELD = 0.5
FAR = 6.0  # usual residuals beyond which a cell is reported as far off
GRID = 400  # sizes at which the loss is evaluated to find T*


@dataclass(frozen=True)
class TwoCauses:
    """A fitted law of two causes."""

    theta_P: np.ndarray
    open_PP: np.ndarray  # columns: what the priors' standard deviations leave open, in parameters
    theta_KP: np.ndarray  # without each draw of a teacher in turn; K = 0 with fewer than three
    centre: tuple[float, float]  # mean log S and mean log D
    cells: CauseCells
    groups: pd.DataFrame  # log S and log D of pruned, taught groups, by number
    noise: float  # standard deviation of a cell about the law, nats
    confidence: float
    rest: pd.DataFrame  # cells with their residual z in units of the usual one
    status: str
    reason: str

    @property
    def limit(self) -> float:
        """Standard errors in half an interval."""
        return float(stats.t.ppf((1 + self.confidence) / 2, max(1, len(self.theta_KP) - 1)))

    def interval(self, of: Callable[[np.ndarray], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """(value, half width of its interval) of a function of the parameters; NaN if unknown.

        The variance is that of the jackknife plus the priors' variance in directions that the runs
        leave open.
        """
        value = np.asarray(of(self.theta_P), dtype=float)
        k = len(self.theta_KP)
        if k == 0:
            return value, np.full_like(value, np.nan)
        drawn = np.array([of(theta_P) for theta_P in self.theta_KP])
        variance = (k - 1) / k * np.sum((drawn - drawn.mean(axis=0)) ** 2, axis=0)
        for step_P in self.open_PP.T:
            variance = variance + ((of(self.theta_P + step_P) - of(self.theta_P - step_P)) / 2) ** 2
        return value, self.limit * np.sqrt(variance)

    def above_level(
        self,
        student: float,
        tokens: float,
        teacher_loss_K: np.ndarray,
        cut_from_K: np.ndarray | None,
        theta_P: np.ndarray | None = None,
    ) -> np.ndarray:
        """g L_T + damage of students of one size, (K,), nats.

        cut_from_K: sizes the inits were pruned from; None for random or given inits.
        """
        theta_P = self.theta_P if theta_P is None else theta_P
        size, budget = np.log(student) - self.centre[0], np.log(tokens) - self.centre[1]
        helped = theta_P[0] * np.asarray(teacher_loss_K, dtype=float)
        if cut_from_K is None:
            return helped
        cut_K = np.maximum(0.0, np.log(np.asarray(cut_from_K, dtype=float) / student))
        return helped + damage(theta_P, cut_K, size, budget)

    def parts(
        self, student: float, tokens: float, teacher_loss_K: np.ndarray, cut_from_K: np.ndarray
    ) -> tuple[list[Interval], list[Interval]]:
        """Damage of the cut, and g L_T above that of the first teacher, with intervals, nats."""

        def damaged(theta_P: np.ndarray) -> np.ndarray:
            none_K = np.zeros_like(cut_from_K, dtype=float)
            return self.above_level(student, tokens, none_K, cut_from_K, theta_P)

        def helped(theta_P: np.ndarray) -> np.ndarray:
            return theta_P[0] * (teacher_loss_K - teacher_loss_K[0])

        return _intervals(*self.interval(damaged)), _intervals(*self.interval(helped))

    def regret(
        self,
        student: float,
        tokens: float,
        teacher_loss_K: np.ndarray,
        cut_from_K: np.ndarray | None,
    ) -> list[Interval]:
        """Loss above the best of some teachers, with intervals."""
        best = int(np.argmin(self.above_level(student, tokens, teacher_loss_K, cut_from_K)))

        def over_best(theta_P: np.ndarray) -> np.ndarray:
            above_K = self.above_level(student, tokens, teacher_loss_K, cut_from_K, theta_P)
            return above_K - above_K[best]

        return _intervals(*self.interval(over_best))

    def loss(
        self, student: float, tokens: float, teacher_loss: float, cut_from: float | None
    ) -> Interval:
        """Predicted loss of a pruned student (nats per token), with its interval.

        If the student and budget are not in the table, the level is that of a plane in log S and log D
        through those of the table, and the interval includes its prediction error.
        """
        sources = None if cut_from is None else np.array([cut_from])

        def predicted(theta_P: np.ndarray) -> np.ndarray:
            above = self.above_level(student, tokens, np.array([teacher_loss]), sources, theta_P)
            return above + self._level(student, tokens, theta_P)[0]

        value, half = self.interval(predicted)
        plane = self._level(student, tokens, self.theta_P)[1]
        return _intervals(value, np.array([np.hypot(half[0], plane)]))[0]

    def _level(self, student: float, tokens: float, theta_P: np.ndarray) -> tuple[float, float]:
        """(level of pruned and taught students, half width of the plane's prediction), nats."""
        rest_N = self.cells.loss_N - above_level(theta_P, self.cells)
        weight_N = self.cells.weight_N**2 / np.sqrt(1 + self.rest["z"].to_numpy() ** 2)
        value_G = group_means(rest_N, self.cells.group_N, weight_N)
        here, value_G = self.groups.to_numpy(), value_G[self.groups.index]
        at = np.array([np.log(student), np.log(tokens)])
        same = (np.abs(here - at) < 0.01).all(axis=1)
        if same.any():
            return float(value_G[same].mean()), 0.0
        value, half = predict_plane(here, value_G, at, self.confidence)
        return value, np.nan if half is None else half

    def best_teacher(
        self, student: float, tokens: float, loss_of: Callable[[np.ndarray], np.ndarray], ends
    ) -> tuple[Interval, str]:
        """T* (parameters) within a family, and whether it is 'interior', 'smallest' or 'largest'.

        loss_of: losses of teachers by size; ends: smallest and largest size there is. At an end T* is
        only bounded, and a limit beyond an end is None.
        """
        low = np.log(max(ends[0], student))
        grid = np.linspace(low, max(low, np.log(ends[1])), GRID)
        size_I, loss_I = np.exp(grid), loss_of(np.exp(grid))

        def at(theta_P: np.ndarray) -> float:
            return grid[int(np.argmin(self.above_level(student, tokens, loss_I, size_I, theta_P)))]

        value, half = self.interval(at)
        ends_of = [value - half, value + half]
        low_limit = None if not ends_of[0] > grid[0] else float(np.exp(ends_of[0]))
        high_limit = None if not ends_of[1] < grid[-1] else float(np.exp(ends_of[1]))
        where = "smallest" if value == grid[0] else "largest" if value == grid[-1] else "interior"
        return Interval(value=float(np.exp(value)), low=low_limit, high=high_limit), where

    def record(self) -> TwoCausesFit:
        """The record for `law.json`, without optima and cells."""
        value_P, half_P = self.interval(lambda theta_P: theta_P)
        help_, log_rate, by_tokens, by_size, log_ceiling = _intervals(value_P, half_P)
        known_P = np.linalg.norm(self.open_PP, axis=1) < HELD * SD_P
        far = self.rest[self.rest["z"].abs() > FAR]
        return TwoCausesFit(
            status=self.status,
            reason=self.reason,
            help=help_,
            damage_rate_nats=log_rate.apply(np.exp),
            damage_by_tokens=by_tokens,
            damage_by_size=by_size,
            damage_ceiling_nats=log_ceiling.apply(np.exp),
            held=[name for name, known in zip(NAMES, known_P, strict=True) if not known],
            centre_student_params=float(np.exp(self.centre[0])),
            centre_tokens=float(np.exp(self.centre[1])),
            noise_nats=self.noise,
            n_cells=len(self.rest),
            n_teachers=len(self.theta_KP),
            far_off=[
                f"student {row.student}, init {row.init}, teacher {row.teacher}, {row.tokens} tokens"
                for row in far.itertuples()
            ],
        )


def _intervals(value_K: np.ndarray, half_K: np.ndarray) -> list[Interval]:
    return [
        Interval.around(value, None if np.isnan(half) else half)
        for value, half in zip(value_K, half_K, strict=True)
    ]
