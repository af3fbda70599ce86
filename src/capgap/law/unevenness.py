"""
How far teachers leave a smooth curve, beyond what seeds explain.

Teachers differ in more than size: depth, width, training. Seeds repeat a run with the same
teachers, so they are blind to it, and intervals over seeds alone would be too narrow. Five cells
around the best leave one contrast that no cubic in log size can explain; its square, beyond the
seeds' share and pooled over students and budgets, estimates the variance of a cell about the curve.
It is taken into account only where an F test rejects that seeds alone made it, so that even
families keep their narrow intervals. A smooth curve with a strong fourth order counts as uneven
too: its interpolation is as uncertain.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from capgap.law.cells import Cells, Noise

CELLS = 5  # of a contrast
TEST_LEVEL = 0.05


@dataclass(frozen=True)
class Unevenness:
    """Standard deviation of a cell about the smooth curve, nats per token, and what it rests on."""

    sd: float  # 0 where seeds explain the departures
    df: int  # contrasts

    def draw(self, rng: np.random.Generator, resamples: int, cells: int) -> np.ndarray:
        """Departures of cells, (R, K), normal, with the t scale of `Noise.draw`."""
        scale_R1 = np.sqrt(self.df / rng.chisquare(self.df, size=(resamples, 1)))
        return self.sd * scale_R1 * rng.normal(size=(resamples, cells))


def unevenness_of(cells: list[Cells], noise: Noise | None) -> Unevenness | None:
    """Unevenness pooled over all cells; None with one seed, or with fewer than five sizes."""
    if noise is None or noise.sd == 0:
        return None
    departures = [_departure(c) for c in cells if len(np.unique(c.teacher_params_K)) >= CELLS]
    if not departures:
        return None
    square, seeds_share = np.array(departures).T
    variance = noise.sd**2 * seeds_share
    f = np.mean(square / variance)
    if stats.f.sf(f, len(square), noise.df) >= TEST_LEVEL:
        return Unevenness(0.0, len(square))
    return Unevenness(float(np.sqrt(max(0.0, np.mean(square - variance)))), len(square))


def _departure(cells: Cells) -> tuple[float, float]:
    """Square of the contrast (nats^2) and its variance in units of the seeds' variance."""
    size_U, average_UK = cells.by_size()
    mean_U = average_UK @ cells.mean_K
    first = int(np.clip(mean_U.argmin() - CELLS // 2, 0, len(size_U) - CELLS))
    window = slice(first, first + CELLS)
    x_W = np.log(size_U[window])
    cubic = np.vander((x_W - x_W.mean()) / np.ptp(x_W), 4)
    contrast_W = np.linalg.svd(cubic)[0][:, -1]  # unit vector at right angles to all cubics
    seeds_N = contrast_W @ (average_UK @ cells.map_KN)[window]
    return float(contrast_W @ mean_U[window]) ** 2, float(seeds_N @ seeds_N)
