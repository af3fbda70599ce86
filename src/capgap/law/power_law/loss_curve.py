"""
The curve of student loss over teacher size, and its derivatives.

With u = log(T / S), u* = log(T* / S) and x = u - u*, a student's loss lies above its level by

    f = C E_k(x),   C = exp(log_c + k (u* - u0)),   E_k(x) = (exp(k x) - k x - 1) / k^2

E_k has its minimum 0 at x = 0, second derivative 1 and third derivative k there; E_0 = x^2 / 2. For
k < 0 the curve is steep toward small teachers and nearly straight toward large ones, as a teacher's
help that saturates as (T/S)^k and a damage that grows as log(T/S) would make it. The factor
exp(k (u* - u0)) keeps that help equal for all students and budgets, so that only the slope of the
damage moves u*.

All functions broadcast.
"""

from __future__ import annotations

import numpy as np

SERIES = 0.05  # of |k x|, below which a series is more accurate than the formula
FAR = 40.0  # of |k x|, beyond which the exponential would only overflow


def bowl(x: np.ndarray, k: np.ndarray) -> np.ndarray:
    """E_k(x)."""
    return x**2 * _phi2(k * x)


def above_lowest(x: np.ndarray, lean: np.ndarray, log_c: np.ndarray, k: np.ndarray) -> np.ndarray:
    """f, nats; lean: u* - u0."""
    return np.exp(np.clip(log_c + k * lean, -60, 30)) * bowl(x, k)


def bowl_by_k(x: np.ndarray, k: np.ndarray) -> np.ndarray:
    """Derivative of E_k(x) by k."""
    return x**3 * _phi2_slope(k * x)


def _phi2(z: np.ndarray) -> np.ndarray:
    """(exp(z) - z - 1) / z^2."""
    small = np.abs(z) < SERIES
    safe = np.where(small, 1.0, np.clip(z, -np.inf, FAR))
    series = 1 / 2 + z * (1 / 6 + z * (1 / 24 + z * (1 / 120 + z / 720)))
    return np.where(small, series, (np.expm1(safe) - safe) / safe**2)


def _phi2_slope(z: np.ndarray) -> np.ndarray:
    """Derivative of `_phi2`."""
    small = np.abs(z) < SERIES
    safe = np.where(small, 1.0, np.clip(z, -np.inf, FAR))
    series = 1 / 6 + z * (1 / 12 + z * (1 / 40 + z / 180))
    full = (safe * np.exp(safe) - 2 * np.expm1(safe) + safe) / safe**3
    return np.where(small, series, full)
