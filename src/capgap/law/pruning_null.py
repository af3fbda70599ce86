"""
Null models: the loss of a student explained by its start, not by its teacher.

Two of them. The P2 law (arXiv 2411.10272) was fitted to pruned models that train on without a
teacher; it knows what was pruned and for how long the rest was trained:

  L = L0 + (1/rho)^gamma (1/N0)^delta (Nc/N0^alpha + Dc/D^beta + E)

L0 and N0 are loss (nats per token) and size (parameters without embeddings) of the model that was
pruned, rho = 1 - S/N0 the share cut away, D tokens of training. Signs of gamma and delta are free.
Small studies cannot tell the terms of the bracket apart: see `free_constants`.

The start test needs no formula: within each student size and budget, how much of the differences
does the loss of the start (before training) explain, and does the size of the teacher explain more?

Shapes: N cells (a mean over seeds), P free constants.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import stats

from capgap.law.huber import TRIES, Fitted, fit_huber, logadd
from capgap.law.law_record import StartExplains

NAMES = ("gamma", "delta", "E", "Dc", "beta", "Nc", "alpha")
SIGNED = ("gamma", "delta")
BOX = {  # limits of the grid of starts; of the logarithm, save for the signed ones
    **{"gamma": (-3, 3), "delta": (-0.5, 0.5), "E": (-6, 4)},
    **{"Dc": (0, 14), "beta": (-2.3, 0.2), "Nc": (0, 12), "alpha": (-2.3, 0.2)},
}
ABSENT = {"gamma": 0.0, "delta": 0.0, "E": 0.0, "Dc": 0.0, "beta": 0.5, "Nc": 0.0, "alpha": 0.5}


def log_pruned(
    constants: dict[str, complex],
    source_loss_N: np.ndarray,
    source_N: np.ndarray,
    student_N: np.ndarray,
    tokens_N: np.ndarray,
) -> np.ndarray:
    """Log loss of pruned students after training; a constant of 0 drops its term."""
    c = constants
    absent = [name for name in ("E", "Dc", "Nc") if np.ndim(c[name]) == 0 and c[name] == 0]
    log_source_N = np.log(source_N)
    terms = [
        np.log(c[name]) - (c[power] * np.log(of_N) if power else 0)
        for name, power, of_N in (
            ("E", None, None),
            ("Dc", "beta", tokens_N),
            ("Nc", "alpha", source_N),
        )
        if name not in absent
    ]
    bracket_N = terms[0]
    for term in terms[1:]:
        bracket_N = logadd(bracket_N, term)
    damage_N = -c["gamma"] * np.log1p(-student_N / source_N) - c["delta"] * log_source_N
    return logadd(np.log(source_loss_N), damage_N + bracket_N)


def free_constants(sizes: int, budgets: int, sources: int, cells: int) -> list[str]:
    """Constants that a study may determine; the others drop their terms (ABSENT).

    One budget says nothing about D, two give a power law without floor, three a floor. The term
    in N0 alone is told from delta by many cells only.
    """
    free = ["E"] if budgets == 1 else ["Dc", "beta"]
    free += ["gamma"] * (sources >= 2) + ["delta"] * (sources >= 2 and sizes >= 2)
    free += ["E"] * (budgets >= 3)
    free += ["Nc", "alpha"] * (cells >= 3 * len(NAMES) and budgets >= 3 and sources >= 4)
    return [name for name in NAMES if name in free[: max(1, cells // 2)]]


def fit_pruned(
    source_loss_N: np.ndarray,
    source_N: np.ndarray,
    student_N: np.ndarray,
    tokens_N: np.ndarray,
    loss_N: np.ndarray,
    free: list[str],
    tries: int = TRIES,
) -> tuple[dict[str, float], Fitted]:
    """Constants of the P2 law, and the fit."""

    def constants(theta_P: np.ndarray) -> dict:
        values = {
            name: theta if name in SIGNED else np.exp(theta)
            for name, theta in zip(free, theta_P, strict=True)
        }
        return ABSENT | values

    def predict(theta_P: np.ndarray) -> np.ndarray:
        return log_pruned(constants(theta_P), source_loss_N, source_N, student_N, tokens_N)

    box_P2 = np.array([BOX[name] for name in free], dtype=float)
    fitted = fit_huber(predict, np.log(loss_N), box_P2, tries)
    return {name: float(v) for name, v in constants(fitted.theta_P).items()}, fitted


def start_test(cells: pd.DataFrame) -> StartExplains | None:
    """Compare start and teacher as explanations; `cells` as `rivals.cell_table` gives them.

    All arms with a teacher and a start loss enter, each weighted alike. None where the columns are
    missing or fewer than three degrees of freedom would remain.
    """
    if "start_loss" not in cells:
        return None
    use = cells.dropna(subset=["start_loss", "teacher_params"])
    group_N = use.groupby(["student", "tokens"]).ngroup().to_numpy()
    groups = len(np.unique(group_N))
    if len(use) - groups - 4 < 3:
        return None

    def within(values) -> np.ndarray:
        values = np.asarray(values, dtype=float)
        totals = np.bincount(group_N, values) / np.bincount(group_N)
        return values - totals[group_N]

    log_size = np.log((use["teacher_params"] / use["student_params"]).to_numpy(float))
    loss_N = within(use["loss"])
    start = np.stack([within(use["start_loss"]), within(use["start_loss"] ** 2)], axis=1)
    teacher = np.stack([within(log_size), within(log_size**2)], axis=1)

    def rss(columns: np.ndarray) -> tuple[float, int]:
        fit, _, rank, _ = np.linalg.lstsq(columns / np.linalg.norm(columns, axis=0), loss_N)
        return float(np.sum((loss_N - columns / np.linalg.norm(columns, axis=0) @ fit) ** 2)), rank

    total = float(loss_N @ loss_N)
    if total == 0 or np.linalg.norm(start[:, 0]) == 0 or np.linalg.norm(teacher[:, 0]) == 0:
        return None
    both, rank = rss(np.hstack([start, teacher]))
    df = len(use) - groups - rank

    def p_of(smaller: float, rank_smaller: int) -> float:
        more = rank - rank_smaller
        if more == 0 or df <= 0:
            return 1.0
        return float(stats.f.sf((smaller - both) / more / max(both / df, 1e-300), more, df))

    by_start, by_teacher = rss(start), rss(teacher)
    return StartExplains(
        n_cells=len(use),
        r_squared_start=1 - by_start[0] / total,
        r_squared_teacher=1 - by_teacher[0] / total,
        r_squared_both=1 - both / total,
        p_teacher=p_of(*by_start),
        p_start=p_of(*by_teacher),
    )
