"""The figure of the law: T* against student size at every budget, and the published line."""

from __future__ import annotations

from typing import get_args

import altair as alt
import numpy as np

from capgap.law.answers.answer_records import FinalRecord
from capgap.law.law_record import LawRecord, Optimum, RivalName
from capgap.law.number_text import LAW_NAMES
from capgap.reporting.report_text import ordered, size
from capgap.reporting.theme import (
    GREY,
    INK,
    ORANGE,
    RED,
    WIDE,
    Figure,
    limits,
    log_scale,
    of_kind,
    ordered_colour,
    size_axis,
    table,
    tips,
    titled,
)

RIVALS = {
    name: f"choice of {LAW_NAMES[name].removeprefix('the law of ')}" for name in get_args(RivalName)
}
ROOM = 1.25  # of the axes beyond what is shown


def law_chart(law: LawRecord, final: FinalRecord | None) -> Figure:
    """Best teacher size against student size, both on log axes, a colour for each budget.

    Filled points lie on the power law T* ~ S^a D^b; hollow ones are the optimum of one curve by
    itself. The rivals' choices are those for a student that they were not fitted on.
    """
    optima = ordered(law.optima)
    names = level_names(optima)
    sizes = [one.teacher_params_non_embedding for found in optima for one in found.teachers]
    students = [found.student_params_non_embedding for found in optima]
    choice = final.choice if final and final.choice.teacher_params_star else None
    students += [choice.student_params_non_embedding] if choice else []
    left, right = min(students) / ROOM, max(students) * ROOM
    slope = law.lines[0].published_slope
    known = [*sizes, slope * left, slope * right]
    bottom, top = min(known) / ROOM, max(known) * ROOM
    rows = []
    for found in optima:
        rows += _rows(found, names[found.tokens, found.student], (bottom, top))
    if choice:
        student = choice.student_params_non_embedding
        at = {"kind": "final", "student": f"final {size(student)}", "student_params": student}
        rows.append(at | limits(choice.teacher_params_star, (bottom, top)))
    rows += [
        {
            "kind": RIVALS[score.law],
            "student": pick.student,
            "student_params": pick.student_params_non_embedding,
            "teacher_params": pick.teacher_params_non_embedding,
        }
        for score in law.scores
        if score.law in RIVALS
        for pick in score.picks
    ]
    published = f"published: {slope:g} × S"
    rows += [
        {"kind": published, "student_params": s, "teacher_params": slope * s}
        for s in np.geomspace(left, right, 21).tolist()
    ]
    data = table(rows, "kind level student student_params teacher_params params_low params_high")
    x = _axis(alt.X, "student_params", "Student size S, parameters", [left, right])
    y = _axis(alt.Y, "teacher_params", None, [bottom, top])
    y_low = _axis(alt.Y, "params_low", None, [bottom, top])
    levels = list(dict.fromkeys(names.values()))
    colour = ordered_colour("level", levels)
    fitted = of_kind(data, "power law").encode(x=x, color=colour)
    hover = tips("student level kind", size="teacher_params", low="params_low", high="params_high")
    layers = [
        of_kind(data, published)
        .mark_line(color=RED, strokeDash=[6, 4], strokeWidth=2, clip=True)
        .encode(x=x, y=y),
        of_kind(data, "tried")
        .mark_tick(orient="horizontal", color=GREY, size=12, thickness=1)
        .encode(x=x, y=y),
        fitted.mark_line(strokeWidth=2, clip=True).encode(y=y),
        fitted.mark_rule(strokeWidth=1.6, opacity=0.7, clip=True).encode(
            y=y_low, y2="params_high:Q"
        ),
        fitted.mark_point(filled=True, size=80, opacity=1, clip=True).encode(y=y, tooltip=hover),
        of_kind(data, "own curve")
        .mark_point(size=80, fill="#ffffff", strokeWidth=1.5, opacity=1, clip=True)
        .encode(x=x, y=y, color=colour, tooltip=hover),
    ]
    chosen = [name for name in RIVALS.values() if (data.kind == name).any()]
    if chosen:
        marks = alt.Scale(domain=chosen, range=["cross", "square"][: len(chosen)])
        layers.append(
            alt.Chart(data)
            .transform_filter(alt.FieldOneOfPredicate("kind", chosen))
            .mark_point(stroke=ORANGE, fill="#ffffff", size=45, strokeWidth=1.5, clip=True)
            .encode(
                x=x,
                y=y,
                shape=alt.Shape("kind:N", legend=alt.Legend(title=None), scale=marks),
                tooltip=tips("student kind", size="teacher_params"),
            )
        )
    predicted = of_kind(data, "final").encode(x=x)
    layers += [
        predicted.mark_rule(color=RED, strokeWidth=1.6, clip=True).encode(
            y=y_low, y2="params_high:Q"
        ),
        predicted.mark_point(
            shape="diamond", stroke=RED, fill="#ffffff", size=110, strokeWidth=2, opacity=1
        ).encode(y=y, tooltip=hover),
        predicted.mark_text(align="left", dx=10, dy=14, fontSize=12, color=INK).encode(
            y=y, text="student:N"
        ),
    ]
    chart = alt.layer(*layers, data=data).properties(**WIDE)
    return Figure("law", titled(chart, "Best teacher size T*, parameters", [published]), data)


def level_names(optima: list[Optimum]) -> dict[tuple[int, str], str]:
    """A name for the budget of each (tokens, student): tokens, or tokens per parameter.

    The latter if students share no budget but do share a number of tokens per parameter.
    """
    budgets = {found.tokens for found in optima}
    shared = len(budgets) < len(optima) or len(optima) == 1
    return {
        (found.tokens, found.student): f"{size(found.tokens)} tokens"
        if shared
        else f"{found.tokens / found.student_params_non_embedding:.2g} tokens per parameter"
        for found in optima
    }


def _rows(found: Optimum, level: str, ends: tuple[float, float]) -> list[dict]:
    """The teachers tried, T* of the power law, and that of the curve by itself. ends: of the figure."""
    at = {
        "level": level,
        "student": found.student,
        "student_params": found.student_params_non_embedding,
    }
    tried = sorted({one.teacher_params_non_embedding for one in found.teachers})
    rows = [at | {"kind": "tried", "teacher_params": teacher} for teacher in tried]
    if found.teacher_params is not None:
        rows.append(at | {"kind": "power law"} | limits(found.teacher_params, ends))
    if found.own_teacher_params is not None:
        rows.append(at | {"kind": "own curve"} | limits(found.own_teacher_params, ends))
    return rows


def _axis(channel: type, field: str, title: str | None, domain: list[float]):
    scale = log_scale(*domain)
    return channel(f"{field}:Q", title=title, scale=scale, axis=size_axis(domain))
