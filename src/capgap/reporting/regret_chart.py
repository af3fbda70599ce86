"""The figure of what another teacher than the best one costs every student, as a table of colours."""

from __future__ import annotations

import altair as alt

from capgap.law.law_record import LawRecord
from capgap.law.table.metric import METRICS
from capgap.reporting.report_text import nats, ordered, several_budgets
from capgap.reporting.theme import INK, WIDE, Figure, case, table, tips, titled


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
    return Figure("regret", titled(chart, METRICS[law.metric].above_axis), data)
