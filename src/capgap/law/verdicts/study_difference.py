"""
Whether two laws differ: exponents, best ratios and sizes, and the runs behind them side by side.

The interval of a difference is made of the two intervals by the method of variance estimates recovery
(Zou and Donner, Statistics in Medicine 27, 2008): d - sqrt((x - x_low)^2 + (y_high - y)^2) to
d + sqrt((x_high - x)^2 + (y - y_low)^2), ratios and sizes in logarithms. It takes the two estimates as
independent. Two studies with common teachers or text are not: their errors go the same way, so the
interval is too wide, and a difference that it shows is all the more certain.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import pandas as pd

from capgap.errors import CapgapError
from capgap.law.law_record import Interval, LawRecord, Optimum, TeacherMean
from capgap.law.number_text import budget
from capgap.law.table.read_runs import KEY, SEEDS, main_arm

EXPONENTS = (
    "the exponent a of S at equal tokens",
    "the exponent b of D for one student",
    "the exponent a + b of S at equal tokens per parameter",
)
Verdict = Literal["equal", "different", "different_within_margin", "not_told_apart", "not_known"]


class Quantity(NamedTuple):
    """One quantity in both laws."""

    name: str
    ours: Interval | None
    theirs: Interval | None
    difference: Interval | None  # ours minus theirs; ours over theirs if `as_ratio`
    margin: float  # of the difference, or the share of the ratio, that counts as equal
    as_ratio: bool
    as_size: bool  # a number of parameters
    verdict: Verdict


class LossPair(NamedTuple):
    """One student, budget and teacher that both studies measured."""

    student: str
    tokens: int
    teacher: str
    loss: Quantity  # mean over runs, on the scale of the law's metric
    regrets: tuple[float, float]  # above the best teacher, ours and theirs


class Shared(NamedTuple):
    """What two tables have in common."""

    runs: int  # of the main arm, with the same loss in both
    changed: int  # the same run, with another loss
    teachers: int  # draws with the same validation loss in both
    only_ours: dict[str, list[str]]  # students, budgets, teachers
    only_theirs: dict[str, list[str]]


class Comparison(NamedTuple):
    """Two laws side by side."""

    quantities: list[Quantity]
    losses: list[LossPair]
    shared: Shared
    same_runs: bool  # both laws were fitted on the same runs, so differences have no noise


def compare(
    ours: LawRecord, our_runs: pd.DataFrame, theirs: LawRecord, their_runs: pd.DataFrame
) -> Comparison:
    """Compare two laws with their tables. Margins are those of our law.

    Raises CapgapError if the two count sizes or measure runs in different ways.
    """
    for what, a, b in (
        ("sizes", ours.size, theirs.size),
        ("runs", ours.measured, theirs.measured),
    ):
        if a != b:
            raise CapgapError(
                f"the two laws measure {what} differently, {a} and {b}, so they cannot be compared; "
                "fit one of them again (capgap law fit --size, --metric)"
            )
    shared = _shared(our_runs, their_runs)
    same = shared.runs == ours.n_runs == theirs.n_runs
    return Comparison(_quantities(ours, theirs, same), _losses(ours, theirs, same), shared, same)


def _quantities(ours: LawRecord, theirs: LawRecord, same: bool) -> list[Quantity]:
    margin, share = ours.exponent_margin, ours.ratio_margin
    a, b = ours.exponents, theirs.exponents
    both = "by_size_at_fixed_tokens_per_param"
    found = [
        quantity(EXPONENTS[0], a.by_size, b.by_size, margin, same),
        quantity(EXPONENTS[1], a.by_tokens, b.by_tokens, margin, same),
        quantity(EXPONENTS[2], getattr(a, both), getattr(b, both), margin, same),
        quantity(
            "T*/S at 25 tokens per parameter",
            ours.ratio_at_25_tokens_per_param,
            theirs.ratio_at_25_tokens_per_param,
            share,
            same,
            as_ratio=True,
        ),
    ]  # fmt: skip
    other = {(o.student, o.tokens): o for o in theirs.optima}
    for optimum in sorted(ours.optima, key=lambda o: (o.student_params_non_embedding, o.tokens)):
        twin = other.get((optimum.student, optimum.tokens))
        if twin is not None:
            found.append(_optimum(optimum, twin, share, same))
    return found


def _optimum(ours: Optimum, theirs: Optimum, share: float, same: bool) -> Quantity:
    return quantity(
        f"T* of {ours.student} at {budget(ours.tokens)}",
        ours.teacher_params,
        theirs.teacher_params,
        share,
        same,
        as_ratio=True,
        as_size=True,
    )


def quantity(
    name: str,
    ours: Interval | None,
    theirs: Interval | None,
    margin: float,
    same_runs: bool = False,
    *,
    as_ratio: bool = False,
    as_size: bool = False,
) -> Quantity:
    """A quantity with the difference of its two estimates, or their ratio, and what that shows.

    same_runs: both rest on the same runs; the difference then has no noise.
    """
    difference = None
    if ours is not None and theirs is not None:
        difference = ratio_of(ours, theirs) if as_ratio else difference_of(ours, theirs)
        if same_runs:
            at = difference.value
            difference = Interval(value=at, low=at, high=at)
    return Quantity(
        name, ours, theirs, difference, margin, as_ratio, as_size,
        verdict(difference, margin, as_ratio),
    )  # fmt: skip


def difference_of(ours: Interval, theirs: Interval) -> Interval:
    """Ours minus theirs; a side on which either has no limit has none."""

    def end(own: float | None, other: float | None, sign: int) -> float | None:
        if own is None or other is None:
            return None
        return (ours.value - theirs.value) + sign * math.hypot(
            own - ours.value, other - theirs.value
        )

    return Interval(
        value=ours.value - theirs.value,
        low=end(ours.low, theirs.high, -1),
        high=end(ours.high, theirs.low, +1),
    )


def ratio_of(ours: Interval, theirs: Interval) -> Interval:
    """Ours over theirs, as the difference of logarithms; both above 0."""
    found = difference_of(_mapped(ours, math.log), _mapped(theirs, math.log))
    return _mapped(found, math.exp)


def _mapped(interval: Interval, function) -> Interval:
    ends = {
        name: None if end is None or (function is math.log and end <= 0) else function(end)
        for name, end in interval.model_dump().items()
    }
    return Interval(**ends)


def verdict(difference: Interval | None, margin: float, as_ratio: bool) -> Verdict:
    """What an interval of a difference shows, see `Quantity`; a ratio within 1/(1 + m) to 1 + m is equal."""
    if difference is None:
        return "not_known"
    zero, below, above = (1.0, 1 / (1 + margin), 1 + margin) if as_ratio else (0.0, -margin, margin)
    if difference.within(below, above):
        return "equal"
    if difference.beyond(below, above):
        return "different"
    if difference.beyond(zero, zero):
        return "different_within_margin"
    return "not_told_apart"


def _losses(ours: LawRecord, theirs: LawRecord, same: bool) -> list[LossPair]:
    """Losses in both laws, by student size, budget and teacher size."""
    other = {(o.student, o.tokens, one.teacher): one for o in theirs.optima for one in o.teachers}
    pairs = []
    for optimum in sorted(ours.optima, key=lambda o: (o.student_params_non_embedding, o.tokens)):
        for one in optimum.teachers:
            twin = other.get((optimum.student, optimum.tokens, one.teacher))
            if twin is not None:
                loss = quantity("mean loss", _mean(one), _mean(twin), ours.tie_nats, same)
                pairs.append(
                    LossPair(
                        optimum.student,
                        optimum.tokens,
                        one.teacher,
                        loss,
                        (one.regret_nats, twin.regret_nats),
                    )
                )
    return pairs


def _mean(one: TeacherMean) -> Interval:
    return Interval(value=one.mean_loss_nats_per_token, low=one.loss_low, high=one.loss_high)


def _shared(ours: pd.DataFrame, theirs: pd.DataFrame) -> Shared:
    """Runs count as the same by their names and seeds, whatever the study."""
    a, b = main_arm(ours), main_arm(theirs)
    losses = [_by_run(table) for table in (a, b)]
    both = pd.concat(losses, axis=1, join="inner", keys=["ours", "theirs"])
    same = int((both.ours == both.theirs).sum())
    teachers = 0
    column = "teacher_val_loss_nats_per_token"
    if column in a and column in b:
        drawn = [{(t, loss) for t, loss in zip(x.teacher, x[column], strict=True)} for x in (a, b)]
        teachers = len({pair for pair in drawn[0] & drawn[1] if not pd.isna(pair[1])})
    only = []
    for one, other in ((a, b), (b, a)):
        only.append(
            {
                "students": _missing(one, other, "student", "student_params_non_embedding"),
                "budgets": [budget(n) for n in sorted({*one.tokens} - {*other.tokens})],
                "teachers": _missing(one, other, "teacher", "teacher_params_non_embedding"),
            }
        )
    return Shared(same, len(both) - same, teachers, *only)


def _by_run(runs: pd.DataFrame) -> pd.Series:
    seeds = {name: 0 for name in SEEDS if name not in runs}
    return runs.assign(**seeds).set_index(KEY).val_loss_nats_per_token


def _missing(one: pd.DataFrame, other: pd.DataFrame, name: str, by: str) -> list[str]:
    sizes = one.groupby(name)[by].mean()
    return [str(n) for n in sizes.sort_values().index if n not in set(other[name])]
