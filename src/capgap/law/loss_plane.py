"""Means of groups of runs, and a plane in log student size and log tokens through them."""

from __future__ import annotations

import math

import numpy as np
from scipy import stats

from capgap.law.table.run_means import SAME_LOG_SIZE


def group_means(
    value_N: np.ndarray, group_N: np.ndarray, weight_N: np.ndarray | None = None
) -> np.ndarray:
    """Mean of every group, (G,). group_N: index of each value's group."""
    weighted_N = value_N if weight_N is None else weight_N * value_N
    return np.bincount(group_N, weighted_N) / np.bincount(group_N, weight_N)


def predict_plane(
    log_G2: np.ndarray, value_G: np.ndarray, at_2: np.ndarray, confidence: float
) -> tuple[float, float | None]:
    """(value of one more group, half width of its prediction interval), by ordinary least squares.

    log_G2, at_2: log size and log tokens of the groups, and of the one that is predicted; what does not
    vary is left out. The half width is None without a degree of freedom.
    """
    use, centre = np.ptp(log_G2, axis=0) > SAME_LOG_SIZE, log_G2.mean(axis=0)
    design = np.column_stack([np.ones(len(log_G2)), (log_G2 - centre)[:, use]])
    row = np.concatenate([[1.0], (at_2 - centre)[use]])
    fitted, _, rank, _ = np.linalg.lstsq(design, value_G, rcond=1e-8)
    value, df = float(row @ fitted), len(value_G) - int(rank)
    if df < 1:
        return value, None
    sd = math.sqrt(float(np.sum((value_G - design @ fitted) ** 2)) / df)
    spread = math.sqrt(1 + float(row @ np.linalg.pinv(design.T @ design) @ row))
    return value, float(stats.t.ppf((1 + confidence) / 2, df)) * sd * spread
