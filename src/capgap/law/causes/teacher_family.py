"""
A family of teachers: their losses against their sizes, and which teacher is off the others' curve.

The curve is L(T) = E + B T^-p, fitted with a soft L1 loss so that one badly trained teacher does not
bend it. A teacher is off its family when it lies above the curve by more than three times the usual
distance (1.4826 times the median) and by more than 0.03 of the loss's unit, the difference between
redraws of one teacher in the pilot. A teacher below the curve is not off: it is better than its family.
Between sizes, losses are interpolated (PCHIP in log size, which does not overshoot) through the
teachers that are not off.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.interpolate import PchipInterpolator
from scipy.optimize import least_squares

from capgap.config.run_grid import NONE
from capgap.law.law_record import OffTeacher

LEAST = 5  # teachers for a curve of three constants
SCALE = 0.01  # of soft L1, in the unit of the loss
TIMES, LEAST_OFF = 3.0, 0.03
MOST_OFF = 0.2  # share of the teachers; if more are off, there is no family


@dataclass(frozen=True)
class TeacherFamily:
    """Losses of teachers by size."""

    size_U: np.ndarray  # distinct sizes, ascending, parameters
    loss_U: np.ndarray  # mean over the teachers of a size that are not off
    off: tuple[OffTeacher, ...]

    @property
    def ends(self) -> tuple[float, float]:
        """Smallest and largest size."""
        return float(self.size_U[0]), float(self.size_U[-1])

    def loss_of(self, size: np.ndarray | float) -> np.ndarray:
        """Interpolated loss at sizes within the ends; beyond them, that of the end."""
        log = np.log(np.clip(size, *self.ends))
        if len(self.size_U) == 1:
            return np.full(np.shape(log), self.loss_U[0])
        return PchipInterpolator(np.log(self.size_U), self.loss_U)(log)


def family_of(cells: pd.DataFrame) -> TeacherFamily:
    """The family of all teachers of a table with losses (`run_means.cell_table`, at least one)."""
    taught = cells[cells["teacher"] != NONE].dropna(subset=["teacher_loss"])
    draws = taught.groupby(["teacher", "teacher_seed"], sort=True)[
        ["teacher_params", "teacher_loss"]
    ].first()
    draws = draws.reset_index().sort_values(["teacher_params", "teacher"], ignore_index=True)
    size, loss = draws["teacher_params"].to_numpy(float), draws["teacher_loss"].to_numpy(float)
    off_N, above_N = np.zeros(len(draws), dtype=bool), np.zeros(len(draws))
    # one at a time, because the curve moves when one is taken out
    while len(np.unique(size[~off_N])) >= LEAST and off_N.mean() < MOST_OFF:
        above_N = loss - _curve(size[~off_N], loss[~off_N], size)
        usual = 1.4826 * float(np.median(np.abs(above_N[~off_N])))
        farthest = int(np.argmax(np.where(off_N, -np.inf, above_N)))
        if above_N[farthest] <= max(LEAST_OFF, TIMES * usual):
            break
        off_N[farthest] = True
    off = tuple(
        OffTeacher(
            teacher=str(draws["teacher"][i]),
            teacher_params_non_embedding=float(size[i]),
            loss=float(loss[i]),
            above_curve=float(above_N[i]),
        )
        for i in np.flatnonzero(off_N)
    )
    on = draws[~off_N].groupby("teacher_params")["teacher_loss"].mean()
    return TeacherFamily(on.index.to_numpy(float), on.to_numpy(float), off)


def _curve(size_N: np.ndarray, loss_N: np.ndarray, at: np.ndarray) -> np.ndarray:
    """The curve of some teachers, at other sizes."""
    centre = np.log(size_N).mean()
    span = max(float(np.ptp(loss_N)), SCALE)

    def curve(theta: np.ndarray, size: np.ndarray = size_N) -> np.ndarray:
        below, log_b, log_p = theta
        falling = np.exp(log_b - np.exp(log_p) * (np.log(size) - centre))
        return loss_N.min() - np.exp(below) + falling

    ends = [
        least_squares(
            lambda theta: (curve(theta) - loss_N) / SCALE,
            [np.log(share * span), np.log((0.5 + share) * span), np.log(power)],
            loss="soft_l1",
            bounds=([np.log(span) - 7, -12, np.log(0.01)], [np.log(span) + 5, 6, np.log(3)]),
        )
        for share in (0.02, 0.3, 3.0)
        for power in (0.1, 0.5)
    ]
    return curve(min(ends, key=lambda end: end.cost).x, at)
