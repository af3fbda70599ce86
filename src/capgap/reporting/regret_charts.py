"""
The figures of what another teacher than the best one costs: as in `charts.py`.
"""

from __future__ import annotations

import altair as alt
import numpy as np

from capgap.law.law_record import LawRecord
from capgap.law.table.metric import METRICS
from capgap.reporting.report_text import (
    nats,
    on_ladder,
    ordered,
    several_budgets,
    size,
)
from capgap.reporting.theme import (
    INK,
    SAND,
    WIDE,
    Figure,
    case,
    facet,
    of_kind,
    student_colour,
    table,
    tips,
    titled,
)


def regret(law: LawRecord) -> Figure:
    """Loss of every teacher above the best one of the same student and budget."""
    several = several_budgets(law)
    sizes = {c.teacher: c.teacher_params_non_embedding for o in law.optima for c in o.teachers}
    order = sorted(sizes, key=lambda name: (sizes[name], name))
    rows = [
        {
            "kind": "tie" if one.teacher in found.within_tie else "behind",
            "label": case(found.student, found.tokens, several).replace(" student", ""),
            "student": found.student,
            "tokens": found.tokens,
            "teacher": one.teacher,
            "teacher_params": one.teacher_params_non_embedding,
            "regret_nats": one.regret_nats,
            "text": "best" if one.teacher == found.best_teacher else nats(one.regret_nats),
        }
        for found in ordered(law.optima)
        for one in sorted(found.teachers, key=lambda c: (c.teacher_params_non_embedding, c.teacher))
    ]
    data = table(rows, "label kind student tokens teacher teacher_params regret_nats text")
    labels = list(dict.fromkeys(data.label))
    worst = max(float(data.regret_nats.max()), law.tie_nats, 1e-9)
    angle = 0 if len(order) * max(map(len, order)) < 40 else -40  # names that fit on a phone
    x = alt.X(
        "teacher:N",
        sort=order,
        title=None,
        axis=alt.Axis(
            orient="top", labelAngle=angle, domain=False, ticks=False, labelOverlap=False
        ),
    )
    y = alt.Y("label:N", sort=labels, title=None, axis=alt.Axis(labelColor=INK))
    base = alt.Chart(data).encode(x=x, y=y)
    shade = alt.Scale(type="sqrt", domain=[0, worst], range=["#fffaf2", "#e9a15b", "#a8481a"])
    dark = alt.datum.regret_nats > 0.55 * worst
    chart = alt.layer(
        base.mark_rect(stroke="#ffffff", strokeWidth=3).encode(
            color=alt.Color("regret_nats:Q", scale=shade, legend=None),
            tooltip=tips("label teacher", regret="regret_nats"),
        ),
        base.transform_filter("datum.kind == 'tie'").mark_rect(
            fill=None, stroke=INK, strokeWidth=1.5
        ),
        base.mark_text(fontSize=12).encode(
            text="text:N", color=alt.condition(dark, alt.value("#ffffff"), alt.value(INK))
        ),
    ).properties(width=WIDE["width"], height=44 * len(labels))
    return Figure("regret", titled(chart, _title(law)), data)


def flatness(law: LawRecord) -> Figure | None:
    """Loss above the best teacher against T/T*, for every T* on its ladder; None without any."""
    several = several_budgets(law)
    rows = [
        {
            "kind": "teacher",
            "student": found.student,
            "student_params": found.student_params_non_embedding,
            "tokens": found.tokens,
            "panel": f"{size(found.tokens)} tokens" if several else "",
            "teacher": one.teacher,
            "times_best": one.teacher_params_non_embedding / found.teacher_params.value,
            "regret_nats": one.regret_nats,
        }
        for found in ordered(law.optima)
        if on_ladder(found)
        for one in found.teachers
    ]
    if not rows:
        return None
    rows.sort(key=lambda row: row["tokens"])
    panels = list(dict.fromkeys(row["panel"] for row in rows))
    rows += [{"kind": "tie", "panel": panel, "regret_nats": law.tie_nats} for panel in panels]
    data = table(rows, "panel kind student student_params tokens teacher times_best regret_nats")
    times = data.times_best.dropna()
    x = alt.X(
        "times_best:Q",
        title="T/T*",
        scale=alt.Scale(type="log", domain=[times.min() / 1.15, times.max() * 1.15], nice=False),
        axis=alt.Axis(
            values=[v for v in (0.1, 0.2, 0.5, 1, 2, 5, 10) if times.min() <= v <= times.max()],
            format="~r",
        ),
    )
    most = float(np.quantile(data.regret_nats.dropna(), 0.9))
    y = alt.Y(
        "regret_nats:Q",
        title=None,
        scale=alt.Scale(domain=[0, max(most, 4 * law.tie_nats)], nice=False),
        axis=alt.Axis(tickCount=5),
    )
    colour = student_colour(data)
    teachers = of_kind(data, "teacher").encode(x=x, y=y, color=colour)
    layers = [
        of_kind(data, "tie").mark_rect(color=SAND).encode(y=y, y2=alt.datum(0)),
        teachers.mark_line(strokeWidth=1.5, clip=True),
        teachers.mark_circle(size=45, opacity=1, clip=True).encode(
            tooltip=tips("student teacher tokens", regret="regret_nats", times="times_best")
        ),
    ]
    title = _title(law)
    if several:
        panel = {"width": 246, "height": 220}
        return Figure("flatness", titled(facet(layers, data, panels, 3, panel), title), data)
    chart = alt.layer(*layers, data=data).properties(width=WIDE["width"], height=280)
    return Figure("flatness", titled(chart, title), data)


def _title(law: LawRecord) -> str:
    metric = METRICS[law.metric]
    return f"{metric.noun[0].upper()}{metric.noun[1:]} above the best teacher, {metric.unit}"
