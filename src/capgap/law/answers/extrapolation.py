"""
Add the measured losses to a recommendation, and abstain if the law does not reach that far.

The answer abstains if the best teacher would be no larger than the student, or if the student or the
tokens lie further beyond the runs than the runs themselves span: a law fitted over a factor of r is
followed to r times its ends (and to twice them in any case), because its form was not tested over a
longer range.
"""

from __future__ import annotations

import math

from capgap.law.answers.answer_records import RankedTeacher, Recommendation
from capgap.law.law_record import Interval, LawRecord, Optimum
from capgap.law.number_text import about, budget, span, two_digits
from capgap.law.table.run_means import SAME_LOG_SIZE

LEAST_REACH = 2.0  # factor beyond the runs that is always allowed
STEP = 2.0  # suggested size of a new teacher, in multiples of the ladder's end


def limited(answer: Recommendation, law: LawRecord) -> Recommendation:
    """The answer with measured losses added; it abstains if it is beyond what the law can support."""
    near = nearest(law, answer.student_params_non_embedding, answer.tokens)
    here = near if _same(near, answer) else None
    reason = answer.reason
    if law.status == "fitted":
        too_far = too_far_for(law, answer.student_params_non_embedding, answer.tokens)
        if too_far:
            answer = _without_predictions(answer)
        reason = too_far or _below_student(answer) or reason
    note = None if reason == law.reason else _censored_note(near, here is not None, answer)
    return answer.model_copy(
        update={
            "ranked": answer.ranked if here is None else _measured(answer, here),
            "reason": reason,
            "status": "abstains" if reason else answer.status,
            "notes": list(dict.fromkeys([*answer.notes, *filter(None, [note])])),
        }
    )


def nearest(law: LawRecord, student: float, tokens: float) -> Optimum:
    """The measured student and budget that are nearest in log size and log tokens."""

    def away(found: Optimum) -> tuple[float, float, int]:
        size = abs(math.log(found.student_params_non_embedding / student))
        return size + abs(math.log(found.tokens / tokens)), size, found.tokens

    return min(law.optima, key=away)


def _same(near: Optimum, answer: Recommendation) -> bool:
    size = abs(math.log(near.student_params_non_embedding / answer.student_params_non_embedding))
    return size < SAME_LOG_SIZE and near.tokens == answer.tokens


def _measured(answer: Recommendation, here: Optimum) -> list[RankedTeacher]:
    means = {one.teacher: one for one in here.teachers}
    ranked = []
    for one in answer.ranked:
        mean = means.get(one.teacher)
        if mean is not None:
            loss = Interval(
                value=mean.mean_loss_nats_per_token, low=mean.loss_low, high=mean.loss_high
            )
            seen = {"measured_loss": loss, "measured_regret": mean.regret_nats}
            one = one.model_copy(update=seen)
        ranked.append(one)
    return ranked


def _below_student(answer: Recommendation) -> str | None:
    star, student = answer.teacher_params_star, answer.student_params_non_embedding
    if star is None or star.value > student:
        return None
    return (
        f"the law puts the best teacher at {about(star.value)} ({span(star)}), which is not larger "
        f"than the student of {about(student)}, so it cannot rank the teachers above it"
    )


def too_far_for(law: LawRecord, student: float, tokens: float | None = None) -> str | None:
    """Why the law does not reach this student (parameters) or budget (tokens); None if it does."""
    sizes, budgets = zip(
        *((o.student_params_non_embedding, o.tokens) for o in law.optima), strict=False
    )
    for what, value, studied in (("student", student, sizes), ("token budget", tokens, budgets)):
        if value is None:
            continue
        reach = max(studied) / min(studied)
        factor = max(value / max(studied), min(studied) / value)
        if factor > max(LEAST_REACH, reach) * (1 + SAME_LOG_SIZE):
            return (
                f"the {what} lies {factor:.3g} times beyond the runs, which themselves span only a "
                f"factor of {reach:.2g}: the law was not tested over such a range"
            )
    return None


def _without_predictions(answer: Recommendation) -> Recommendation:
    """The answer without predicted losses, which here would rest on the law's form and not on runs."""
    unknown = {"predicted_loss": None, "predicted_regret": None, "within_tie": None}
    return answer.model_copy(
        update={
            "ranked": [one.model_copy(update=unknown) for one in answer.ranked],
            "rules": [
                one.model_copy(update={"expected_regret_nats": None}) for one in answer.rules
            ],
            "within_tie": [],
        }
    )


def _censored_note(near: Optimum, here: bool, answer: Recommendation) -> str | None:
    """A note on which teacher to add if the best one measured is an end of its ladder."""
    if near.status not in ("lower_bound", "upper_bound"):
        return None
    one = next(one for one in near.teachers if one.teacher == near.best_teacher)
    size, student = one.teacher_params_non_embedding, near.student_params_non_embedding
    at = (
        "this student and budget"
        if here
        else f"{near.student} at {budget(near.tokens)}, the nearest"
    )
    if near.status == "lower_bound":
        return (
            f"the largest teacher measured at {at}, {near.best_teacher}, is the best there, so the "
            f"optimum may be larger: add a teacher of about {about(two_digits(size * STEP))}"
        )
    smaller = max(size / STEP, math.sqrt(size * student))
    text = f"the smallest teacher measured at {at}, {near.best_teacher}, is the best there"
    if smaller >= size / 1.1:
        return f"{text}, and it is barely larger than the student"
    return f"{text}, so the optimum may be smaller: add a teacher of about {about(two_digits(smaller))}"
