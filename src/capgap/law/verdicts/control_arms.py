"""
The effect of a student's init against the effect of its teacher, from the control arms.

At a fixed student size a larger teacher means heavier pruning, hence a worse init. At one student size
and budget, the effect of the init is the span of losses over pruned inits that were trained without a
teacher, else over inits with one teacher (median over teachers); that of the teacher is the span over
teachers at one init (median over inits). A span over K means is never 0, so the record also has the span
that noise alone exceeds with probability 1 - confidence (studentized range), and the shape of the curve
over teachers at each fixed init (`single_optima.judge`).

What a teacher is worth is the loss without one above that with the best teacher (`_alone`).
"""

from __future__ import annotations

import math
from statistics import median

import numpy as np
import pandas as pd
from scipy import stats

from capgap.config import Law
from capgap.config.run_grid import NONE, init_kind
from capgap.law.law_record import ArmEffects, Interval
from capgap.law.optima.single_optima import Means, Shape, judge
from capgap.law.power_law.power_law import PowerLaw
from capgap.law.table.column_names import LOSS
from capgap.law.table.grouped_runs import group_runs


def effects_of(runs: pd.DataFrame, law: PowerLaw | None, settings: Law) -> list[ArmEffects]:
    """Effects for every student and budget that has a control arm; `runs` as `read_runs` returns.

    Without a power law the noise is unknown, and spans are not compared with it.
    """
    found = []
    for (student, tokens), group in runs.groupby(["student", "tokens"], sort=True):
        if (group["arm"] != "main").any():
            found.append(_effects(student, int(tokens), group, law, settings))
    return found


def _effects(
    student: str, tokens: int, group: pd.DataFrame, law: PowerLaw | None, settings: Law
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
    gains = _gains(group)
    return ArmEffects(
        student=student,
        tokens=tokens,
        init_nats=start,
        teacher_nats=float(median(over_teachers)) if over_teachers else None,
        noise_nats=_noise_span(group, law, settings.confidence),
        fixed_init_shapes=_shapes(group, law, settings),
        gain_nats=float(gains["gain"].mean()) if len(gains) else None,
        alone=_alone(group, gains, law, settings.confidence),
    )


def _gains(group: pd.DataFrame) -> pd.DataFrame:
    """Runs without a teacher beside the run with the own teacher of the same init and order of the data.

    `gain` is how much lower the loss is with the teacher, nats per token.
    """
    main = group[group["arm"] == "main"]
    alone = group[(group["teacher"] == NONE) & group["init"].isin(main["init"])]
    same = [name for name in ("init", "init_seed", "seed") if name in group]
    both = main.merge(alone[[*same, LOSS]], on=same, suffixes=("", "_alone"))
    return both.assign(gain=both[f"{LOSS}_alone"] - both[LOSS])


def _alone(
    group: pd.DataFrame, gains: pd.DataFrame, law: PowerLaw | None, confidence: float
) -> Interval | None:
    """Loss of the best init without a teacher above that with the best teacher, nats per token.

    An init without a teacher is taken at the mean loss with its own teacher plus the mean gain of the
    runs that share init and order, because controls often have fewer repetitions. Below 0 no teacher
    is better. The interval has the noise of the gain and of the two teachers' means, and none without a
    power law; that the lowest of several means was chosen is not in it.
    """
    if not len(gains):
        return None
    means = group[group["arm"] == "main"].groupby("teacher")[LOSS].agg(["mean", "size"])
    best = means["mean"].idxmin()
    by_teacher = gains.groupby("teacher")["gain"].agg(["mean", "size"])
    loss = means["mean"].reindex(by_teacher.index) + by_teacher["mean"]
    own = loss.idxmin()
    value = float(loss[own] - means.at[best, "mean"])
    if law is None:
        return Interval.around(value, None)
    order, shared = _variances(law)
    teacher = law.component_variances.get("teacher", 0.0)  # both have the same init
    variance = (2 * order + teacher) / by_teacher.at[own, "size"]
    if own != best:
        variance += sum((order + shared) / means.at[name, "size"] for name in (own, best))
    half = stats.t.ppf((1 + confidence) / 2, law.noise_df) * math.sqrt(variance)
    return Interval.around(value, half)


def _noise_span(group: pd.DataFrame, law: PowerLaw | None, confidence: float) -> float | None:
    """Span of the means of as many teachers that noise exceeds with probability 1 - confidence, nats."""
    if law is None:
        return None
    teachers = max(2, group.loc[group["teacher"] != NONE, "teacher"].nunique())
    controls = group[group["arm"] != "main"]
    seeds = controls.groupby(["init", "teacher"])["seed"].nunique().median()
    quantile = stats.studentized_range.ppf(confidence, teachers, law.noise_df)
    own, shared = _variances(law)
    return float(quantile * np.sqrt(own / seeds + shared))


def _variances(law: PowerLaw) -> tuple[float, float]:
    """Variance of a run, and of a teacher or init, nats^2."""
    variance = law.component_variances
    own = sum(variance.get(name, 0.0) for name in ("order", "trunk"))
    return own, sum(variance.get(name, 0.0) for name in ("init", "teacher"))


def _shapes(group: pd.DataFrame, law: PowerLaw | None, settings: Law) -> dict[str, Shape]:
    """Shape of the curve over teachers at each fixed init with three teachers or more."""
    shapes: dict[str, Shape] = {}
    if law is None:
        return shapes
    own, _ = _variances(law)
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
