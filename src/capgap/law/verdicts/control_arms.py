"""
The effect of a student's init against the effect of its teacher, from the control arms.

At a fixed student size a larger teacher means heavier pruning, hence a worse init. At one student size
and budget, the effect of the init is the span of losses over pruned inits that were trained without a
teacher, else over inits with one teacher (median over teachers); that of the teacher is the span over
teachers at one init (median over inits). A span over K means is never 0, so the record also has the span
that noise alone exceeds with probability 1 - confidence (studentized range), and the shape of the curve
over teachers at each fixed init (`single_optima.judge`).
"""

from __future__ import annotations

from statistics import median

import numpy as np
import pandas as pd
from scipy import stats

from capgap.config import Law
from capgap.config.run_grid import NONE, init_kind
from capgap.law.law_record import ArmEffects
from capgap.law.optima.single_optima import Means, Shape, judge
from capgap.law.power_law.power_law import PowerLaw
from capgap.law.table.column_names import LOSS
from capgap.law.table.grouped_runs import group_runs
from capgap.law.table.token_flops import token_flops_of
from capgap.law.verdicts.teacher_worth import (
    Cell,
    at_equal_compute,
    at_equal_tokens,
    cell_of,
    variances,
)


def effects_of(runs: pd.DataFrame, law: PowerLaw | None, settings: Law) -> list[ArmEffects]:
    """Effects for every student and budget that has a control arm; `runs` as `read_runs` returns.

    Without a power law the noise is unknown, and spans are not compared with it.
    """
    found, flops = [], token_flops_of(runs)
    for student, rows in runs.groupby("student", sort=True):
        groups = {int(tokens): group for tokens, group in rows.groupby("tokens", sort=True)}
        cells = {tokens: cell_of(group) for tokens, group in groups.items()}
        size = float(rows["student_params_non_embedding"].mean())
        for tokens, group in groups.items():
            if (group["arm"] != "main").any():
                effects = _effects(str(student), tokens, group, cells[tokens], law, settings)
                worth = at_equal_compute(cells, tokens, size, flops, law, settings.confidence)
                found.append(effects.model_copy(update={"at_equal_compute": worth}))
    return found


def _effects(
    student: str,
    tokens: int,
    group: pd.DataFrame,
    cell: Cell,
    law: PowerLaw | None,
    settings: Law,
) -> ArmEffects:
    loss = group.groupby(["init", "teacher"])[LOSS].mean().unstack()
    cut = loss[[init_kind(init) not in ("random", "given") for init in loss.index]]
    without = cut[NONE].dropna() if NONE in cut else pd.Series(dtype=float)
    pruned = cut.drop(columns=NONE, errors="ignore")
    taught = loss.drop(columns=NONE, errors="ignore")
    over_teachers = [row.max() - row.min() for _, row in taught.iterrows() if row.count() > 1]
    over_inits = [c.max() - c.min() for _, c in pruned.items() if c.count() > 1]
    start = float(without.max() - without.min()) if len(without) > 1 else None
    if start is None and over_inits:
        start = float(median(over_inits))
    return ArmEffects(
        student=student,
        tokens=tokens,
        init_nats=start,
        teacher_nats=float(median(over_teachers)) if over_teachers else None,
        noise_nats=_noise_span(group, law, settings.confidence),
        fixed_init_shapes=_shapes(group, law, settings),
        gain_nats=cell.gain,
        both_ways=tuple(map(str, cell.means.sort_values("params").index)),
        alone=at_equal_tokens(cell, law, settings.confidence),
    )


def _noise_span(group: pd.DataFrame, law: PowerLaw | None, confidence: float) -> float | None:
    """Span of the means of as many teachers that noise exceeds with probability 1 - confidence, nats."""
    if law is None:
        return None
    teachers = max(2, group.loc[group["teacher"] != NONE, "teacher"].nunique())
    controls = group[group["arm"] != "main"]
    controls = controls.assign(runs=controls.get("n", 1))
    repeats = controls.groupby(["init", "teacher"])["runs"].sum().median()
    quantile = stats.studentized_range.ppf(confidence, teachers, law.noise_df)
    own, shared = variances(law)
    return float(quantile * np.sqrt(own / repeats + shared))


def _shapes(group: pd.DataFrame, law: PowerLaw | None, settings: Law) -> dict[str, Shape]:
    """Shape of the curve over teachers at each fixed init with three teachers or more."""
    shapes: dict[str, Shape] = {}
    if law is None:
        return shapes
    own, _ = variances(law)
    shared = law.component_variances.get("teacher", 0.0)  # all these runs have the same init
    for init, rows in group[group["teacher"] != NONE].groupby("init", sort=True):
        if rows["teacher_params_non_embedding"].nunique() < 3:
            continue
        runs = group_runs(rows)
        size_U, index_N = np.unique(runs.teacher_size_N, return_inverse=True)
        count_U = np.bincount(index_N, runs.averaged_N)
        mean_U = np.bincount(index_N, runs.averaged_N * runs.loss_N) / count_U
        means = Means(size_U, mean_U, np.diag(own / count_U + shared), law.noise_df)
        shapes[str(init)] = judge(means, settings.confidence, settings.tie_nats)[0]
    return shapes
