"""The figures of two studies side by side: T* against student size, and T*/S against tokens."""

from __future__ import annotations

import altair as alt
import pandas as pd

from capgap.law.law_record import LawRecord
from capgap.law.number_text import budget
from capgap.reporting.theme import (
    BLUE,
    GREY,
    ORANGE,
    WIDE,
    Figure,
    log_scale,
    ordered_colour,
    size_axis,
    table,
    tips,
    titled,
)

SHAPES = ["circle", "square", "diamond", "triangle-up", "cross", "triangle-down"]


def two_laws(laws: dict[str, LawRecord]) -> list[Figure]:
    """Both figures; none without a T* by either power law.

    laws: ours and theirs by name. A colour is a study, a line one budget (first figure) or one
    student (second).
    """
    rows = [
        {
            "study": name,
            "student": f"{found.student} student",
            "student_params": found.student_params_non_embedding,
            "budget": budget(found.tokens),
            "tokens": found.tokens,
            "tokens_per_param": found.tokens / found.student_params_non_embedding,
            "teacher_params": found.teacher_params.value,
            "params_low": found.teacher_params.low,
            "params_high": found.teacher_params.high,
            "ratio": found.ratio.value,
            "ratio_low": found.ratio.low,
            "ratio_high": found.ratio.high,
        }
        for name, law in laws.items()
        for found in law.optima
        if found.teacher_params is not None and found.ratio is not None
    ]
    if not rows:
        return []
    rows.sort(key=lambda row: (row["tokens"], row["student_params"]))
    data = table(rows, " ".join(rows[0]))
    slope = next(iter(laws.values())).lines[0].published_slope
    sizes = _figure(
        data,
        list(laws),
        "size",
        x=("student_params", "Student size S, parameters"),
        y=("teacher_params", "params_low", "params_high"),
        line="budget",
    )
    ratios = _figure(
        data,
        list(laws),
        "ratio",
        x=("tokens_per_param", "Distillation tokens per student parameter"),
        y=("ratio", "ratio_low", "ratio_high"),
        line="student",
        level=slope,
    )
    return [
        Figure("sizes", titled(sizes, "Best teacher size T*, parameters"), data),
        Figure("ratios", titled(ratios, "Best teacher in multiples of the student, T*/S"), data),
    ]


def _figure(
    data: pd.DataFrame,
    studies: list[str],
    kind: str,
    *,
    x: tuple[str, str],
    y: tuple[str, str, str],
    line: str,
    level: float | None = None,
):
    """One figure on log axes; intervals end with the figure. level: a dashed rule."""
    value, low, high = y
    known = [*data[value], *([level] if level else [])]
    least, most = min(known) / 1.6, max(known) * 1.6
    shown = data.assign(
        **{low: data[low].fillna(least).clip(least, most), high: data[high].fillna(most).clip(least, most)}
    )  # fmt: skip
    span = [data[x[0]].min() / 1.25, data[x[0]].max() * 1.25]
    along = alt.X(f"{x[0]}:Q", title=x[1], scale=log_scale(*span), axis=size_axis(span))
    scale = log_scale(least, most)
    up = alt.Y(f"{value}:Q", title=None, scale=scale, axis=size_axis([least, most]))
    colour = ordered_colour("study", studies, [BLUE, ORANGE])
    groups = list(dict.fromkeys(data[line]))
    shape = alt.Shape(
        f"{line}:N",
        sort=groups,
        scale=alt.Scale(domain=groups, range=[SHAPES[i % len(SHAPES)] for i in range(len(groups))]),
        legend=alt.Legend(title=None),
    )
    # The other study is dashed, so that lines that coincide are both seen.
    dash = alt.StrokeDash(
        "study:N", scale=alt.Scale(domain=studies, range=[[1, 0], [5, 4]]), legend=None
    )
    base = alt.Chart(shown).encode(x=along, color=colour, detail=f"{line}:N")
    hover = tips("study student budget", **{kind: value, "low": low, "high": high})
    layers = [
        base.mark_line(strokeWidth=2, clip=True).encode(y=up, strokeDash=dash),
        base.mark_rule(strokeWidth=1.6, opacity=0.6, clip=True).encode(
            y=alt.Y(f"{low}:Q", title=None, scale=scale), y2=f"{high}:Q"
        ),
        base.mark_point(filled=True, size=75, opacity=1, clip=True).encode(
            y=up, shape=shape, tooltip=hover
        ),
    ]
    if level:
        rule = alt.Chart(pd.DataFrame({value: [level]}))
        layers.insert(
            0, rule.mark_rule(color=GREY, strokeDash=[6, 4], strokeWidth=1.5).encode(y=up)
        )
    return alt.layer(*layers).properties(**WIDE)
