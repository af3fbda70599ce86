"""
Is it the teacher, or the start that pruning it leaves behind?

At a fixed student size a larger teacher means heavier pruning, hence a worse start. Control arms
take the two apart at one student size and budget:

  start    span of the losses over pruned starts, none of them with a teacher (no_teacher); without
           that arm, the span over starts under one teacher, the median over teachers
           (cross_teacher)
  teacher  span over teachers at one fixed start, the median over starts (cross_teacher rows and the
           random start)

A span over K means is never 0: the span that noise alone exceeds in 5 % of cases is given beside
it (studentized range). Whether an optimum inside the grid shows at a fixed start is judged by the
same rules as the main arm's (`shape.py`).
"""

from __future__ import annotations

from statistics import median

import numpy as np
import pandas as pd
from scipy import stats

from capgap.config import Law
from capgap.config.run_grid import NONE, RANDOM
from capgap.law.grouped_runs import group_runs
from capgap.law.joint_law import JointLaw
from capgap.law.law_record import ArmEffects
from capgap.law.single_optima import Means, Shape, judge

DOMINANT = 2.0  # times; an effect this much larger than the other one is called the cause


def effects_of(runs: pd.DataFrame, law: JointLaw | None, settings: Law) -> list[ArmEffects]:
    """Effects for every student and budget that has a control arm; `runs` as `read_runs`.

    Without a joint law the noise is not known, and no span is compared with it.
    """
    found = []
    for (student, tokens), group in runs.groupby(["student", "tokens"], sort=True):
        if (group["arm"] != "main").any():
            found.append(_effects(student, int(tokens), group, law, settings))
    return found


def _effects(
    student: str, tokens: int, group: pd.DataFrame, law: JointLaw | None, settings: Law
) -> ArmEffects:
    loss = group.groupby(["init", "teacher"])["val_loss_nats_per_token"].mean().unstack()
    without = loss[NONE].drop(RANDOM, errors="ignore").dropna() if NONE in loss else pd.Series()
    pruned = loss.drop(index=RANDOM, errors="ignore").drop(columns=NONE, errors="ignore")
    taught = loss.drop(columns=NONE, errors="ignore")
    over_teachers = [row.max() - row.min() for _, row in taught.iterrows() if row.count() > 1]
    over_starts = [c.max() - c.min() for _, c in pruned.items() if c.count() > 1]
    start = float(without.max() - without.min()) if len(without) > 1 else None
    if start is None and over_starts:
        start = float(median(over_starts))
    own = [
        without[init] - pruned.at[init, teacher]
        for init, teacher in group[group["arm"] == "main"][["init", "teacher"]]
        .drop_duplicates()
        .itertuples(index=False)
        if init in without.index
    ]
    return ArmEffects(
        student=student,
        tokens=tokens,
        start_nats=start,
        teacher_nats=float(median(over_teachers)) if over_teachers else None,
        noise_nats=_noise_span(group, law, settings.confidence),
        fixed_start_shapes=_shapes(group, law, settings),
        gain_nats=float(np.mean(own)) if own else None,
    )


def _noise_span(group: pd.DataFrame, law: JointLaw | None, confidence: float) -> float | None:
    """The span over as many means as there are teachers that noise exceeds at 1 - confidence."""
    if law is None:
        return None
    teachers = max(2, group.loc[group["teacher"] != NONE, "teacher"].nunique())
    controls = group[group["arm"] != "main"]
    seeds = controls.groupby(["init", "teacher"])["seed"].nunique().median()
    quantile = stats.studentized_range.ppf(confidence, teachers, law.noise_df)
    own, shared = _variances(law)
    return float(quantile * np.sqrt(own / seeds + shared))


def _variances(law: JointLaw) -> tuple[float, float]:
    """Variance of a run, and of a teacher or init, nats^2."""
    variance = law.component_variances
    own = sum(variance.get(name, 0.0) for name in ("order", "trunk"))
    return own, sum(variance.get(name, 0.0) for name in ("init", "teacher"))


def _shapes(group: pd.DataFrame, law: JointLaw | None, settings: Law) -> dict[str, Shape]:
    """Shape over teachers at each fixed start with three teachers or more."""
    shapes: dict[str, Shape] = {}
    if law is None:
        return shapes
    own, _ = _variances(law)
    shared = law.component_variances.get("teacher", 0.0)  # the init is the same one
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
