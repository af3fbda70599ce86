"""
The best teacher of one student at one budget, from the curve of that group alone.

It is a check on the power law, and the line T* = a + b S is drawn through these optima. The group's
curve is that of the law with T* free, curvature and skew free about the common ones (`CURVATURE_SD`,
`SKEW_SD`), and the study's noise. Means far from the best in log T lose weight through the misfit
component, not by their place in the ladder.

The shape of the curve follows from tests on its means:

  1. not_identifiable  fewer than three teacher sizes
  2. flat              all means lie within tie of each other, or the F test at alpha / 2 finds no
                       difference between teachers; but not_identifiable if that test had no power
                       to detect differences of 4 ties
  3. interior          both the smallest and the largest teacher are above a teacher between them
  4. monotone          one end is above, the other is the best of all, and its neighbour is worse
                       than it by more than tie
     saturating        one end is above and towards the other end the loss neither falls by more
                       than tie nor rises significantly
  5. not_identifiable  anything else: differences without order

alpha is 1 minus the level of the intervals, divided by the number of curves; "above" is a one-sided
t test at alpha / 2 divided by the number of means compared, with the study's noise.

Shapes: U teacher sizes, N runs of the group.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from scipy import stats

from capgap.law.law_record import Interval
from capgap.law.number_text import about
from capgap.law.power_law import curve_fit
from capgap.law.power_law.power_law import PowerLaw, Solved, interval_of
from capgap.law.table.grouped_runs import GroupedRuns

CURVATURE_SD = 0.7  # of log curvature about the joint one: within a factor of 2
SKEW_SD = 0.5
RESOLUTION = 4  # ties; a test that would miss such a difference cannot call a curve flat

Status = Literal["interior", "lower_bound", "upper_bound", "not_identifiable"]
Shape = Literal["interior", "saturating", "monotone", "flat", "not_identifiable"]


@dataclass(frozen=True)
class Means:
    """Mean losses of a group by teacher size."""

    size_U: np.ndarray
    mean_U: np.ndarray  # nats per token
    covariance_UU: np.ndarray  # of the means, without what all runs of the group share, nats^2
    df: float  # of the noise


@dataclass(frozen=True)
class OwnCurve:
    """The curve of one group, with T* free."""

    solved: Solved
    log_size: float  # of the student
    ends: tuple[float, float]  # of an interval, in standard errors

    @property
    def log_star(self) -> float:
        """log T*."""
        return self.log_size + float(self.solved.x_P[0])

    @property
    def error(self) -> float:
        """Standard error of log T*."""
        return float(np.sqrt(self.solved.covariance_PP[0, 0]))

    @cached_property
    def limits(self) -> Interval:
        """T* in parameters with its interval."""
        first = np.array([1.0, 0.0, 0.0])
        low, high = self.ends
        found = interval_of(self.solved, first, (self.error * low, self.error * high))
        return found.apply(lambda u: np.exp(self.log_size + u))


@dataclass(frozen=True)
class Located:
    """The optimum of one group."""

    student: str
    size: float  # of the student
    tokens: float
    runs: GroupedRuns
    means: Means | None  # None without a noise estimate
    status: Status
    own: OwnCurve | None  # None without a noise estimate or with fewer than three teacher sizes
    bound: float | None  # parameters; of an edge status, the neighbour of the best teacher


def locate(runs: GroupedRuns, group: int, law: PowerLaw | None, confidence: float) -> Located:
    """The optimum of a group; without a law only its status, by the lowest mean."""
    own_N = np.flatnonzero(runs.group_N == group)
    own = runs.select(own_N)
    size_U, index_N = np.unique(own.teacher_size_N, return_inverse=True)
    weight_UN = (index_N == np.arange(len(size_U))[:, None]) * own.averaged_N
    weight_UN = weight_UN / weight_UN.sum(axis=1, keepdims=True)
    mean_U = weight_UN @ own.loss_N
    status, bound = _status(size_U, mean_U)
    means = curve = None
    if law is not None:
        noise_NN = law.run_noise_NN[np.ix_(own_N, own_N)]
        means = Means(size_U, mean_U, weight_UN @ noise_NN @ weight_UN.T, law.noise_df)
    if law is not None and len(size_U) >= 3:
        curve = _own_curve(own, own_N, law, confidence)
    return Located(
        student=str(own.student_N[0]),
        size=float(own.size_N[0]),
        tokens=float(own.tokens_N[0]),
        runs=own,
        means=means,
        status=status,
        own=curve,
        bound=bound,
    )


def _status(size_U: np.ndarray, mean_U: np.ndarray) -> tuple[Status, float | None]:
    if len(size_U) < 3:
        return "not_identifiable", None
    best = int(mean_U.argmin())
    if best == 0:
        return "upper_bound", float(size_U[1])
    if best == len(size_U) - 1:
        return "lower_bound", float(size_U[-2])
    return "interior", None


def _own_curve(own: GroupedRuns, own_N: np.ndarray, law: PowerLaw, confidence: float) -> OwnCurve:
    """The curve of one group at the noise of the study."""
    weight_3 = law.weights(own.size_N[0], own.tokens_N[0])
    log_ratio = float(weight_3 @ law.axes.basis_3Q @ law.x_P[: law.curves.q])
    log_c, k = law.x_P[-2:]
    k_sd = float(np.hypot(SKEW_SD, np.sqrt(law.covariance_PP[-1, -1])))
    axes = curve_fit.Axes(
        centre=np.log([own.size_N[0], own.tokens_N[0]]),
        basis_3Q=np.eye(3)[:, :1],
        middle=float(np.median(own.log_ratio_N)),
    )
    there = log_c + k * (axes.middle - law.axes.middle)
    curves = curve_fit.Curves(own, axes, (there, CURVATURE_SD), (k, k_sd))
    remove_MN = curve_fit.remover(own, law.noise_NN[np.ix_(own_N, own_N)])
    reach = own.log_ratio_N.min() - 1, own.log_ratio_N.max() + 1
    starts = [[u, there, k] for u in (np.clip(log_ratio, *reach), *np.linspace(*reach, 4))]
    found = curve_fit.solve(curves, own.loss_N, remove_MN, np.array(starts))
    slope_MP = remove_MN @ curves.evaluate(found.x_P[None])[1][0]
    covariance_PP = np.linalg.inv(slope_MP.T @ slope_MP + curves.prior_PP.T @ curves.prior_PP)
    solved = Solved(curves, own.loss_N, remove_MN, found.x_P, found.objective, covariance_PP)
    return OwnCurve(solved, float(np.log(own.size_N[0])), law.multipliers(weight_3, confidence))


def shape_of(
    located: Located, level: float, tie_nats: float, unit: str = "nats"
) -> tuple[Shape, str]:
    """The shape of a group's curve and why.

    level: of the tests, with the number of curves allowed for. unit: of differences, for the reason.
    """
    if located.means is None:
        return (
            "not_identifiable",
            "the noise of the runs is not known; add seeds, or state noise_sd",
        )
    return judge(located.means, level, tie_nats, unit)


def judge(means: Means, level: float, tie_nats: float, unit: str = "nats") -> tuple[Shape, str]:
    """The shape of some means and why; arguments as in `shape_of`."""
    if len(means.size_U) < 3:
        return "not_identifiable", f"{len(means.size_U)} teacher size(s), and a shape needs three"
    n, mean_U, covariance_UU, df = len(means.size_U), means.mean_U, means.covariance_UU, means.df
    span = float(np.ptp(mean_U))
    alpha = (1 - level) / 2
    if span <= tie_nats:
        return "flat", f"all teachers lie within {span:.4f} {unit}"
    p_equal = _p_equal(mean_U, covariance_UU, df)
    if p_equal >= alpha:
        contrast = covariance_UU.diagonal()[:, None] + covariance_UU.diagonal() - 2 * covariance_UU
        blind = stats.t.isf(alpha, df) * float(np.sqrt(contrast.max()))
        if blind > RESOLUTION * tie_nats:
            return (
                "not_identifiable",
                f"differences up to {blind:.3f} {unit} would drown in the noise; add replicas",
            )
        return "flat", f"no teacher differs from another beyond noise (p = {p_equal:.2f})"
    inner = np.arange(1, n - 1)
    left = _above(means, 0, np.arange(1, n), alpha)
    right = _above(means, n - 1, np.arange(n - 1), alpha)
    if _above(means, 0, inner, alpha) and _above(means, n - 1, inner, alpha):
        best = inner[mean_U[inner].argmin()]
        return (
            "interior",
            f"the smallest teacher is {mean_U[0] - mean_U[best]:.3f} and the largest "
            f"{mean_U[-1] - mean_U[best]:.3f} {unit} worse than the one of "
            f"{about(means.size_U[best])}",
        )
    if left == right:
        return "not_identifiable", "the teachers differ, but without an order in their size"
    word, end, neighbour = ("larger", -1, n - 2) if left else ("smaller", 0, 1)
    if mean_U[end] == mean_U.min() and mean_U[neighbour] - mean_U[end] > tie_nats:
        return "monotone", f"the {word} the teacher, the better, up to the last one tried"
    return (
        "saturating",
        f"{word} teachers are better up to {about(means.size_U[mean_U.argmin()])}, beyond which the "
        "loss changes by no more than noise",
    )


def _p_equal(mean_U: np.ndarray, covariance_UU: np.ndarray, df: float) -> float:
    """F test that all means are equal."""
    contrast = np.diff(np.eye(len(mean_U)), axis=0)
    difference = contrast @ mean_U
    quadratic = difference @ np.linalg.solve(contrast @ covariance_UU @ contrast.T, difference)
    return float(stats.f.sf(quadratic / len(difference), len(difference), df))


def _above(means: Means, end: int, others: np.ndarray, alpha: float) -> bool:
    """Whether one mean lies significantly above the lowest of others (Bonferroni over them)."""
    variance = means.covariance_UU.diagonal()
    spread = np.sqrt(variance[end] + variance[others] - 2 * means.covariance_UU[end, others])
    limit = stats.t.isf(alpha / len(others), means.df)
    return bool((means.mean_U[end] - means.mean_U[others] > limit * spread).any())
