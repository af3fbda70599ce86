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
from statsmodels.regression.linear_model import OLS

from capgap.law.law_record import InitExplains

TINY = 1e-12  # sum of squares that is only rounding, nats^2


def init_against_teacher(cells: pd.DataFrame) -> InitExplains | None:
    """Compare init and teacher as explanations; `cells` as `run_means.cell_table` returns them.

    All arms with a teacher and a loss of the init enter, with equal weights. None if the columns are
    missing or fewer than three degrees of freedom would remain.
    """
    if "init_loss" not in cells:
        return None
    use = cells.dropna(subset=["init_loss", "teacher_params"])
    group_NG = pd.get_dummies(use.groupby(["student", "tokens"]).ngroup(), dtype=float).to_numpy()
    if len(use) - group_NG.shape[1] - 4 < 3:
        return None
    log_size = np.log((use["teacher_params"] / use["student_params"]).to_numpy(float))

    def fitted(*explaining):
        columns = [centred**power for centred in explaining for power in (1, 2)]
        return OLS(use["loss"].to_numpy(float), np.column_stack([group_NG, *columns])).fit()

    start, teacher = (x - x.mean() for x in (use["init_loss"].to_numpy(float), log_size))
    groups, by_start, by_teacher = fitted(), fitted(start), fitted(teacher)
    both = fitted(start, teacher)
    if groups.ssr < TINY or groups.df_model in (by_start.df_model, by_teacher.df_model):
        return None  # within the groups the losses, the inits or the sizes are all alike

    def p_of(smaller) -> float:
        """P value of what the fit with both explains beyond a smaller one."""
        if both.df_model == smaller.df_model or smaller.ssr < TINY:
            return 1.0
        return float(both.compare_f_test(smaller)[1])

    return InitExplains(
        n_cells=len(use),
        r_squared_init=1 - by_start.ssr / groups.ssr,
        r_squared_teacher=1 - by_teacher.ssr / groups.ssr,
        r_squared_both=1 - both.ssr / groups.ssr,
        p_teacher=p_of(by_start),
        p_init=p_of(by_teacher),
    )
