"""Records of the best teacher of every student at every budget."""

from __future__ import annotations

import numpy as np
from scipy import stats

from capgap.config import Law
from capgap.law.fit_law import Fit
from capgap.law.law_record import Interval, Optimum, TeacherMean
from capgap.law.optima.single_optima import Located, shape_of
from capgap.law.power_law.power_law import PowerLaw
from capgap.law.table.metric import measure_of


def optima_of(fit: Fit, settings: Law, own: bool = True) -> list[Optimum]:
    """Records of all optima, by budget and student size.

    own: with the interval of every curve by itself, which takes most of the time.
    """
    level = 1 - (1 - settings.confidence) / len(fit.located)
    return [_optimum(place, fit.power_law, level, settings, own) for place in fit.located]


def _optimum(
    place: Located, law: PowerLaw | None, level: float, settings: Law, own: bool
) -> Optimum:
    runs = place.runs
    sizes = np.unique(runs.teacher_size_N)
    star = None if law is None else law.star(place.size, place.tokens, settings.confidence)
    unit = measure_of(settings).short
    shape, shape_reason = shape_of(place, level, settings.tie_nats, unit)
    teachers = _teachers(place, law, settings)
    best = min(teachers, key=lambda c: (c.mean_loss_nats_per_token, c.teacher_params_non_embedding))
    within = [c.teacher for c in teachers if c.regret_nats <= settings.tie_nats]
    reasons = {
        "interior": f"the best teacher, {best.teacher}, lies between the others",
        "lower_bound": f"the largest teacher, {best.teacher}, is the best of those tried",
        "upper_bound": f"the smallest teacher, {best.teacher}, is the best of those tried",
        "not_identifiable": f"only {len(sizes)} teacher size(s); a minimum needs three",
    }
    return Optimum(
        student=place.student,
        student_params_non_embedding=place.size,
        tokens=round(place.tokens),
        status=place.status,
        reason=reasons[place.status],
        teacher_params=star,
        ratio=None if star is None else star.apply(lambda t: t / place.size),
        place=_place(star, sizes),
        own_teacher_params=place.own.limits if own and place.own else None,
        best_teacher=best.teacher,
        within_tie=within,
        teachers=teachers,
        shape=shape,
        shape_reason=shape_reason,
    )


def _place(star: Interval | None, sizes: np.ndarray) -> str:
    """The position of T* relative to the teacher ladder."""
    if star is None:
        return "not_identifiable"
    if star.high is not None and star.high < sizes[0]:
        return "below"
    if star.low is not None and star.low > sizes[-1]:
        return "above"
    return "inside" if star.within(sizes[0], sizes[-1]) else "open"


def _teachers(place: Located, law: PowerLaw | None, settings: Law) -> list[TeacherMean]:
    runs = place.runs
    found = []
    for teacher in dict.fromkeys(runs.teacher_N.tolist()):
        own = np.flatnonzero(runs.teacher_N == teacher)
        weight = runs.averaged_N[own] / runs.averaged_N[own].sum()
        mean = float(weight @ runs.loss_N[own])
        low = high = None
        if law is not None:
            rows = np.flatnonzero(
                (law.runs.teacher_N == teacher)
                & (law.runs.student_N == place.student)
                & (law.runs.tokens_N == place.tokens)
            )
            error = float(np.sqrt(weight @ law.run_noise_NN[np.ix_(rows, rows)] @ weight))
            half = stats.t.ppf((1 + settings.confidence) / 2, law.noise_df) * error
            low, high = mean - half, mean + half
        found.append((teacher, float(runs.teacher_size_N[own[0]]), own, mean, low, high))
    least = min(mean for *_, mean, _, _ in found)
    return [
        TeacherMean(
            teacher=teacher,
            teacher_params_non_embedding=size,
            n_runs=int(runs.averaged_N[own].sum()),
            mean_loss_nats_per_token=mean,
            loss_low=low,
            loss_high=high,
            regret_nats=mean - least,
        )
        for teacher, size, own, mean, low, high in found
    ]


def own_optima(fit: Fit) -> dict[tuple[str, int], Interval]:
    """T* of each student and budget alone, if it is interior."""
    return {
        (place.student, round(place.tokens)): place.own.limits
        for place in fit.located
        if place.status == "interior" and place.own is not None
    }
