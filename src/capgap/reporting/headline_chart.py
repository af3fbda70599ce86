"""The figure of the first screen: what every teacher costs each student, and where T* lies."""

from __future__ import annotations

import math

import altair as alt

from capgap.law.law_record import LawRecord
from capgap.law.table.metric import METRICS
from capgap.reporting.report_text import ordered, several_budgets, size
from capgap.reporting.theme import (
    SAND,
    WIDE,
    Figure,
    facet,
    limits,
    of_kind,
    student_colour,
    table,
    teacher_x,
    tips,
    titled,
)

HEIGHT = 190  # pixels of a panel, so that three in a row leave room for the answer above them
MOST_PANELS = 3  # budgets in a row
STRIP = 0.085  # height of one student's row of T*, as a share of the axis above zero


def headline(law: LawRecord) -> Figure:
    """Loss above the best teacher against teacher size: a panel for each budget, a line for each student.

    Below zero every student has a row with its T* by the power law and the interval of it, as far
    as the panel reaches. With more than three budgets the panels wrap.
    """
    several = several_budgets(law)
    optima = sorted(ordered(law.optima), key=lambda found: found.tokens)
    sizes = [one.teacher_params_non_embedding for found in optima for one in found.teachers]
    most = max(law.tie_nats * 4, *(one.regret_nats for found in optima for one in found.teachers))
    students = list(dict.fromkeys(found.student for found in ordered(law.optima)))
    rows = []
    for found in optima:
        known = {
            "panel": f"{size(found.tokens)} tokens" if several else "",
            "student": found.student,
            "student_params": found.student_params_non_embedding,
            "tokens": found.tokens,
        }
        rows += [
            known
            | {
                "kind": "teacher",
                "teacher": one.teacher,
                "teacher_params": one.teacher_params_non_embedding,
                "regret_nats": one.regret_nats,
            }
            for one in found.teachers
        ]
        if found.teacher_params is not None:
            row = -STRIP * most * (students.index(found.student) + 1)
            rows.append(known | {"kind": "optimum", "row": row} | _within(found, sizes))
    panels = list(dict.fromkeys(row["panel"] for row in rows))
    rows += [{"kind": "tie", "panel": panel, "regret_nats": law.tie_nats} for panel in panels]
    data = table(
        rows,
        "panel kind student student_params tokens teacher teacher_params params_low params_high "
        "regret_nats row",
    )
    x = teacher_x(data)
    x_low = teacher_x(data, "params_low")
    scale = alt.Scale(domain=[-STRIP * most * (len(students) + 0.7), most * 1.05], nice=False)
    axis = alt.Axis(values=_ticks(most), format="~f")
    y = alt.Y("regret_nats:Q", title=None, scale=scale, axis=axis)
    y_row = alt.Y("row:Q", title=None, scale=scale, axis=axis)
    colour = student_colour(data)
    teachers = of_kind(data, "teacher").encode(x=x, y=y, color=colour)
    stars = of_kind(data, "optimum").encode(color=colour, y=y_row)
    layers = [
        of_kind(data, "tie").mark_rect(color=SAND).encode(y=y, y2=alt.datum(0)),
        teachers.mark_line(strokeWidth=2),
        teachers.mark_circle(size=42, opacity=1).encode(
            tooltip=tips("student teacher tokens", cost="regret_nats")
        ),
        stars.mark_rule(strokeWidth=2, clip=True).encode(x=x_low, x2="params_high:Q"),
        stars.mark_point(filled=True, shape="diamond", size=60, opacity=1, clip=True).encode(
            x=x,
            tooltip=tips(
                "student tokens", T="teacher_params", low="params_low", high="params_high"
            ),
        ),
    ]
    title = METRICS[law.metric].above_axis
    if several:
        panel = {"width": 252, "height": HEIGHT}
        # An axis for every panel, because panels wrap on a narrow page.
        chart = facet(layers, data, panels, MOST_PANELS, panel).resolve_axis(x="independent")
        return Figure("headline", titled(chart, title), data)
    chart = alt.layer(*layers, data=data).properties(width=WIDE["width"], height=HEIGHT)
    return Figure("headline", titled(chart, title), data)


def _ticks(most: float) -> list[float]:
    """Round steps from zero up, four to eight of them; none below zero, where the rows of T* are."""
    exponent = math.floor(math.log10(most))
    step = next(
        d * 10.0 ** (exponent - 1)
        for d in (1, 2, 5, 10, 20)
        if most / d < 6 * 10.0 ** (exponent - 1)
    )
    return [round(i * step, 12) for i in range(int(most / step) + 1)]


def _within(found, sizes: list[int]) -> dict:
    """T* and its interval as far as the teachers of the study reach."""
    least, most = min(sizes) / 1.15, max(sizes) * 1.15
    ends = limits(found.teacher_params)
    if ends["params_low"] is None and ends["params_high"] is None:
        return {"teacher_params": min(max(ends["teacher_params"], least), most)}
    low, high = ends["params_low"] or least, ends["params_high"] or most
    return {
        "teacher_params": min(max(ends["teacher_params"], least), most),
        "params_low": min(max(low, least), most),
        "params_high": min(max(high, least), most),
    }
