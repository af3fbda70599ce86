"""
Fit a formula to losses in log space: Huber loss, L-BFGS from many starts, and a status.

Laws of the Chinchilla kind have long, curved valleys. Gradients are exact (complex-step
derivatives, Squire and Trapp 1998), L-BFGS runs from the best of a Sobol grid of starts, and the
best end point is polished by a trust-region least-squares solver with the same loss. A fit says
whether the solver converged and which directions of its constants the runs leave open; nothing
stops silently.

Shapes: N cells, P free constants, G starts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.optimize import least_squares, minimize
from scipy.stats import qmc

DELTA = 1e-4  # of the Huber loss, in log loss (arXiv 2502.08606)
STARTS = 256  # points of the grid, a power of two
TRIES = 6  # of them from which L-BFGS runs
STEP = 1e-30  # of the complex step; no difference is taken, so it may be this small
FIRST, LAST = 80, 2000  # iterations of L-BFGS from a start, and from the polished end
SETTLED = 1e-6  # share of the objective; a restart that gains less has converged
OPEN = 1e-7  # a direction this much flatter than the steepest one counts as open

# P constants -> N log losses; complex-safe, and (P, C, 1) -> (C, N) for C copies of the constants
Predict = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Fitted:
    """The end point of a fit."""

    theta_P: np.ndarray
    status: Literal["converged", "not_converged"]
    message: str
    rms_log: float  # root mean square of log(predicted / observed)
    agreeing: int  # starts, of TRIES, that ended within 1 % of the lowest objective
    weakest_P: np.ndarray | None  # unit vector of an open direction, None where all are closed


def softplus(z: np.ndarray) -> np.ndarray:
    """log(1 + exp(z)) without overflow, complex-safe."""
    positive = np.real(z) > 0
    small = np.where(positive, -z, z)
    return np.where(positive, z, 0) + np.log1p(np.exp(small))


def logadd(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """log(exp(a) + exp(b)), complex-safe; a and b finite, or one of them -inf."""
    swap = np.real(a) < np.real(b)
    top, other = np.where(swap, b, a), np.where(swap, a, b)
    none = np.isneginf(np.real(other))
    return top + np.where(none, 0, softplus(np.where(none, 0, other - top)))


def with_gradient(predict: Predict, theta_P: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log losses (N,) and their derivatives by the constants (N, P), from one evaluation."""
    p = len(theta_P)
    moved_PC1 = (theta_P[:, None] + 1j * STEP * np.eye(p))[:, :, None]
    value_CN = predict(moved_PC1)
    return np.real(value_CN[0]), np.imag(value_CN).T / STEP


def huber(residual_N: np.ndarray) -> float:
    """Sum of Huber losses in units of DELTA squared; of order 1 where residuals are near DELTA."""
    z_N = np.abs(residual_N) / DELTA
    return float(np.where(z_N <= 1, z_N**2 / 2, z_N - 0.5).sum())


def fit_huber(
    predict: Predict, log_loss_N: np.ndarray, box_P2: np.ndarray, tries: int = TRIES
) -> Fitted:
    """Fit constants to log losses. box_P2: limits of the grid of starts; the fit may leave it."""
    low_P, high_P = box_P2.T
    grid_GP = qmc.scale(qmc.Sobol(len(box_P2), seed=0).random(STARTS), low_P, high_P)
    start_G = np.array([huber(row_N) for row_N in predict(grid_GP.T[:, :, None]) - log_loss_N])
    start_G = np.where(np.isfinite(start_G), start_G, np.inf)

    def objective(theta_P: np.ndarray) -> tuple[float, np.ndarray]:
        value_N, jacobian_NP = with_gradient(predict, theta_P)
        residual_N = value_N - log_loss_N
        pull_N = np.clip(residual_N / DELTA, -1, 1) / DELTA
        return huber(residual_N), pull_N @ jacobian_NP

    def run(start_P: np.ndarray, most: int):
        return minimize(
            objective,
            np.clip(start_P, low_P - 5, high_P + 5),
            jac=True,
            method="L-BFGS-B",
            bounds=list(zip(low_P - 5, high_P + 5, strict=True)),
            options={"maxiter": most, "maxfun": 2 * most, "ftol": 1e-10},
        )

    ends = [run(grid_GP[g], FIRST) for g in np.argsort(start_G, kind="stable")[:tries]]
    best = min(ends, key=lambda end: end.fun)
    agreeing = sum(end.fun <= 1.01 * best.fun + 1e-9 for end in ends)
    polished = least_squares(
        lambda theta: predict(theta) - log_loss_N,
        best.x,
        jac=lambda theta: with_gradient(predict, theta)[1],
        bounds=(low_P - 5 - 1e-9, high_P + 5 + 1e-9),
        loss="huber",
        f_scale=DELTA,
        x_scale="jac",
        ftol=1e-14,
        xtol=1e-14,
        gtol=1e-15,
        max_nfev=200,
    )
    theta_P = best.x
    success, message = polished.status > 0, polished.message
    if huber(predict(polished.x) - log_loss_N) <= best.fun:
        theta_P = polished.x
    if not success or theta_P is best.x:
        # where residuals are far above DELTA the loss is a sum of absolute values, on which the
        # trust region may creep: L-BFGS has the last word
        before, last = objective(theta_P)[0], run(theta_P, LAST)
        theta_P, success, message = last.x, bool(last.success), str(last.message)
        if not success and before - last.fun <= SETTLED * before:
            success, message = True, f"no descent is left from a fresh start there ({message})"
    residual_N = predict(theta_P) - log_loss_N
    return Fitted(
        theta_P=theta_P,
        status="converged" if success else "not_converged",
        message=message,
        rms_log=float(np.sqrt(np.mean(residual_N**2))),
        agreeing=int(agreeing),
        weakest_P=_open_direction(with_gradient(predict, theta_P)[1]),
    )


def _open_direction(jacobian_NP: np.ndarray) -> np.ndarray | None:
    """The flattest direction of the constants if the data leave it open, else None."""
    _, singular, rows = np.linalg.svd(jacobian_NP, full_matrices=True)
    if len(singular) < jacobian_NP.shape[1] or singular[-1] < OPEN * singular[0]:
        return rows[-1]
    return None
