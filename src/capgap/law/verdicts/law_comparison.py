"""
Does the best teacher differ between kinds of init, between weights of the teacher's term in the loss, or
by what one measures of a student? All are called kinds below; docs/method.md has the rules.

For every student and budget of both, T* is compared as a ratio, within the teachers tried under both: a T*
beyond them counts as the last of them, but the width of its interval is that of T* up to a factor of BEYOND
outside, because a value that stops at an end would look certain. Both kinds learned from the same teachers,
so intervals leave out each draw under both kinds at once (teacher_jackknife.py).

Shapes: G students and budgets, K draws of teachers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np

from capgap.config import Law
from capgap.law.law_record import ComparedAt, Interval, LawComparison
from capgap.law.number_text import about, bracketed, budget, listed
from capgap.law.power_law.power_law import PowerLaw
from capgap.law.power_law.teacher_jackknife import (
    LEAST_DRAWS,
    Refitted,
    Spread,
    draws_of,
    whole,
    without,
)
from capgap.law.table.init_kinds import size_name
from capgap.law.table.metric import measure_of

BEYOND = 3.0  # times beyond the ladder
SAME_END = 1e-9  # of log size


class Outcome(NamedTuple):
    """What was measured of the runs of a law."""

    title: str  # in words
    unit: str  # of differences, in a word


def compare_metrics(fitted: dict[Outcome, PowerLaw | str], settings: Law) -> LawComparison:
    """Comparison of the laws of the same runs by two outcomes; fitted: law by outcome, or why none."""
    first, second = fitted
    laws = {outcome.title: law for outcome, law in fitted.items()}
    units = first.unit, second.unit
    return _compare((first.title, second.title), laws, settings, "{}", units)


def compare_weights(fitted: dict[float, PowerLaw | str], settings: Law) -> list[LawComparison]:
    """Comparisons of every two weights of the teacher's term; fitted: law by weight, or why none."""
    named = {f"{weight:g}": law for weight, law in fitted.items()}
    return [_compare(weights, named, settings, "weight {}") for weights in combinations(named, 2)]


def compare_inits(fitted: dict[str, PowerLaw | str], settings: Law) -> list[LawComparison]:
    """Comparisons of every two kinds of init.

    fitted: law by kind, in the order of `init_kinds.KINDS`, or why there is none.
    """
    return [_compare(kinds, fitted, settings, "{} students") for kinds in combinations(fitted, 2)]


def _compare(
    kinds: tuple[str, str],
    fitted: dict[str, PowerLaw | str],
    settings: Law,
    called: str,
    units: tuple[str, str] | None = None,
) -> LawComparison:
    """called: phrase for a kind, with {} for its name. units: of costs, those of the metric if None."""
    first, second = kinds
    laws = []
    for kind in kinds:
        law = fitted[kind]
        if isinstance(law, str):
            return _unknown(kinds, f"no law for {called.format(kind)}: {law}")
        laws.append(law)
    groups = _shared(laws[0], laws[1])
    if not groups:
        return _unknown(kinds, f"{first} and {second} share no student size and budget")
    found = _at([whole(law) for law in laws], groups)
    assert found is not None
    left = [
        values
        for draw in draws_of(*laws)
        if (values := _at([without(law, draw) for law in laws], groups)) is not None
    ]
    if len(left) < LEAST_DRAWS:
        return _unknown(kinds, f"intervals need {LEAST_DRAWS} teachers, there are {len(left)}")
    spread = Spread(found, np.array(left), settings.confidence)
    rows = [
        ComparedAt(
            student=group.student,
            student_params_non_embedding=group.sizes[0],
            tokens=round(group.tokens),
            teacher_params={kind: math.exp(found[i, g]) for i, kind in enumerate(kinds)},
            place={kind: group.place(found[i, g]) for i, kind in enumerate(kinds)},
            ratio=spread.interval(
                lambda v, g=g: v[0, g] - v[1, g], np.exp, by=lambda v, g=g: v[4, g] - v[5, g]
            ),
            cost={
                kind: spread.interval(lambda v, i=i, g=g: v[2 + i, g], least=0.0)
                for i, kind in enumerate(kinds)
            },
        )
        for g, group in enumerate(groups)
    ]
    ratio = spread.interval(
        lambda v: (v[0] - v[1]).mean(), np.exp, by=lambda v: (v[4] - v[5]).mean()
    )
    cost = {
        kind: spread.interval(lambda v, i=i: v[2 + i].mean(), least=0.0)
        for i, kind in enumerate(kinds)
    }
    unit = measure_of(settings).short
    verdict, reason = _judge(kinds, rows, ratio, cost, settings, called, units or (unit, unit))
    return LawComparison(
        first=first,
        second=second,
        n_teachers=len(left),
        verdict=verdict,
        reason=reason,
        ratio=ratio,
        cost=cost,
        at=rows,
    )


def _unknown(kinds: tuple[str, str], reason: str) -> LawComparison:
    return LawComparison(
        first=kinds[0], second=kinds[1], n_teachers=0, verdict="not_told_apart", reason=reason
    )


@dataclass(frozen=True)
class _Group:
    """A student and budget of both laws, with the teachers tried under both."""

    student: str
    tokens: float
    sizes: tuple[
        float, float
    ]  # of the student in either law; pruned ones differ a little from given ones
    low: float  # log size of the smallest teacher
    high: float

    def place(self, log_star: float) -> str:
        """The position of a T* among the teachers."""
        if log_star <= self.low + SAME_END:
            return "smallest"
        return "largest" if log_star >= self.high - SAME_END else "inside"


def _shared(first: PowerLaw, second: PowerLaw) -> list[_Group]:
    """Students and budgets of both laws that both determine T* for."""
    found = []
    runs, others = first.runs, second.runs
    for one in runs.first_G:
        student, tokens = str(runs.student_N[one]), float(runs.tokens_N[one])
        for two in others.first_G:
            same = size_name(str(others.student_N[two])) == size_name(student)
            if not same or others.tokens_N[two] != tokens:
                continue
            sizes = float(runs.size_N[one]), float(others.size_N[two])
            if not all(
                law.axes.determines(law.weights(size, tokens))
                for law, size in zip((first, second), sizes, strict=True)
            ):
                continue
            ladders = [
                table.teacher_size_N[table.group_N == table.group_N[at]]
                for table, at in ((runs, one), (others, two))
            ]
            ends = max(x.min() for x in ladders), min(x.max() for x in ladders)
            if ends[0] < ends[1]:
                named = max(student, str(others.student_N[two]), key=len)
                found.append(_Group(named, tokens, sizes, *np.log(ends)))
    return found


def _at(laws: list[Refitted | None], groups: list[_Group]) -> np.ndarray | None:
    """Of either law log T* within the teachers, cost of the other's, and log T* up to BEYOND, (6, G).

    None if a law could not be fitted.
    """
    found, wide = np.empty((6, len(groups))), math.log(BEYOND)
    for g, group in enumerate(groups):
        for i, law in enumerate(laws):
            if law is None:
                return None
            star = law.log_star(group.sizes[i], group.tokens)
            found[i, g] = np.clip(star, group.low, group.high)
            found[4 + i, g] = np.clip(star, group.low - wide, group.high + wide)
        for i, law in enumerate(laws):
            assert law is not None
            at = law.excess(found[[1 - i, i], g], group.sizes[i], group.tokens)
            found[2 + i, g] = at[0] - at[1]
    return found


def _judge(
    kinds: tuple[str, str],
    rows: list[ComparedAt],
    ratio: Interval,
    cost: dict[str, Interval],
    settings: Law,
    called: str,
    units: tuple[str, str],
) -> tuple[str, str]:
    first, second = kinds
    margin = 1 + settings.ratio_margin
    one = rows[len(rows) // 2]
    text = (
        f"T* for {called.format(first)} is {bracketed(ratio)} times that for {called.format(second)}, over "
        f"{len(rows)} pairs of student and budget (for {about(one.student_params_non_embedding)} at "
        f"{budget(one.tokens)}: {about(one.teacher_params[first])} and "
        f"{about(one.teacher_params[second])}); "
    )
    same_end = [
        r for r in rows if len({*r.place.values()}) == 1 and "inside" not in r.place.values()
    ]
    ends = sorted({place for r in rows for place in r.place.values() if place != "inside"})
    if ends:
        text += f"a T* beyond the teachers tried counts as the {listed(ends)} of them; "
    costs = listed(
        f"{bracketed(cost[kind], '{:.4f}'.format)} {unit} for {called.format(kind)}"
        for kind, unit in zip(kinds, units, strict=True)
    )
    text += f"the best teacher of the other costs {costs}"
    if len(same_end) == len(rows):
        return "not_told_apart", text
    if ratio.within(1 / margin, margin):
        return "equal", text
    if ratio.beyond(1 / margin, margin):
        return "different", text
    return "not_told_apart", text
