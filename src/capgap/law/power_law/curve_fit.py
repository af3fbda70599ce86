"""
The joint fit of all runs, with the best teacher size T*(S, D) as its parameter.

    loss = level(S, D) + F(log(T/S) - u*),   u* = log(T*/S) = alpha + (a - 1) s + b d

with s = log S and d = log D about their means, so that T* ~ S^a D^b, and F the curve of `loss_curve.py`.
Every group of student and budget has a level of its own. Where the students or budgets of a study
do not vary, or vary in proportion, only some combinations of alpha, a and b can be known: u* is then
written in a basis of those (`Axes.basis_3Q`), and any other combination is reported as undetermined.

Errors have a covariance V (`noise.py`). Levels are removed by projection, the rest is found by
Levenberg-Marquardt steps from many starts at once. Normal priors hold what the runs leave
open: a weak one of k, and very wide ones of alpha, a and b.

Shapes: N runs, M runs less groups, P parameters, Q combinations of (alpha, a, b), B starts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from capgap.errors import CapgapError
from capgap.law.power_law.loss_curve import bowl, bowl_by_k
from capgap.law.table.grouped_runs import GroupedRuns

K_PRIOR = (-1.0, 1.0)  # mean and standard deviation
COEFFICIENT_SD = (6.0, 6.0, 6.0)  # of alpha about the middle of the ladder, of a about 1, of b
LOG_C_PRIOR = (np.log(0.1), 5.0)
STEPS = 60  # Levenberg-Marquardt steps at most
SCREENING_STEPS = 6  # steps after which only the FINALISTS lowest objectives continue
FINALISTS = 8
SPREAD = 0.02  # least standard deviation of a combination of log S and log D that counts as varied


@dataclass(frozen=True)
class Axes:
    """The coordinates of u*: the centre of log S and log D, and the combinations the runs determine."""

    centre: np.ndarray  # log S, log D
    basis_3Q: np.ndarray  # orthonormal columns in (alpha, a - 1, b) that the runs determine
    middle: float  # of the log ratios tried

    def coordinates(self, size: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """(1, s, d) of students and budgets, (..., 3)."""
        s, d = np.broadcast_arrays(np.log(size) - self.centre[0], np.log(tokens) - self.centre[1])
        return np.stack([np.ones_like(s), s, d], axis=-1)

    def determines(self, weight_3: np.ndarray) -> bool:
        """Whether the runs determine a weighted sum of (alpha, a - 1, b)."""
        rest_3 = weight_3 - self.basis_3Q @ (self.basis_3Q.T @ weight_3)
        return bool(np.abs(rest_3).max() <= 4 * SPREAD * max(1.0, np.abs(weight_3).max()))


def axes_of(runs: GroupedRuns) -> Axes:
    """Axes about the mean of the groups' log sizes and log tokens."""
    first = runs.first_G
    log_G2 = np.log(np.column_stack([runs.size_N[first], runs.tokens_N[first]]))
    centre = log_G2.mean(axis=0)
    _, width, direction = np.linalg.svd(log_G2 - centre, full_matrices=False)
    varied = width / np.sqrt(len(first)) > SPREAD
    basis_3Q = np.zeros((3, 1 + int(varied.sum())))
    basis_3Q[0, 0] = 1
    basis_3Q[1:, 1:] = direction[: len(varied)][varied].T
    return Axes(centre, basis_3Q, float(np.median(runs.log_ratio_N)))


class Curves:
    """Predicted losses above the groups' levels, and their derivatives, for many parameter vectors.

    A vector holds the Q coefficients of u*, log c and k.
    """

    def __init__(
        self,
        runs: GroupedRuns,
        axes: Axes,
        log_c_prior: tuple[float, float] = LOG_C_PRIOR,
        k_prior: tuple[float, float] = K_PRIOR,
    ):
        self.axes = axes
        self.design_NQ = axes.coordinates(runs.size_N, runs.tokens_N) @ axes.basis_3Q
        self.log_ratio_N = runs.log_ratio_N
        q = axes.basis_3Q.shape[1]
        self.q, self.p = q, q + 2
        prior_3 = np.array([axes.middle, 0.0, 0.0])
        weight_PP = np.zeros((self.p, self.p))
        weight_PP[:q, :q] = axes.basis_3Q.T @ np.diag(1 / np.square(COEFFICIENT_SD)) @ axes.basis_3Q
        others = [log_c_prior, k_prior]
        weight_PP[range(q, self.p), range(q, self.p)] = [1 / sd**2 for _, sd in others]
        self.prior_PP = np.linalg.cholesky(weight_PP).T  # prior residuals are prior_PP @ (x - mean)
        self.prior_mean_P = np.concatenate([axes.basis_3Q.T @ prior_3, [m for m, _ in others]])

    def evaluate(self, x_BP: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(F (B, N), its derivatives (B, N, P))."""
        q = self.q
        star_BN = x_BP[:, :q] @ self.design_NQ.T
        log_c, k = x_BP[:, q, None], x_BP[:, q + 1, None]
        lean_BN = star_BN - self.axes.middle
        scale_BN = np.exp(np.clip(log_c + k * lean_BN, -60, 30))
        x_BN = self.log_ratio_N - star_BN
        e_BN = bowl(x_BN, k)
        f_BN = scale_BN * e_BN
        slope_BNP = np.empty((*f_BN.shape, self.p))
        slope_BNP[..., :q] = (-scale_BN * x_BN)[..., None] * self.design_NQ
        slope_BNP[..., q] = f_BN
        slope_BNP[..., q + 1] = f_BN * lean_BN + scale_BN * bowl_by_k(x_BN, k)
        return f_BN, slope_BNP

    def objective(self, x_BP: np.ndarray, loss_N: np.ndarray, remove_MN: np.ndarray) -> np.ndarray:
        """Squares of whitened residuals and of prior residuals, (B,)."""
        rest_BM = (loss_N - self.evaluate(x_BP)[0]) @ remove_MN.T
        prior_BP = (x_BP - self.prior_mean_P) @ self.prior_PP.T
        return (rest_BM**2).sum(axis=1) + (prior_BP**2).sum(axis=1)


def remover(runs: GroupedRuns, covariance_NN: np.ndarray) -> np.ndarray:
    """(M, N): whitens errors of a covariance and removes the groups' levels."""
    white_NN = np.linalg.inv(np.linalg.cholesky(covariance_NN))
    levels_NG = runs.group_N[:, None] == np.arange(runs.group_N.max() + 1)
    basis = np.linalg.qr(white_NN @ levels_NG, mode="complete")[0][:, levels_NG.shape[1] :]
    return basis.T @ white_NN


@dataclass(frozen=True)
class Solution:
    """Parameters of the lowest objective, P, with the objective: squares of runs and of priors."""

    x_P: np.ndarray
    objective: float


def solve(
    curves: Curves,
    loss_N: np.ndarray,
    remove_MN: np.ndarray,
    starts_BP: np.ndarray,
    fixed: np.ndarray | None = None,
) -> Solution:
    """Lowest objective from some starts, by Levenberg-Marquardt steps in all of them at once.

    starts_BP: parameters to start from. fixed: directions (P, F) in which parameters keep their
    starting values. Raises CapgapError if no start leads to a finite objective.
    """
    free = np.eye(curves.p) if fixed is None else np.linalg.svd(fixed.T)[2][fixed.shape[1] :].T
    target_M = remove_MN @ loss_N
    x_BP = starts_BP.copy()

    def parts(x_BP: np.ndarray):
        f_BN, slope_BNP = curves.evaluate(x_BP)
        rest_BM = target_M - f_BN @ remove_MN.T
        prior_BP = (x_BP - curves.prior_mean_P) @ curves.prior_PP.T
        return rest_BM, prior_BP, slope_BNP, (rest_BM**2).sum(1) + (prior_BP**2).sum(1)

    rest_BM, prior_BP, slope_BNP, now_B = parts(x_BP)
    damp_B = np.full(len(x_BP), 1e-2)
    prior_F = curves.prior_PP @ free
    for step in range(STEPS):
        if step == SCREENING_STEPS and len(x_BP) > FINALISTS:
            best_B = np.argsort(now_B, kind="stable")[:FINALISTS]
            x_BP, rest_BM, prior_BP, slope_BNP, now_B, damp_B = (
                values[best_B] for values in (x_BP, rest_BM, prior_BP, slope_BNP, now_B, damp_B)
            )
        j_BMF = remove_MN @ (slope_BNP @ free)
        normal_BFF = np.swapaxes(j_BMF, 1, 2) @ j_BMF + prior_F.T @ prior_F
        down_BF = np.einsum("bmf,bm->bf", j_BMF, rest_BM) - prior_BP @ prior_F
        diagonal_BF = np.einsum("bff->bf", normal_BFF)
        damped = normal_BFF + np.eye(free.shape[1]) * (damp_B[:, None] * diagonal_BF)[:, None, :]
        step_BF = np.linalg.solve(damped, down_BF[..., None])[..., 0]
        trial_BP = x_BP + np.clip(step_BF, -1.5, 1.5) @ free.T
        trial = parts(trial_BP)
        better_B = trial[3] < now_B
        gain_B = np.where(better_B, now_B - trial[3], 0.0)
        x_BP = np.where(better_B[:, None], trial_BP, x_BP)
        rest_BM = np.where(better_B[:, None], trial[0], rest_BM)
        prior_BP = np.where(better_B[:, None], trial[1], prior_BP)
        slope_BNP = np.where(better_B[:, None, None], trial[2], slope_BNP)
        now_B = np.where(better_B, trial[3], now_B)
        damp_B = np.clip(np.where(better_B, damp_B / 4, damp_B * 6), 1e-9, 1e9)
        alive_B = ~((better_B & (gain_B < 1e-9 * (1 + now_B))) | (damp_B > 1e8))
        if not alive_B.any():
            break
    best = int(np.argmin(now_B))
    if not np.isfinite(now_B[best]):
        raise CapgapError("the joint fit of the law found no finite solution; look at the losses")
    return Solution(x_BP[best], float(now_B[best]))


def starting_points(curves: Curves, runs: GroupedRuns) -> np.ndarray:
    """Starts over the range of teachers, for several exponents, skews and curvatures, (B, P)."""
    low, high = np.percentile(runs.log_ratio_N, [0, 100])
    coefficients = [
        curves.axes.basis_3Q.T @ np.array([alpha, a, b])
        for alpha in np.linspace(low - 0.5, high + 0.5, 5)
        for a, b in ((0.0, 0.0), (-0.6, 0.6), (0.0, 1.5))
    ]
    rest = [[log_c, k] for log_c in (-1.5, -3.5) for k in (-1.0, 0.3)]
    points = np.array([[*c, *r] for c in coefficients for r in rest])
    return np.unique(points, axis=0)
