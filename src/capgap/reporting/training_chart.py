"""The figures of learning curves: of a whole study, one student and budget at a time, and of some runs."""

from __future__ import annotations

from collections import defaultdict
from statistics import fmean

import altair as alt
import numpy as np
import pandas as pd

from capgap.config.counts import parse_count
from capgap.config.run_grid import arm_of
from capgap.law.number_text import budget
from capgap.records.run_records import CurveRow
from capgap.reporting.theme import (
    ORANGE,
    WIDE,
    Figure,
    loss_y,
    ordered_colour,
    ramp,
    size_axis,
    table,
    tips,
    titled,
)

MOST_POINTS = 24  # of a line; those of longer curves are thinned evenly in the logarithm
NO_TEACHER = "no teacher"
TEACHERS = "the teachers themselves"
LOSS, GAP = "loss", "above the lowest line"
Line = dict[int, list[float]]  # losses of all draws by tokens seen


def training(
    curves: list[CurveRow], sizes: dict[str, int], shown: tuple[str, int]
) -> Figure | None:
    """Validation loss against tokens, a line for each teacher, mean over its draws.

    sizes: parameters by teacher. shown: student and budget that the figure shows at first. The other
    students, budgets and the teachers themselves are chosen in a list of the page. Losses before the
    first step have no place on the logarithmic axis and are left out. None without curves.
    """
    groups: dict[tuple, dict[str, Line]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(list))
    )
    for row in curves:
        line = _line_of(row)
        if row.tokens and line:
            student = (parse_count(row.student), row.student, row.budget_tokens)
            group = student if row.student else (float("inf"), TEACHERS, 0)
            groups[group][line][row.tokens].append(row.val_loss_nats_per_token)
    if not groups:
        return None
    names = {group: _name(group) for group in sorted(groups)}
    rows = [row for group, name in names.items() for row in _rows(name, groups[group])]
    data = table(rows, "group teacher tokens loss_nats_per_token gap_nats")
    lines = sorted(set(data.teacher) - {NO_TEACHER}, key=lambda name: (sizes.get(name, 0), name))
    colours = ramp(len(lines))
    if NO_TEACHER in set(data.teacher):
        lines, colours = [*lines, NO_TEACHER], [*colours, ORANGE]
    first = next(
        (name for group, name in names.items() if group[1:] == shown), [*names.values()][-1]
    )
    chosen = alt.param(
        name="chosen",
        value=first,
        bind=alt.binding_select(options=list(names.values()), name="Curves of "),
    )
    scale = alt.param(
        name="scale", value=LOSS, bind=alt.binding_select(options=[LOSS, GAP], name="Show the ")
    )
    colour = ordered_colour("teacher", lines, colours, "teacher")
    x = alt.X(
        "tokens:Q",
        title="Tokens trained on",
        scale=alt.Scale(type="log", nice=False),
        axis=size_axis(data.tokens),
    )
    y = alt.Y(
        "shown:Q",
        title=None,
        scale=alt.Scale(zero=False, nice=False, padding=8),
        axis=alt.Axis(tickCount=5),
    )
    base = (
        alt.Chart(data)
        .transform_filter("datum.group == chosen")
        .transform_calculate(
            shown=f"scale == '{LOSS}' ? datum.loss_nats_per_token : datum.gap_nats"
        )
        .transform_filter("isValid(datum.shown)")
        .encode(x=x, y=y, color=colour)
    )
    hover = tips("teacher tokens", loss="loss_nats_per_token", above_the_lowest="gap_nats")
    title = alt.ExprRef(
        f"scale == '{LOSS}' ? 'Validation loss, nats per token' : "
        "'Validation loss above the lowest line at the same tokens, nats per token'"
    )
    chart = (
        alt.layer(
            base.mark_line(strokeWidth=2),
            base.mark_circle(size=32, opacity=1).encode(tooltip=hover),
        )
        .add_params(chosen, scale)
        .properties(**WIDE, title=alt.Title(text=title))
    )
    return Figure("training", chart, data)


def _line_of(row: CurveRow) -> str | None:
    """The line that a measurement belongs to; None for arms that the figure leaves out."""
    if row.student is None:
        return row.teacher
    arm = arm_of(row.init, row.teacher)
    return {"main": row.teacher, "no_teacher": NO_TEACHER}.get(arm)


def _name(group: tuple) -> str:
    _, student, tokens = group
    return f"the student of {student} at {budget(tokens)}" if tokens else TEACHERS


def _rows(name: str, lines: dict[str, Line]) -> list[dict]:
    """The points of one group; a gap only where all lines were measured, and after the first eighth.

    Before that the lines are so far apart that nothing could be seen of the end.
    """
    means = {line: {at: fmean(of) for at, of in points.items()} for line, points in lines.items()}
    shared = set.intersection(*(set(points) for points in means.values()))
    last = max(max(points) for points in means.values())
    return [
        {
            "group": name,
            "teacher": line,
            "tokens": tokens,
            "loss_nats_per_token": round(loss, 5),
            "gap_nats": round(loss - min(m[tokens] for m in means.values()), 5)
            if tokens in shared and len(means) > 1 and 8 * tokens >= last
            else None,
        }
        for line, points in means.items()
        for tokens, loss in _thinned(points)
    ]


def _thinned(points: dict[int, float]) -> list[tuple[int, float]]:
    """At most MOST_POINTS of a line, the first and the last among them."""
    known = sorted(points.items())
    if len(known) <= MOST_POINTS:
        return known
    ticks = np.geomspace(known[0][0], known[-1][0], MOST_POINTS)
    nearest = [int(np.abs(np.log([at for at, _ in known]) - np.log(t)).argmin()) for t in ticks]
    return [known[i] for i in dict.fromkeys(nearest)]


def learning_curves(curves: dict[str, pd.DataFrame]) -> Figure:
    """Validation loss against tokens, a line for each run.

    curves: what curve.csv of a run contains, by the name of the run.
    """
    rows = [
        curve.assign(run=name)[["run", "tokens", "val_loss_nats_per_token"]]
        for name, curve in curves.items()
    ]
    data = pd.concat(rows, ignore_index=True)
    x = alt.X("tokens:Q", title="Tokens trained on", scale=alt.Scale(nice=False), axis=size_axis())
    colour = ordered_colour("run", list(curves))
    if len(curves) < 2:
        colour = colour.legend(None)
    base = alt.Chart(data).encode(x=x, y=loss_y("val_loss_nats_per_token:Q"), color=colour)
    chart = alt.layer(
        base.mark_line(strokeWidth=2),
        base.mark_circle(size=40, opacity=1).encode(
            tooltip=tips("run tokens", loss="val_loss_nats_per_token")
        ),
    ).properties(**WIDE)
    return Figure("training", titled(chart, "Validation loss, nats per token"), data)
