"""
A straight line through optima, some of which are censored (Tobin 1958).

An optimum inside the grid is a value. An optimum at its edge is censored: T* lies below the second
smallest or above the second largest teacher. Leaving the censored ones out would bias the line,
because with scatter the optima that happen to fall inside the grid are not a fair sample. With
normal scatter sd about the line, the likelihood of a value is its density and that of a bound is the
probability beyond it:

  log L = sum_values [-log sd - r^2 / 2] + sum_bounds log Phi(+-r),   r = (T* - a - b S) / sd

In Olsen's parameters h = 1/sd, (a, b)/sd it is concave (Olsen 1978), so Newton's method from any
start finds its one maximum. The interval of a coefficient holds the values whose profile likelihood
lies within n log(1 + t^2 / (n - p)) / 2 of the maximum, n the optima inside the grid, p the
coefficients and t Student's quantile at n - p degrees of freedom. Without bounds both estimate and
interval are exactly those of least squares.

Shapes: I values, C bounds, P coefficients.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats
from scipy.special import log_ndtr

from capgap.errors import CapgapError

LOG_ROOT_2PI = np.log(2 * np.pi) / 2
FAR = 1e6  # standard errors beyond which an interval counts as open


@dataclass(frozen=True)
class Bounds:
    """Censored rows of the design: above `limit_C` if `above_C`, otherwise below it."""

    design_CP: np.ndarray
    limit_C: np.ndarray
    above_C: np.ndarray


@dataclass(frozen=True)
class CensoredFit:
    """Coefficients (P,), the scatter's standard deviation and the maximal log likelihood."""

    design_IP: np.ndarray
    value_I: np.ndarray
    bounds: Bounds
    coefficient_P: np.ndarray
    sd: float
    log_likelihood: float

    @property
    def df(self) -> int:
        """Degrees of freedom of the scatter."""
        n, p = self.design_IP.shape
        return n - p

    @property
    def unbiased_sd(self) -> float:
        """Scatter about the line, as least squares estimates it."""
        return self.sd * float(np.sqrt(len(self.value_I) / self.df))

    def interval(self, weight_P: np.ndarray, confidence: float) -> tuple[float, float]:
        """Profile likelihood interval of a weighted sum of the coefficients; open ends are infinite."""
        weight_P = np.asarray(weight_P, dtype=float)
        value = float(weight_P @ self.coefficient_P)
        t = stats.t.ppf((1 + confidence) / 2, self.df)
        n = len(self.value_I)
        drop = n / 2 * np.log1p(t**2 / self.df)
        scale = self.unbiased_sd * float(
            np.sqrt(weight_P @ np.linalg.pinv(self.design_IP.T @ self.design_IP) @ weight_P)
        )
        if scale == 0 or not len(self.bounds.limit_C):
            return value - t * scale, value + t * scale
        # coordinates in which the weighted sum is the first coefficient
        basis_PP = np.column_stack([weight_P / (weight_P @ weight_P), _complement(weight_P)])
        values, bounds = self.design_IP @ basis_PP, self.bounds.design_CP @ basis_PP

        def short(number: float) -> float:
            fixed = Bounds(
                bounds[:, 1:], self.bounds.limit_C - bounds[:, 0] * number, self.bounds.above_C
            )
            inner = _maximise(values[:, 1:], self.value_I - values[:, 0] * number, fixed)
            return self.log_likelihood - inner[2] - drop

        def end(sign: float) -> float:
            reach = t * scale
            while short(value + sign * reach) < 0:
                reach *= 2
                if reach > FAR * scale:
                    return sign * np.inf
            if reach == t * scale:
                return optimize.brentq(short, value, value + sign * reach, xtol=1e-8 * scale)
            return optimize.brentq(
                short, value + sign * reach / 2, value + sign * reach, xtol=1e-8 * scale
            )

        low, high = sorted(end(sign) for sign in (-1.0, 1.0))
        return float(low), float(high)


def fit_censored(design_IP: np.ndarray, value_I: np.ndarray, bounds: Bounds) -> CensoredFit:
    """The line of largest likelihood.

    Raises CapgapError if the values alone leave no degree of freedom for the scatter, or if
    the maximum is not found.
    """
    n, p = design_IP.shape
    if n <= p or np.linalg.matrix_rank(design_IP) < p:
        raise CapgapError(f"{n} optima inside the grid are too few for {p} coefficients")
    coefficient_P, sd, log_likelihood = _maximise(design_IP, value_I, bounds)
    return CensoredFit(design_IP, value_I, bounds, coefficient_P, sd, log_likelihood)


def _maximise(
    design_IP: np.ndarray, value_I: np.ndarray, bounds: Bounds
) -> tuple[np.ndarray, float, float]:
    """(coefficients, sd, log likelihood) at the maximum, by Newton's method in Olsen's parameters."""
    n, p = design_IP.shape
    start_P = np.linalg.pinv(design_IP) @ value_I if p else np.zeros(0)
    residual_I = value_I - design_IP @ start_P
    sd = float(np.sqrt(residual_I @ residual_I / n))
    spread = float(np.abs(value_I).max(initial=0)) or 1.0
    if sd <= 1e-12 * spread:  # exactly on a line: bounds beyond it cannot be weighed
        sd = 1e-12 * spread
    sign_C = np.where(bounds.above_C, 1.0, -1.0)
    if not len(sign_C):
        return start_P, sd, _log_likelihood(residual_I / sd, np.zeros(0), 1 / sd)
    # unit scatter at the start, so that steps are of order one
    value_I, limit_C = value_I / sd, bounds.limit_C / sd

    def parts(theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        r_I = theta[0] * value_I - design_IP @ theta[1:]
        z_C = sign_C * (bounds.design_CP @ theta[1:] - theta[0] * limit_C)
        return r_I, z_C

    def objective(theta: np.ndarray) -> float:
        if theta[0] <= 0:
            return np.inf
        return -_log_likelihood(*parts(theta), theta[0])

    def gradient_and_hessian(theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        r_I, z_C = parts(theta)
        by_I = np.column_stack([value_I, -design_IP])
        by_C = sign_C[:, None] * np.column_stack([-limit_C, bounds.design_CP])
        mills_C = np.exp(-(z_C**2) / 2 - LOG_ROOT_2PI - log_ndtr(z_C))
        gradient = by_I.T @ r_I - by_C.T @ mills_C
        gradient[0] -= n / theta[0]
        hessian = by_I.T @ by_I + (by_C * (mills_C * (mills_C + z_C))[:, None]).T @ by_C
        hessian[0, 0] += n / theta[0] ** 2
        return gradient, hessian

    theta = np.concatenate([[1.0], start_P / sd])
    now = objective(theta)
    for _ in range(200):
        gradient, hessian = gradient_and_hessian(theta)
        step = np.linalg.solve(hessian, gradient)
        gain = float(gradient @ step)
        if gain < 1e-18 * max(1.0, abs(now)):
            break
        size = 1.0
        while (value := objective(theta - size * step)) > now - 1e-4 * size * gain:
            size /= 2
            if size < 1e-12:
                break
        if size < 1e-12:
            break
        theta, now = theta - size * step, value
    if gain > 1e-6 * max(1.0, abs(now)):
        raise CapgapError("the censored line did not converge; fit it without the bounded optima")
    return theta[1:] / theta[0] * sd, sd / theta[0], -now - n * np.log(sd)


def _log_likelihood(r_I: np.ndarray, z_C: np.ndarray, h: float) -> float:
    """Log likelihood of standardised residuals and bounds, at scatter 1/h."""
    constant = len(r_I) * (np.log(h) - LOG_ROOT_2PI)
    return float(constant - r_I @ r_I / 2 + log_ndtr(z_C).sum())


def _complement(weight_P: np.ndarray) -> np.ndarray:
    """Orthonormal columns orthogonal to a vector, (P, P - 1)."""
    return np.linalg.svd(weight_P[None])[2][1:].T
