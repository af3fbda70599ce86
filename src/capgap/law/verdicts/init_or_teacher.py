"""
Does the init explain the losses of students, or does the size of their teacher?

The test needs no formula of a law: within each student size and budget, it compares how much of the
differences the loss of the init (before training) and the size of the teacher explain, as quadratic
regressions.

Shapes: N cells (a mean over seeds).
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import stats

from capgap.law.law_record import InitExplains
from capgap.law.loss_plane import group_means


def init_against_teacher(cells: pd.DataFrame) -> InitExplains | None:
    """Compare init and teacher as explanations; `cells` as `run_means.cell_table` returns them.

    All arms with a teacher and a loss of the init enter, with equal weights. None if the columns are
    missing or fewer than three degrees of freedom would remain.
    """
    if "init_loss" not in cells:
        return None
    use = cells.dropna(subset=["init_loss", "teacher_params"])
    group_N = use.groupby(["student", "tokens"]).ngroup().to_numpy()
    groups = len(np.unique(group_N))
    if len(use) - groups - 4 < 3:
        return None

    def within(values) -> np.ndarray:
        values = np.asarray(values, dtype=float)
        return values - group_means(values, group_N)[group_N]

    log_size = np.log((use["teacher_params"] / use["student_params"]).to_numpy(float))
    loss_N = within(use["loss"])
    start = np.stack([within(use["init_loss"]), within(use["init_loss"] ** 2)], axis=1)
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
    return InitExplains(
        n_cells=len(use),
        r_squared_init=1 - by_start[0] / total,
        r_squared_teacher=1 - by_teacher[0] / total,
        r_squared_both=1 - both / total,
        p_teacher=p_of(*by_start),
        p_init=p_of(*by_teacher),
    )
