"""
Answers of the power law: T* of any student and budget, and the cost of another teacher there.

T* comes from the law or from the line of exactly this budget, whichever has the narrower interval. If
neither determines it, as with one student size, the ratio T*/S of the nearest group is used, without an
interval. The cost of a teacher is the law's curve at its distance to T*, with an interval over draws of all
parameters; the level of the loss is common to all teachers and far less known (`level_of`). When there is
no recommendation: `_abstain`, and docs/method.md, The recommendation.

Shapes: K teachers on offer, R draws.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import optimize, stats

from capgap.config.shapes import simple_training_flops
from capgap.law.answers.answer_records import RankedTeacher, Recommendation, RuleRegret
from capgap.law.fit_law import Fit
from capgap.law.law_record import Interval, LawRecord
from capgap.law.loss_plane import group_means, predict_plane
from capgap.law.number_text import about, budget, listed, span
from capgap.law.power_law.power_law import PowerLaw, weighted_quantiles
from capgap.law.table.metric import METRICS
from capgap.law.table.run_means import SAME_LOG_SIZE

FAR = 100.0  # factor beyond the students tried within which a student for a teacher is sought


@dataclass(frozen=True)
class Prediction:
    """The expected best teacher."""

    basis: Literal["power_law", "line", "nearest_student"]
    star: Interval | None  # parameters; None by the nearest student
    value: float  # T*, parameters
    law_tokens: int  # nearest budget of the table
    note: str
    like: tuple[float, float]  # student and tokens at which the power law's curve is taken
    bounded: bool = False  # whether the nearest student's T* is only bounded


def predict(fit: Fit, student: float, tokens: float, confidence: float) -> Prediction:
    """T* of a student (parameters without embeddings) at a budget (tokens).

    If the table does not show how T* moves with tokens, it is taken at the nearest budget.
    """
    budgets = sorted({place.tokens for place in fit.located})
    near_tokens = min(budgets, key=lambda d: (abs(math.log(d / tokens)), -d))
    for at in dict.fromkeys((tokens, near_tokens)):
        found = _candidates(fit, student, at, confidence)
        if found:
            break
    else:
        return _nearest(fit, student, tokens, round(near_tokens), confidence)
    basis, interval, note = min(found, key=lambda f: _log_width(f[1]))
    if len(found) == 2:
        other = next(f for f in found if f[0] != basis)
        word = "line" if other[0] == "line" else "power law"
        note += (
            f"; this interval is narrower than that of the {word}, {about(other[1].value)} "
            f"({span(other[1])})"
        )
    if at != tokens:
        note += (
            f"; the student gets {budget(round(tokens))}, and these runs do not show how T* moves "
            "with tokens"
        )
    return Prediction(basis, interval, interval.value, round(near_tokens), note, (student, at))


def _candidates(
    fit: Fit, student: float, tokens: float, confidence: float
) -> list[tuple[str, Interval, str]]:
    """(basis, T*, note) of the power law and of the line, of those that determine T*."""
    found = []
    star = None if fit.power_law is None else fit.power_law.star(student, tokens, confidence)
    if star is not None:
        found.append(("power_law", star, _reach(fit, "the power law", star, student, tokens)))
    for level, line in fit.lines:
        if line is not None and level.tokens == tokens:
            interval = line.predict(student)
            if interval.value > 0:
                text = f"the line over {len(line.star_I)} optima at {budget(round(tokens))}"
                found.append(("line", interval, _reach(fit, text, interval, student, tokens)))
    return found


def _log_width(interval: Interval) -> float:
    if interval.low is None or interval.high is None or interval.low <= 0:
        return math.inf
    return math.log(interval.high / interval.low)


def _reach(fit: Fit, what: str, star: Interval, student: float, tokens: float) -> str:
    """The prediction in words, with how far it extrapolates."""
    note = (
        f"{what} puts the optimum for {about(student)} at {budget(round(tokens))} at "
        f"{about(star.value)} ({span(star)})"
    )
    for name, value, known in (
        ("student", student, [place.size for place in fit.located]),
        ("budget", tokens, [place.tokens for place in fit.located]),
    ):
        if not min(known) * 0.99 <= value <= max(known) * 1.01:
            note += (
                f"; beyond every {name} studied, {about(min(known))} to {about(max(known))}"
                if min(known) < max(known)
                else f"; the only {name} studied is {about(min(known))}"
            )
    return note


def _nearest(
    fit: Fit, student: float, tokens: float, law_tokens: int, confidence: float
) -> Prediction:
    """A prediction by the ratio T*/S of the nearest group, with the reason in its note."""
    near = min(
        fit.located,
        key=lambda p: (abs(math.log(p.size / student)) + abs(math.log(p.tokens / tokens)), p.size),
    )
    star = None if fit.power_law is None else fit.power_law.star(near.size, near.tokens, confidence)
    why = fit.why_not or "the students and budgets of the table do not determine it here"
    if star is None:
        runs = near.runs
        best = runs.teacher_size_N[int(runs.loss_N.argmin())]
        ratio, what, bounded = best / near.size, "best teacher", True
    else:
        ratio, bounded = star.value / near.size, None in (star.low, star.high)
        what = "T* (only a bound)" if bounded else "T*"
    note = (
        f"no law gives T* ({why}); the nearest student is {near.student} at "
        f"{budget(round(near.tokens))}, whose {what} is {ratio:.3g} times its size, which would be "
        f"{about(ratio * student)} here"
    )
    like = (near.size, near.tokens)
    return Prediction("nearest_student", None, ratio * student, law_tokens, note, like, bounded)


def costs_of(
    fit: Fit, found: Prediction, size_K: np.ndarray, student: float, confidence: float
) -> tuple[list[Interval], list[Interval]] | None:
    """Loss of every teacher above that of T*, and above the best of those on offer, nats.

    None without a power law.
    """
    law = fit.power_law
    excess = None if law is None else _excess(law, found, size_K, student, confidence)
    if excess is None:
        return None
    excess_K, excess_RK, weight_R = excess
    value_K = excess_K - excess_K.min()
    value_RK = excess_RK - excess_RK.min(axis=1, keepdims=True)
    return tuple(
        [_around(at_K[k], at_RK[:, k], weight_R, confidence) for k in range(len(size_K))]
        for at_K, at_RK in ((excess_K, excess_RK), (value_K, value_RK))
    )


def _excess(
    law: PowerLaw, found: Prediction, size_K: np.ndarray, student: float, confidence: float
):
    """Excess at the fit (K,), its draws (R, K) and their weights."""
    size, tokens = found.like
    shift_R = np.zeros(len(law.parameter_draws[1]))
    at = law.star(size, tokens, confidence)
    if at is None:
        return None
    move = 0.0
    if found.basis == "line":  # the curve of the power law about the T* of the line
        move = math.log(found.value / at.value)
        rng = np.random.default_rng(1)
        z = stats.norm.ppf((1 + confidence) / 2)
        sd = _log_width(found.star) / 2 / z
        own_R = law.log_star_draws(size, tokens) - math.log(at.value)
        shift_R = move - own_R + sd * rng.normal(size=len(shift_R))
    scaled_K = size_K * (size / student)
    excess_K = law.excess(scaled_K, size, tokens, move)[0]
    excess_RK = law.excess(scaled_K, size, tokens, shift_R, draws=True)
    return excess_K, excess_RK, law.parameter_draws[1]


def _around(value: float, draw_R: np.ndarray, weight_R: np.ndarray, confidence: float) -> Interval:
    """A value with the quantiles of its draws as limits, widened if they do not contain it."""
    tail = (1 - confidence) / 2
    low, high = weighted_quantiles(draw_R, weight_R, (tail, 1 - tail))
    return Interval(value=float(value), low=float(min(low, value)), high=float(max(high, value)))


def level_of(fit: Fit, student: float, tokens: float, confidence: float) -> Interval | None:
    """Lowest loss of a student at a budget over all teachers, nats per token, with its interval.

    A group of the table has its own level. Any other comes from a plane in log S and log D through the
    groups, whose prediction interval is open without a degree of freedom. None without a power law.
    """
    law = fit.power_law
    if law is None:
        return None
    runs = law.runs
    group_N = runs.group_N
    floor_G = group_means(law.floor_N, group_N)
    size_G, tokens_G = runs.size_N[runs.first_G], runs.tokens_N[runs.first_G]
    t = stats.t.ppf((1 + confidence) / 2, law.noise_df)
    same = np.flatnonzero((np.abs(np.log(size_G / student)) < SAME_LOG_SIZE) & (tokens_G == tokens))
    if len(same):
        own = group_N == same[0]
        half = t * math.sqrt(law.run_noise_NN[np.ix_(own, own)].mean())
        return Interval.around(floor_G[same[0]], half)
    logs_G2, at_2 = np.log(np.column_stack([size_G, tokens_G])), np.log([student, tokens])
    return Interval.around(*predict_plane(logs_G2, floor_G, at_2, confidence))


def student_for(fit: Fit, teacher: float, tokens: float, confidence: float) -> Interval | None:
    """Student size whose T* is this teacher at a budget; None if T* does not grow with S, or unknown.

    The interval holds the students whose interval of T* contains the teacher (Fieller's inversion).
    """
    law = fit.power_law
    growth = (
        None if law is None else (law.exponent(1, 0, confidence) or law.exponent(1, 1, confidence))
    )
    if growth is None or growth.value <= 0 or law.star(1e3, tokens, confidence) is None:
        return None
    sizes = [place.size for place in fit.located]
    reach = math.log(min(sizes) / FAR), math.log(max(sizes) * FAR)

    def crossing(end: str) -> float | None:
        def gap(log_size: float) -> float:
            limit = getattr(law.star(math.exp(log_size), tokens, confidence), end)
            if limit is None:
                return math.inf if end == "high" else -math.inf
            return math.log(limit / teacher)

        low, high = gap(reach[0]), gap(reach[1])
        if not (np.isfinite([low, high]).all() and low < 0 < high):
            return None
        return math.exp(optimize.brentq(gap, *reach, xtol=1e-3))

    value = crossing("value")
    if value is None:
        return None
    return Interval(value=value, low=crossing("high"), high=crossing("low"))


def beyond(value: float, studied: list[float]) -> float:
    """How many times a value lies beyond the range studied; 1 inside."""
    return max(1.0, value / max(studied), min(studied) / value)


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
    found = predict(fit, student, tokens, law.confidence)
    names = sorted(teachers, key=lambda name: (teachers[name], name))
    size_K = np.array([teachers[name] for name in names], dtype=float)
    above_K, regret_K = costs_of(fit, found, size_K, student, law.confidence) or (None, None)
    level = level_of(fit, student, tokens, law.confidence)
    order = _order(regret_K, found, size_K)
    if law.status == "flat":
        order = np.arange(len(names))
    tie = []
    if regret_K is not None:
        tie = [names[k] for k in order if regret_K[k].value <= law.tie_nats]
    ranked = [
        RankedTeacher(
            teacher=names[k],
            teacher_params_non_embedding=int(size_K[k]),
            ratio=float(size_K[k] / student),
            predicted_loss=None if regret_K is None else _loss(level, above_K[k]),
            predicted_regret=None if regret_K is None else regret_K[k],
            within_tie=None if regret_K is None else names[k] in tie,
            train_flops=simple_training_flops(student, size_K[k], tokens),
        )
        for k in order
    ]
    why_not = _abstain(law, found, size_K, regret_K)
    everything = sum(teacher.train_flops for teacher in ranked)
    ratios = np.concatenate([np.exp(place.runs.log_ratio_N) for place in fit.located])
    return Recommendation(
        student_params_non_embedding=student,
        tokens=tokens,
        status="abstains" if why_not else "recommended",
        reason=why_not,
        basis=found.basis,
        basis_note=found.note,
        law_tokens=found.law_tokens,
        teacher_params_star=found.star,
        target_params=found.value,
        ranked=ranked,
        within_tie=tie,
        student_extrapolation=beyond(student, [place.size for place in fit.located]),
        tokens_extrapolation=beyond(tokens, [place.tokens for place in fit.located]),
        teacher_extrapolation=min(beyond(found.value / student, list(ratios)), 1e9),
        rules=_rules(law, names, size_K, regret_K, student, tokens, published_slope),
        exhaustive_flops=everything,
        saved_flops=everything - ranked[0].train_flops,
        pilot_flops=pilot_flops,
        notes=_notes(fit, law, found, ranked, tokens),
    )


def _loss(level: Interval, above: Interval) -> Interval:
    """The loss of a teacher from that of T* and its distance to it, as independent errors."""
    value = level.value + above.value
    if level.low is None or level.high is None:
        return Interval(value=value, low=None, high=None)
    return Interval(
        value=value,
        low=value - math.hypot(level.value - level.low, above.value - above.low),
        high=value + math.hypot(level.high - level.value, above.high - above.value),
    )


def _order(regret_K: list[Interval] | None, found: Prediction, size_K: np.ndarray) -> np.ndarray:
    """Teachers by predicted regret, or by their distance to T* in log size."""
    if regret_K is not None:
        away_K = np.array([regret.value for regret in regret_K])
    else:
        away_K = np.abs(np.log(size_K / found.value))
    return np.argsort(away_K, kind="stable")


def _abstain(
    law: LawRecord, found: Prediction, size_K: np.ndarray, regret_K: list[Interval] | None
) -> str | None:
    """The reason to abstain; None if the data determine an answer."""
    if law.status == "not_identifiable":
        return law.reason
    if law.status == "flat":
        return (
            "teacher size makes no difference beyond noise: the teacher hardly matters, and the "
            "smallest one is the cheapest"
        )
    if found.bounded:
        return "for the nearest student, only a bound on T* is known"
    if len(size_K) < 2 or found.star is None:
        return None
    low, high = found.star.low, found.star.high
    spans = (low is None or low <= size_K.min()) and (high is None or high >= size_K.max())
    sure = any(regret.low > law.tie_nats for regret in regret_K or [])
    if spans and not sure:
        return (
            "the interval of T* spans all teachers on offer, and none of them is shown to be worse than "
            f"the best by more than {law.tie_nats:g} {METRICS[law.metric].short}"
        )
    return None


def _rules(
    law: LawRecord,
    names: list[str],
    size_K: np.ndarray,
    regret_K: list[Interval] | None,
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
            expected_regret_nats=None if regret_K is None else regret_K[k].value,
            train_flops=simple_training_flops(student, size_K[k], tokens),
        )
        for rule, k in picks.items()
    ]
    alone = RuleRegret(
        rule="no teacher",
        teacher=None,
        expected_regret_nats=_without(law, student, tokens),
        train_flops=simple_training_flops(student, 0, tokens),
    )
    return [*rules, alone]


def _without(law: LawRecord, student: int, tokens: int) -> float | None:
    """Loss without a teacher above that with the best one, nats, of the nearest control; below 0 is better."""
    sizes = {o.student: o.student_params_non_embedding for o in law.optima}
    known = [e for e in law.effects if e.alone is not None and e.student in sizes]
    if not known:
        return None
    near = min(
        known,
        key=lambda e: (
            abs(math.log(sizes[e.student] / student)) + abs(math.log(e.tokens / tokens)),
            e.tokens,
        ),
    )
    return near.alone.value


def _notes(fit: Fit, law: LawRecord, found: Prediction, ranked: list[RankedTeacher], tokens: int):
    """Notes on a ranking by the power law."""
    notes, budgets = [], {place.tokens for place in fit.located}
    if len(ranked) == 1:
        notes.append("only one teacher is on offer, so there is nothing to choose")
    sizes = [one.teacher_params_non_embedding for one in ranked]
    if len(budgets) == 1 and tokens not in budgets:
        notes.append(
            f"the runs had one budget: losses are those expected at {budget(round(min(budgets)))}, and T* "
            "may move with tokens"
        )
    if not min(sizes) <= found.value <= max(sizes):
        side = "smaller" if min(sizes) > found.value else "larger"
        notes.append(f"T* is {side} than every teacher on offer")
    return notes + notes_of(law, ranked)


def notes_of(law: LawRecord, ranked: list[RankedTeacher]) -> list[str]:
    """Notes on a ranking by any law: ties, and what made the optimum."""
    notes, tie = [], [one for one in ranked if one.within_tie]
    if len(tie) > 1:
        cheapest = min(tie, key=lambda one: (one.train_flops, one.teacher))
        notes.append(
            f"{listed(one.teacher for one in tie)} are predicted within {law.tie_nats:g} "
            f"{METRICS[law.metric].short} of the best; {cheapest.teacher} is the cheapest of them"
        )
    if law.overall.cause == "init":
        notes.append(f"in these runs the init made the difference: {law.overall.cause_reason}")
    return notes
