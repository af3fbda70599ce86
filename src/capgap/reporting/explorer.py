"""
The report's explorer: the answer of the law for a grid of students and budgets, ranked by teacher.

Computed once, so that the page needs no statistics of its own: moving a slider looks an answer up.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from capgap.law.answers.answer_records import Recommendation
from capgap.law.answers.leading_law_answer import LeadingLaw
from capgap.law.answers.power_law_answer import recommend
from capgap.law.fit_law import Fit
from capgap.law.law_record import Interval, LawRecord
from capgap.law.number_text import two_digits

STUDENTS, BUDGETS = 13, 9  # points of the grid
BEYOND = 2.0  # times outside of what was measured


def explorer(
    fit: Fit,
    law: LawRecord,
    teachers: dict[str, int],
    cells: pd.DataFrame,
    subject: tuple[float, int],
) -> dict[str, Any] | None:
    """Answers by student and budget, those of `capgap recommend`; None if no law could be fitted.

    teachers: parameters by name. cells: `run_means.cell_table` of the table of the law. subject: student
    size and budget that the page asks for at first.
    """
    by = LeadingLaw(law, cells)
    if fit.power_law is None and not by.of_losses:
        return None
    sizes = _grid([o.student_params_non_embedding for o in law.optima], STUDENTS)
    budgets = sorted({o.tokens for o in law.optima})
    if law.exponents.by_tokens is not None or (by.of_losses and len(budgets) > 1):
        budgets = _grid(budgets, BUDGETS)
    sizes = [size for size in sizes if size < max(teachers.values())]
    return {
        "students": sizes,
        "tokens": budgets,
        "start": [_nearest(sizes, subject[0]), _nearest(budgets, subject[1])],
        "tie_nats": law.tie_nats,
        "answers": [
            [_answer(fit, by, teachers, size, tokens) for tokens in budgets] for size in sizes
        ],
    }


def _grid(measured: list[float], points: int) -> list[int]:
    """Round numbers from below the smallest to beyond the largest, evenly spaced in the logarithm."""
    ends = min(measured) / BEYOND, max(measured) * BEYOND
    return sorted({two_digits(x) for x in np.geomspace(*ends, points)})


def _nearest(values: list[float], value: float) -> int:
    return int(np.abs(np.log(np.array(values) / value)).argmin())


def _answer(
    fit: Fit, by: LeadingLaw, teachers: dict[str, int], student: int, tokens: int
) -> dict[str, Any]:
    larger = {name: size for name, size in teachers.items() if size > student}
    found = by.answer(recommend(fit, by.law, larger, student, tokens, 0.0))
    return {
        "star": _ends(found.teacher_params_star),
        "abstains": found.reason if found.status == "abstains" else None,
        "beyond": _beyond(found),
        "ranked": [
            [row.teacher, row.teacher_params_non_embedding, _ends(row.predicted_regret)]
            for row in found.ranked
        ],
    }


def _ends(found: Interval | None) -> list[float | None] | None:
    """Value, lower and upper end to four digits, which is more than the page shows."""
    if found is None:
        return None
    return [
        None if end is None else float(f"{end:.4g}") for end in (found.value, found.low, found.high)
    ]


def _beyond(found: Recommendation) -> float:
    """How many times beyond the runs the answer lies."""
    return round(max(found.student_extrapolation, found.tokens_extrapolation), 2)
