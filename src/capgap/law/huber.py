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
OPEN = 1e-7  # a direction this much flatter than the steepest one counts as open

Predict = Callable[[np.ndarray], np.ndarray]  # P constants -> N log losses; complex-safe


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


def gradient(predict: Predict, theta_P: np.ndarray) -> np.ndarray:
    """Derivatives of the log losses by the constants, (N, P)."""
    columns = []
    for p in range(len(theta_P)):
        moved_P = theta_P.astype(complex)
        moved_P[p] += 1j * STEP
        columns.append(np.imag(predict(moved_P)) / STEP)
    return np.stack(columns, axis=1)


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
    start_G = np.array([huber(predict(theta) - log_loss_N) for theta in grid_GP])
    start_G = np.where(np.isfinite(start_G), start_G, np.inf)

    def objective(theta_P: np.ndarray) -> tuple[float, np.ndarray]:
        residual_N = predict(theta_P) - log_loss_N
        pull_N = np.clip(residual_N / DELTA, -1, 1) / DELTA
        return huber(residual_N), pull_N @ gradient(predict, theta_P)

    ends = [
        minimize(
            objective,
            grid_GP[g],
            jac=True,
            method="L-BFGS-B",
            bounds=list(zip(low_P - 5, high_P + 5, strict=True)),
            options={"maxiter": 300, "ftol": 1e-12},
        )
        for g in np.argsort(start_G, kind="stable")[:tries]
    ]
    best = min(ends, key=lambda end: end.fun)
    agreeing = sum(end.fun <= 1.01 * best.fun + 1e-9 for end in ends)
    polished = least_squares(
        lambda theta: predict(theta) - log_loss_N,
        best.x,
        jac=lambda theta: gradient(predict, theta),
        bounds=(low_P - 5 - 1e-9, high_P + 5 + 1e-9),
        loss="huber",
        f_scale=DELTA,
        x_scale="jac",
        ftol=1e-14,
        xtol=1e-14,
        gtol=1e-15,
        max_nfev=400,
    )
    theta_P, success, message = best.x, bool(best.success), str(best.message)
    if huber(predict(polished.x) - log_loss_N) <= best.fun:
        theta_P, success, message = polished.x, polished.status > 0, polished.message
    residual_N = predict(theta_P) - log_loss_N
    return Fitted(
        theta_P=theta_P,
        status="converged" if success else "not_converged",
        message=message,
        rms_log=float(np.sqrt(np.mean(residual_N**2))),
        agreeing=int(agreeing),
        weakest_P=_open_direction(gradient(predict, theta_P)),
    )


def _open_direction(jacobian_NP: np.ndarray) -> np.ndarray | None:
    """The flattest direction of the constants if the data leave it open, else None."""
    _, singular, rows = np.linalg.svd(jacobian_NP, full_matrices=True)
    if len(singular) < jacobian_NP.shape[1] or singular[-1] < OPEN * singular[0]:
        return rows[-1]
    return None
