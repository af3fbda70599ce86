"""
What the curve of loss against teacher size looks like at one student size and budget.

The rules, fixed before any data. Let alpha be 1 minus the level of the intervals, tie the loss
that counts as no difference, and "above" mean significantly above: a one-sided t test with the
noise of paired seeds (and the unevenness of teachers where there is any) at alpha / 2, divided by
the number of cells compared.

  1. not_identifiable  fewer than three teacher sizes, or no noise estimate (one seed a cell)
  2. flat              all means lie within tie of each other, or the F test at alpha / 2 finds no
                       difference between teachers; but not_identifiable where that test could not
                       have seen differences of 4 ties
  3. interior          both the smallest and the largest teacher are above a teacher between them
  4. monotone          one end is above, the other is the best of all, and its neighbour is worse
                       than it by more than tie
     saturating        one end is above and towards the other end the loss neither falls by more
                       than tie nor rises significantly
  5. not_identifiable  anything else: differences without order

The test statistics are those of a linear model, so every rule is a closed formula of the cells.
Shapes: U teacher sizes, N runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from capgap.law.cells import Cells, Noise
from capgap.law.unevenness import Unevenness
from capgap.law.words import about

Shape = Literal["interior", "saturating", "monotone", "flat", "not_identifiable"]
RESOLUTION = 4  # ties; a test blind to this much cannot call a curve flat


@dataclass(frozen=True)
class Judged:
    """A shape and why."""

    shape: Shape
    reason: str


def judge(
    cells: Cells,
    noise: Noise | None,
    unevenness: Unevenness | None,
    confidence: float,
    tie_nats: float,
) -> Judged:
    """Apply the rules to the cells of one student and budget."""
    size_U, average_UK = cells.by_size()
    n = len(size_U)
    if n < 3:
        return Judged("not_identifiable", f"{n} teacher size(s), and a shape needs three")
    if noise is None:
        return Judged(
            "not_identifiable", "one seed a cell: what is noise cannot be told; add seeds"
        )
    mean_U = average_UK @ cells.mean_K
    span = float(np.ptp(mean_U))
    covariance_UU = _covariance(cells, average_UK, noise, unevenness)
    alpha = (1 - confidence) / 2
    if span <= tie_nats:
        return Judged("flat", f"all teachers lie within {span:.4f} nats")
    p_equal = _p_equal(mean_U, covariance_UU, noise.df)
    if p_equal >= alpha:
        contrast = covariance_UU.diagonal()[:, None] + covariance_UU.diagonal() - 2 * covariance_UU
        blind = stats.t.isf(alpha, noise.df) * float(np.sqrt(contrast.max()))
        if blind > RESOLUTION * tie_nats:
            return Judged(
                "not_identifiable",
                f"differences up to {blind:.3f} nats would drown in the noise; add seeds",
            )
        return Judged("flat", f"no teacher differs from another beyond noise (p = {p_equal:.2f})")
    left = _above(mean_U, covariance_UU, 0, np.arange(1, n), noise.df, alpha)
    right = _above(mean_U, covariance_UU, n - 1, np.arange(n - 1), noise.df, alpha)
    inner = np.arange(1, n - 1)
    if _above(mean_U, covariance_UU, 0, inner, noise.df, alpha) and _above(
        mean_U, covariance_UU, n - 1, inner, noise.df, alpha
    ):
        best = inner[mean_U[inner].argmin()]
        return Judged(
            "interior",
            f"the smallest teacher is {mean_U[0] - mean_U[best]:.3f} and the largest "
            f"{mean_U[-1] - mean_U[best]:.3f} nats worse than the one of {about(size_U[best])}",
        )
    if left == right:
        return Judged("not_identifiable", "the teachers differ, but without an order in their size")
    toward = ("larger", -1, n - 2) if left else ("smaller", 0, 1)
    word, end, neighbour = toward
    if mean_U[end] == mean_U.min() and mean_U[neighbour] - mean_U[end] > tie_nats:
        return Judged("monotone", f"the {word} the teacher, the better, up to the last one tried")
    return Judged(
        "saturating",
        f"{word} teachers are better up to {about(size_U[mean_U.argmin()])}, beyond which the loss "
        "changes by no more than noise",
    )


def _covariance(
    cells: Cells, average_UK: np.ndarray, noise: Noise, unevenness: Unevenness | None
) -> np.ndarray:
    """Covariance of the means by size, (U, U), nats^2."""
    map_UN = average_UK @ cells.map_KN
    covariance_UU = noise.sd**2 * map_UN @ map_UN.T
    if unevenness is not None:
        covariance_UU = covariance_UU + unevenness.sd**2 * average_UK @ average_UK.T
    return covariance_UU


def _p_equal(mean_U: np.ndarray, covariance_UU: np.ndarray, df: int) -> float:
    """F test that all means are equal; 0 where nothing is noise."""
    if not covariance_UU.any():
        return float(np.ptp(mean_U) == 0)
    contrast = np.diff(np.eye(len(mean_U)), axis=0)
    difference = contrast @ mean_U
    quadratic = difference @ np.linalg.pinv(contrast @ covariance_UU @ contrast.T) @ difference
    return float(stats.f.sf(quadratic / len(difference), len(difference), df))


def _above(
    mean_U: np.ndarray,
    covariance_UU: np.ndarray,
    end: int,
    others: np.ndarray,
    df: int,
    alpha: float,
) -> bool:
    """Whether one mean lies significantly above the lowest of others (Bonferroni over them)."""
    variance = covariance_UU.diagonal()
    spread = np.sqrt(variance[end] + variance[others] - 2 * covariance_UU[end, others])
    limit = stats.t.isf(alpha / len(others), df)
    return bool((mean_U[end] - mean_U[others] > limit * spread).any())
