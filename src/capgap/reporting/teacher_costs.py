"""What the first screen of the report shows besides the answer: the price of another teacher."""

from __future__ import annotations

import math
from typing import NamedTuple

from capgap.law.answers.answer_records import FinalRecord
from capgap.law.answers.extrapolation import nearest
from capgap.law.law_record import LawRecord
from capgap.law.number_text import budget
from capgap.law.table.metric import METRICS
from capgap.reporting.report_text import nats, size


class Price(NamedTuple):
    """What one teacher costs."""

    teacher: str
    size: str  # parameters, in words
    cost: str  # loss above the best, or 'best'
    perplexity: (
        str  # the same as a change of perplexity: '+2.4 %'; '' for other metrics and the best
    )
    share: float  # of the largest cost, from 0 to 1


class Prices(NamedTuple):
    """What every teacher costs one student at one budget that was measured."""

    student: str
    tokens: str
    tokens_seen: int  # the same as a number
    rows: list[Price]  # from the smallest teacher to the largest


def prices(law: LawRecord, final: FinalRecord | None) -> Prices:
    """Measured costs at the student and budget of the grid that are nearest to the answer's.

    The answer is for the final student, or, without one, for the largest student at its largest
    budget. Costs are mean losses above that of the best teacher, on the scale of the law's metric.
    """
    if final is not None:
        student, tokens = final.choice.student_params_non_embedding, final.choice.tokens
    else:
        largest = max(law.optima, key=lambda o: (o.student_params_non_embedding, o.tokens))
        student, tokens = largest.student_params_non_embedding, largest.tokens
    near = nearest(law, student, tokens)
    worst = max(one.regret_nats for one in near.teachers) or 1.0
    in_nats = METRICS[law.metric].unit == "nats per token"
    rows = [
        Price(
            teacher=one.teacher,
            size=size(one.teacher_params_non_embedding),
            cost="best" if one.teacher == near.best_teacher else nats(one.regret_nats),
            perplexity=f"+{100 * math.expm1(one.regret_nats):.1f} %"
            if in_nats and one.teacher != near.best_teacher
            else "",
            share=one.regret_nats / worst,
        )
        for one in sorted(near.teachers, key=lambda c: (c.teacher_params_non_embedding, c.teacher))
    ]
    return Prices(near.student, budget(near.tokens), near.tokens, rows)
