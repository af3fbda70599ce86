"""
The answer for a user: which teacher for a student of this size at this budget.

T* comes from `target.py`. What a wrong teacher costs comes from the joint surface: about its
minimum the loss rises by c E_k(log(T / T*)), with c and k of the surface and its resamples. T* is
drawn from the normal in log T, one width to each side, that has the interval of T*; a side without
limit is as wide as the teachers on offer reach, and at least a factor of 3.
The level of the loss is a line in log S and log D through the lowest points of the groups.

The answer abstains
  - where the optimum of the nearest student is only bounded, or T* is not positive
  - where the curves at the nearest budget are mostly flat, or the surface is
  - where the interval of T* spans all teachers on offer and no teacher is predicted to be worse
    than the best one by more than the tie

Shapes: K teachers on offer, R resamples.
"""

from __future__ import annotations

import math

import numpy as np
import statsmodels.api as sm
from scipy import stats

from capgap.law.records import Interval, LawRecord, RankedTeacher, Recommendation, RuleRegret
from capgap.law.study import Fit
from capgap.law.surface import Surface, bowl
from capgap.law.table import train_flops
from capgap.law.target import Target, beyond, target_of
from capgap.law.words import about, budget, listed

DRAWS = 2000
WIDE = math.log(3)  # least width of a side of T* without a limit


def recommend(
    fit: Fit,
    law: LawRecord,
    teachers: dict[str, int],
    student: int,
    tokens: int,
    pilot_flops: float,
    published_slope: float = 2.5,
) -> Recommendation:
    """Rank teachers (parameters by name, at least one) for a student at a budget."""
    target = target_of(fit, law, student, tokens)
    names = sorted(teachers, key=lambda name: (teachers[name], name))
    size_K = np.array([teachers[name] for name in names], dtype=float)
    excess = _excess(fit.surface, law, target, size_K, student, tokens)
    loss_K, regret_K = _predictions(fit, law, excess, size_K, student, tokens)
    flat = _flat(law, target)
    order = np.arange(len(names)) if flat else _order(regret_K, target, size_K)
    tie = [names[k] for k in order if regret_K[k] and regret_K[k].value <= law.tie_nats]
    ranked = [
        RankedTeacher(
            teacher=names[k],
            teacher_params_non_embedding=int(size_K[k]),
            ratio=float(size_K[k] / student),
            predicted_loss=loss_K[k],
            predicted_regret=regret_K[k],
            within_tie=None if regret_K[k] is None else names[k] in tie,
            train_flops=train_flops(student, size_K[k], tokens),
        )
        for k in order
    ]
    why_not = _abstain(law, target, size_K, regret_K)
    everything = sum(teacher.train_flops for teacher in ranked)
    students = [o.student_params_non_embedding for o in law.optima]
    ratios = [
        cell.teacher_params_non_embedding / o.student_params_non_embedding
        for o in law.optima
        for cell in o.cells
    ]
    beyond_ratio = beyond(target.value / student, ratios) if target.value > 0 else math.inf
    return Recommendation(
        student_params_non_embedding=student,
        tokens=tokens,
        status="abstains" if why_not else "recommended",
        reason=why_not,
        basis=target.basis,
        basis_note=target.note,
        law_tokens=target.law_tokens,
        teacher_params_star=target.star,
        target_params=target.value,
        ranked=ranked,
        within_tie=tie,
        student_extrapolation=beyond(student, students),
        tokens_extrapolation=beyond(tokens, [float(line.tokens) for line in law.lines]),
        teacher_extrapolation=min(beyond_ratio, 1e9),
        rules=_rules(law, names, size_K, regret_K, student, tokens, published_slope),
        exhaustive_flops=everything,
        saved_flops=everything - ranked[0].train_flops,
        pilot_flops=pilot_flops,
        notes=_notes(law, target, tie, teachers, tokens),
    )


def _excess(
    surface: Surface | None,
    law: LawRecord,
    target: Target,
    size_K: np.ndarray,
    student: int,
    tokens: int,
) -> tuple[np.ndarray, np.ndarray] | None:
    """Loss above the lowest point of the curve, nats: at T* itself, (K,), and over draws, (R, K).

    None without a fitted surface.
    """
    if surface is None or surface.status != "fitted" or target.value <= 0:
        return None
    bend_R, k_R = surface.at_optimum(student, tokens)
    known_R = np.isfinite(bend_R)
    if known_R.mean() < 0.5:
        return None
    rng = np.random.default_rng(law.seed)
    pick_R = rng.choice(np.flatnonzero(known_R), size=DRAWS)
    bend_R1, k_R1 = bend_R[pick_R, None], k_R[pick_R, None]

    def rise(star_R: np.ndarray) -> np.ndarray:
        return bend_R1 * bowl(np.log(size_K) - star_R[:, None], k_R1)

    at_star_RK = rise(np.full(DRAWS, math.log(target.value)))
    return at_star_RK.mean(axis=0), rise(_draw_star(target, size_K, law.confidence, rng))


def _draw_star(
    target: Target, size_K: np.ndarray, confidence: float, rng: np.random.Generator
) -> np.ndarray:
    """Draws of log T*, (R,)."""
    centre = math.log(target.value)
    low = high = None
    if target.star is not None:
        low, high = target.star.low, target.star.high
    below = centre - math.log(low) if low else max(WIDE, centre - math.log(size_K.min()))
    above = math.log(high) - centre if high else max(WIDE, math.log(size_K.max()) - centre)
    z_R = rng.normal(size=DRAWS)
    return centre + np.where(z_R < 0, below, above) * z_R / stats.norm.ppf((1 + confidence) / 2)


def _predictions(
    fit: Fit,
    law: LawRecord,
    excess: tuple[np.ndarray, np.ndarray] | None,
    size_K: np.ndarray,
    student: int,
    tokens: int,
):
    """Predicted loss and regret of each teacher; Nones without a surface.

    A prediction is that at T*, with the interval over draws of T*. It is not the mean over draws:
    from few students T* has a wide interval, lopsided in log size, whose mean would prefer a small
    teacher to the one at T* itself.
    """
    if excess is None:
        return [None] * len(size_K), [None] * len(size_K)
    tail = 100 * (1 - law.confidence) / 2
    excess_K, excess_RK = excess
    regret_K = excess_K - excess_K.min()
    regret_RK = excess_RK - excess_RK.min(axis=1, keepdims=True)
    level = _level(fit.surface, law, student, tokens)
    losses, regrets = [], []
    for k in range(len(size_K)):
        regrets.append(_around(regret_K[k], regret_RK[:, k], tail))
        rise = _around(excess_K[k], excess_RK[:, k], tail)
        loss, ends = level.value + rise.value, {"low": None, "high": None}
        if level.low is not None:
            ends = {
                "low": loss - math.hypot(level.value - level.low, rise.value - rise.low),
                "high": loss + math.hypot(level.high - level.value, rise.high - rise.value),
            }
        losses.append(Interval(value=loss, **ends))
    return losses, regrets


def _around(value: float, draw_R: np.ndarray, tail: float) -> Interval:
    """A value with the percentiles of its draws, which hold it."""
    low, high = np.percentile(draw_R, [tail, 100 - tail])
    return Interval(value=float(value), low=float(min(low, value)), high=float(max(high, value)))


def _level(surface: Surface, law: LawRecord, student: int, tokens: int) -> Interval:
    """Lowest loss of a student at a budget over all teachers, with a prediction interval.

    A group of the table speaks for itself; elsewhere a line in log S and log D through the groups
    does, whose interval is None with no degree of freedom left.
    """
    sizes = {o.student: o.student_params_non_embedding for o in law.optima}
    keys = [k for k in surface.levels if np.isfinite(surface.log_ratio(sizes[k[0]], k[1])[0])]
    floors = np.array([_floor(surface, key, sizes[key[0]]) for key in keys])
    for key, floor in zip(keys, floors, strict=True):
        if abs(math.log(sizes[key[0]] / student)) < 0.01 and key[1] == tokens:
            z = stats.norm.ppf((1 + law.confidence) / 2)
            half = float(z * np.std(surface.level_R[key]))
            return Interval(value=float(floor), low=float(floor - half), high=float(floor + half))
    columns = np.array([[math.log(sizes[name]), math.log(d)] for name, d in keys])
    use = np.ptp(columns, axis=0) > 0.01
    centre = columns.mean(axis=0)
    design = np.column_stack([np.ones(len(keys)), (columns - centre)[:, use]])
    row = np.concatenate([[1.0], (np.log([student, tokens]) - centre)[use]])[None]
    model = sm.OLS(floors, design).fit()
    if model.df_resid < 1:
        return Interval(value=float((row @ model.params)[0]), low=None, high=None)
    frame = model.get_prediction(row).summary_frame(alpha=1 - law.confidence)
    value, low, high = map(float, frame[["mean", "obs_ci_lower", "obs_ci_upper"]].iloc[0])
    return Interval(value=value, low=low, high=high)


def _floor(surface: Surface, key: tuple[str, int], size: float) -> float:
    log_ratio = surface.log_ratio(size, key[1])[0]
    at_star = surface.curve(np.array([np.log(size) + log_ratio]), size, key[1])
    return surface.levels[key] + float(at_star[0, 0])


def _order(regret_K: list[Interval | None], target: Target, size_K: np.ndarray) -> np.ndarray:
    """Teachers by predicted loss, or by their distance to T* in log size (T* <= 0: by size)."""
    if regret_K[0] is not None:
        away_K = np.array([regret.value for regret in regret_K])
    elif target.value > 0:
        away_K = np.abs(np.log(size_K / target.value))
    else:
        away_K = size_K
    return np.argsort(away_K, kind="stable")


def _abstain(
    law: LawRecord, target: Target, size_K: np.ndarray, regret_K: list[Interval | None]
) -> str | None:
    """Why the data cannot say, None where they can."""
    if target.value <= 0:
        return f"the law puts T* at {about(target.value)} parameters, below any model"
    if not target.bounded:
        return "the optimum of the nearest student is only bounded"
    if _flat(law, target):
        return (
            "most curves at the nearest budget are flat: the teacher hardly matters, and the "
            "smallest one is the cheapest"
        )
    if law.surface is not None and law.surface.status == "flat":
        return f"the joint surface shows no minimum beyond doubt ({law.surface.reason})"
    if len(size_K) < 2:
        return None
    low = high = None
    if target.star is not None:
        low, high = target.star.low, target.star.high
    spans = (low is None or low <= size_K.min()) and (high is None or high >= size_K.max())
    told = any(r is not None and r.low > law.tie_nats for r in regret_K)
    if spans and not told:
        return (
            "the interval of T* spans all teachers on offer and none of them is predicted to be "
            f"worse than the best by more than {law.tie_nats:g} nats for sure"
        )
    return None


def _flat(law: LawRecord, target: Target) -> bool:
    shapes = [o.shape for o in law.optima if o.tokens == target.law_tokens]
    return shapes.count("flat") * 2 > len(shapes)


def _rules(
    law: LawRecord,
    names: list[str],
    size_K: np.ndarray,
    regret_K: list[Interval | None],
    student: int,
    tokens: int,
    published_slope: float,
) -> list[RuleRegret]:
    """Expected regret of each rule of thumb among the teachers on offer."""
    fixed = int(np.abs(np.log(size_K / (published_slope * student))).argmin())
    picks = {f"{published_slope:g} times": fixed, "next size up": 0, "largest": len(size_K) - 1}
    rules = [
        RuleRegret(
            rule=rule,
            teacher=names[k],
            expected_regret_nats=regret_K[k] and regret_K[k].value,
            train_flops=train_flops(student, size_K[k], tokens),
        )
        for rule, k in picks.items()
    ]
    return [
        *rules,
        RuleRegret(
            rule="no teacher",
            teacher=None,
            expected_regret_nats=_without(law, student, tokens),
            train_flops=train_flops(student, 0, tokens),
        ),
    ]


def _without(law: LawRecord, student: int, tokens: int) -> float | None:
    """What the own teacher takes off the loss of the nearest student and budget with that arm."""
    sizes = {o.student: o.student_params_non_embedding for o in law.optima}
    known = [e for e in law.effects if e.gain_nats is not None and e.student in sizes]
    if not known:
        return None
    near = min(
        known,
        key=lambda e: (
            abs(math.log(sizes[e.student] / student)) + abs(math.log(e.tokens / tokens)),
            e.tokens,
        ),
    )
    return max(0.0, near.gain_nats)


def _notes(
    law: LawRecord, target: Target, tie: list[str], teachers: dict[str, int], tokens: int
) -> list[str]:
    notes = []
    budgets = [line.tokens for line in law.lines]
    if len(budgets) == 1 and budgets[0] != tokens:
        notes.append(
            f"the pilot had one budget: losses are those expected at {budget(budgets[0])}, and T* "
            "may move with tokens"
        )
    if len(tie) > 1:
        cheapest = min(tie, key=lambda name: (teachers[name], name))
        notes.append(
            f"{listed(tie)} are predicted within {law.tie_nats:g} nats of the best; {cheapest} is "
            "the cheapest of them"
        )
    if min(teachers.values()) > target.value or target.value > max(teachers.values()):
        side = "smaller" if min(teachers.values()) > target.value else "larger"
        notes.append(f"T* is {side} than every teacher on offer")
    if law.overall is not None and law.overall.cause == "init":
        notes.append(f"in the pilot the start made the difference: {law.overall.cause_reason}")
    return notes
