"""
The look shared by all figures, and the few helpers that figures are built from.

Figures are drawn for a wide page; the page's script refits `width` and `columns` to a narrow one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import altair as alt
import numpy as np
import pandas as pd

from capgap.law.law_record import Interval
from capgap.reporting.report_text import arm_name, size

INK, MUTED, GRID = "#1c2430", "#5f6975", "#e4e8ec"
BLUE, PALE_BLUE, ORANGE, RED, SAND = "#1f5f8b", "#c9deed", "#cf6f14", "#b02a30", "#f3e9d2"
PURPLE, GREY, GREEN = "#7a4f9a", "#8d96a1", "#3f7d4e"
ARM_MARKS = {
    "main": (BLUE, "circle"),
    "no_teacher": (ORANGE, "diamond"),
    "cross_teacher": (PURPLE, "cross"),
    "random_init": (GREY, "square"),
    "given": (GREEN, "triangle-up"),
}
# Liberation Sans ships with vl-convert and has Arial's metrics: the same layout everywhere.
FONT = "Liberation Sans, Arial, Helvetica, sans-serif"
SIZE_LABEL = "replace(format(datum.value, '~s'), 'G', 'B')"
WIDE = {"width": 800, "height": 380}
PANEL = {"width": 252, "height": 210}

THEME = {
    "background": "#ffffff",
    "font": FONT,
    "padding": 4,
    "view": {"stroke": None},
    "title": {
        "anchor": "start",
        "frame": "group",
        "color": MUTED,
        "subtitleColor": INK,
        "fontSize": 12,
        "subtitleFontSize": 12,
        "fontWeight": "normal",
        "offset": 12,
    },
    "header": {
        "labelAnchor": "start",
        "labelFontSize": 12,
        "labelColor": INK,
        "labelPadding": 8,
        "labelLineHeight": 16,
    },
    "axis": {
        "domainColor": GREY,
        "gridColor": GRID,
        "labelColor": MUTED,
        "labelFontSize": 11,
        "labelOverlap": "greedy",
        "tickColor": GREY,
        "tickSize": 4,
        "titleColor": MUTED,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "titlePadding": 8,
    },
    "axisY": {"domain": False, "ticks": False, "labelPadding": 6},
    "axisX": {"grid": False},
    "legend": {
        "orient": "top",
        "columns": 0,
        "labelColor": INK,
        "labelFontSize": 12,
        "labelLimit": 260,
        "symbolSize": 70,
        "titleColor": MUTED,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
    },
}


class Figure(NamedTuple):
    """A figure: name of its files, specification, and the table behind it."""

    name: str
    chart: alt.TopLevelMixin
    data: pd.DataFrame


def table(rows: list[dict], columns: str) -> pd.DataFrame:
    """Rows as a table with these columns, whatever columns the rows use."""
    return pd.DataFrame(rows, columns=columns.split())


def case(student: str | None, tokens: int, several: bool) -> str:
    """Name of a panel: the student size, and the budget if there are several."""
    parts = [f"{student} student" if student else "", f"{size(tokens)} tokens" if several else ""]
    return ", ".join(part for part in parts if part)


def limits(estimate: Interval, ends: tuple[float, float] | None = None) -> dict:
    """An estimate of a teacher size as columns of a figure's table; ends: see `clipped`."""
    low, high = clipped(estimate, *ends) if ends else (estimate.low, estimate.high)
    return {"teacher_params": estimate.value, "params_low": low, "params_high": high}


def close_ends(row: dict, least: float, most: float) -> dict:
    """Cut an interval that is open on one side at the figure's edge; a missing one stays missing."""
    low, high = row.get("params_low"), row.get("params_high")
    if (low is None) == (high is None):
        return row
    return row | {
        "params_low": least if low is None else low,
        "params_high": most if high is None else high,
    }


def of_kind(data: pd.DataFrame, kind: str) -> alt.Chart:
    """The layer that draws the rows of one kind."""
    return alt.Chart(data).transform_filter(alt.datum.kind == kind)


def size_axis(values: Iterable[float] | None = None) -> alt.Axis:
    """An axis of counts, labelled 100k, 1M; ticks at 1, 2 and 5 over the span of `values`."""
    if values is None:
        return alt.Axis(labelExpr=SIZE_LABEL, tickCount=5)
    ticks = round_ticks(min(values) / 1.25, max(values) * 1.25)
    return alt.Axis(labelExpr=SIZE_LABEL, values=ticks) if len(ticks) > 1 else size_axis()


def round_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times the powers of ten between two values of at least 1."""
    return [d * 10.0**e for e in range(31) for d in (1, 2, 5) if low <= d * 10.0**e <= high]


def log_scale(low: float, high: float) -> alt.Scale:
    """A logarithmic scale that ends at these values."""
    return alt.Scale(type="log", domain=[low, high], nice=False)


def teacher_x(data: pd.DataFrame, field: str = "teacher_params") -> alt.X:
    """Logarithmic axis of the teachers' sizes with a little room on either side."""
    known = [float(value) for value in data.teacher_params.dropna()] or [1e5, 1e6]
    scale, axis = log_scale(min(known) / 1.2, max(known) * 1.2), size_axis(known)
    return alt.X(f"{field}:Q", title="Teacher size, parameters", scale=scale, axis=axis)


def loss_y(field: str = "loss_nats_per_token:Q") -> alt.Y:
    """Axis of losses, not from zero: differences are what matters."""
    return alt.Y(
        field,
        title=None,
        scale=alt.Scale(zero=False, nice=False, padding=10),
        axis=alt.Axis(tickCount=5),
    )


def tips(names: str, **numbers: str) -> list[alt.Tooltip]:
    """What a mark shows on hover: columns by name, then numbers as title=column."""
    shown = [alt.Tooltip(f"{name}:N") for name in names.split()]
    return shown + [
        alt.Tooltip(f"{column}:Q", title=title.replace("_", " "), format=",.5~r")
        for title, column in numbers.items()
    ]


def arm_scales(arms: Iterable[str]) -> tuple[alt.Color, alt.Shape]:
    """Colour and shape of the arms that occur, main first."""
    present = set(arms)
    known = [arm for arm in ARM_MARKS if arm in present] + sorted(present - set(ARM_MARKS))
    colours, shapes = zip(*[ARM_MARKS.get(arm, (INK, "triangle-up")) for arm in known], strict=True)
    names = [arm_name(arm) for arm in known]
    legend = alt.Legend(title=None) if len(known) > 1 else None
    return (
        alt.Color("arm:N", scale=alt.Scale(domain=names, range=list(colours)), legend=legend),
        alt.Shape("arm:N", scale=alt.Scale(domain=names, range=list(shapes)), legend=legend),
    )


def facet(
    layers: list[alt.Chart],
    data: pd.DataFrame,
    panels: list[str],
    columns: int,
    size: dict[str, int] = PANEL,
) -> alt.FacetChart:
    """Small multiples by the column `panel`; a '|' in a panel's name breaks the line."""
    header = alt.Header(title=None, labelExpr="split(datum.value, '|')")
    chart = alt.layer(*layers, data=data).properties(**size)
    return chart.facet(
        facet=alt.Facet("panel:N", sort=panels, header=header),
        columns=max(1, min(columns, len(panels))),
        bounds="flush",
        spacing={"column": 46, "row": 74},
    )


def titled(chart: alt.TopLevelMixin, text: str, notes: list[str] = ()) -> alt.TopLevelMixin:
    """The chart with the name and unit of its vertical axis on top, and sentences if any."""
    title = alt.Title(text=text, subtitle=list(notes)) if notes else alt.Title(text=text)
    return chart.properties(title=title)


def ramp(n: int) -> list[str]:
    """n colours from light to dark blue, for an ordered quantity."""
    light, dark = np.array([138, 185, 220]), np.array([13, 51, 92])
    shares = np.linspace(0, 1, n) if n > 1 else np.array([1.0])
    return [
        "#" + bytes(np.rint(light + (dark - light) * s).astype(int).tolist()).hex() for s in shares
    ]


def student_colour(data: pd.DataFrame) -> alt.Color:
    """The colour of a row by its student, darker for larger ones; rows may have none."""
    names = data.dropna(subset="student").sort_values("student_params").student.unique().tolist()
    return ordered_colour("student", names, title="student")


def ordered_colour(
    field: str, names: list[str], colours: list[str] | None = None, title: str | None = None
) -> alt.Color:
    """The colour of a row by a name, light to dark blue in their order unless colours are given."""
    return alt.Color(
        f"{field}:N",
        sort=names,
        scale=alt.Scale(domain=names, range=colours or ramp(len(names))),
        legend=alt.Legend(title=title, titleOrient="left") if title else alt.Legend(title=None),
    )


def clipped(found: Interval, least: float, most: float) -> tuple[float, float]:
    """The ends of an interval; those without a limit, or beyond a figure, end with the figure."""
    return (
        least if found.low is None else max(found.low, least),
        most if found.high is None else min(found.high, most),
    )
