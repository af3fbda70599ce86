"""
Fit a formula to losses in log space from many starts, with a robust loss and a status.

Laws of the Chinchilla kind have long, curved valleys, so a trust-region least-squares solver runs from
the best points of a Sobol grid, and from the best end until it converges. Its loss is soft L1 with the
scale of a run's noise: the Huber loss of 1e-4 of arXiv 2502.08606 makes of noisy runs a sum of absolute
values, on which the solver creeps. Derivatives are exact, by the complex step for all constants at once
(Squire and Trapp 1998); scipy's own jac='cs' evaluates them one by one and takes twice as long. A fit
reports whether the solver converged and which directions of its constants the runs leave open.

Shapes: N cells, P free constants, G starts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.optimize import OptimizeResult, least_squares
from scipy.stats import qmc

SCALE = 5e-3  # of soft L1, in log loss
STARTS = 256  # points of the grid, a power of two
TRIES = 6  # of them from which the solver runs
STEP = 1e-30  # of the complex step; no difference is taken, so it may be this small
FIRST, LAST = 40, 1000  # evaluations from a start, and from the best end
ROUGH, FINE = 1e-6, 1e-12  # relative changes at which they have converged
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
    agreeing: int  # starts that ended within 1 % of the lowest objective
    weakest_P: np.ndarray | None  # unit vector of an open direction, None if all are closed


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


def jacobian(predict: Predict, theta_P: np.ndarray) -> np.ndarray:
    """Derivatives of the log losses by the constants, (N, P), from one evaluation."""
    moved_PC1 = (theta_P[:, None] + 1j * STEP * np.eye(len(theta_P)))[:, :, None]
    return np.imag(predict(moved_PC1)).T / STEP


def fit_logs(
    predict: Predict,
    log_loss_N: np.ndarray,
    box_P2: np.ndarray,
    near_P: np.ndarray | None = None,
) -> Fitted:
    """Fit constants to log losses.

    box_P2: limits of the grid of starts; the fit may leave it by 5. near_P: the only start, for a
    refit of almost the same runs.
    """
    low_P, high_P = box_P2.T

    def run(start_P: np.ndarray, most: int, tolerance: float) -> OptimizeResult:
        return least_squares(
            lambda theta_P: predict(theta_P) - log_loss_N,
            np.clip(start_P, low_P - 5, high_P + 5),
            jac=lambda theta_P: jacobian(predict, theta_P),
            bounds=(low_P - 5 - 1e-9, high_P + 5 + 1e-9),
            loss="soft_l1",
            f_scale=SCALE,
            x_scale="jac",
            ftol=tolerance,
            xtol=tolerance,
            gtol=1e-14,
            max_nfev=most,
        )

    if near_P is not None:
        ends = [run(near_P, LAST, ROUGH)]
    else:
        grid_GP = qmc.scale(qmc.Sobol(len(box_P2), seed=0).random(STARTS), low_P, high_P)
        away_G = np.abs(predict(grid_GP.T[:, :, None]) - log_loss_N).sum(axis=1)
        order_G = np.argsort(np.where(np.isfinite(away_G), away_G, np.inf), kind="stable")
        ends = [run(grid_GP[g], FIRST, ROUGH) for g in order_G[:TRIES]]
    best = min(ends, key=lambda end: end.cost)
    agreeing = sum(end.cost <= 1.01 * best.cost + 1e-12 for end in ends)
    if near_P is None:
        best = run(best.x, LAST, FINE)
    return Fitted(
        theta_P=best.x,
        status="converged" if best.status > 0 else "not_converged",
        message=str(best.message),
        rms_log=float(np.sqrt(np.mean(best.fun**2))),
        agreeing=int(agreeing),
        weakest_P=_open_direction(jacobian(predict, best.x)),
    )


def _open_direction(jacobian_NP: np.ndarray) -> np.ndarray | None:
    """The flattest direction of the constants if the data leave it open, else None."""
    _, singular, rows = np.linalg.svd(jacobian_NP, full_matrices=True)
    if len(singular) < jacobian_NP.shape[1] or singular[-1] < OPEN * singular[0]:
        return rows[-1]
    return None
