"""The figure of the law: T* against S, the fitted and the published line."""

from __future__ import annotations

import altair as alt
import numpy as np

from capgap.law.law_record import FinalRecord, LawRecord, Line, Optimum
from capgap.reporting.theme import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    PALE_BLUE,
    RED,
    WIDE,
    Figure,
    case,
    close_ends,
    facet,
    limits,
    of_kind,
    size_axis,
    table,
    tips,
    titled,
)
from capgap.reporting.wording import interval, ordered, size

RIVALS = {"busbridge": "choice of Busbridge et al.", "p2": "choice of the P2 law"}


def law_chart(law: LawRecord, final: FinalRecord | None) -> Figure:
    """Best teacher size against student size, with the fitted and the published line.

    Optima at an edge of the grid are bounds: triangles that point where the optimum may lie. The
    rivals' choices are those for a student they were not fitted on.
    """
    points = [row for found in ordered(law.optima) for row in _optimum_rows(found)]
    star = final.choice.teacher_params_star if final else None
    if star:
        student = final.choice.student_params_non_embedding
        at = {
            "tokens": final.choice.law_tokens,
            "kind": "predicted",
            "student": f"final {size(student)}",
        }
        points.append(at | {"student_params": student} | limits(star))
    students = [row["student_params"] for row in points]
    slopes = [found.published_slope for found in law.lines]
    log = max(students) > 4 * min(students)
    points += _rival_rows(law)
    shown = [
        row[key]
        for row in points
        if row["kind"] != "tried"
        for key in ("teacher_params", "params_low", "params_high")
        if row.get(key)
    ]
    right, top = 1.12 * max(students), 1.12 * max([*shown, *(s * max(students) for s in slopes)])
    left, bottom = (min(students) / 1.3, min(shown) / 1.3) if log else (0.0, 0.0)
    xs = np.geomspace(left, right, 61) if log else np.array([left, right])
    points = [
        close_ends(row, bottom, top)
        for row in points
        if row["kind"] != "tried" or bottom < row["teacher_params"] < top
    ]
    rows = points + [row for found in law.lines for row in _line_rows(found, xs, bottom, log)]
    rows += [row for found in law.lines for row in _band_rows(found, bottom, top)]
    data = table(
        rows, "panel tokens kind student student_params teacher_params params_low params_high"
    )
    headers = {found.tokens: _header(found, law) for found in law.lines}
    data["panel"] = [headers[tokens] for tokens in data.tokens]

    def axis(channel: type, field: str, title: str | None, domain: list[float]):
        scale = alt.Scale(type="log" if log else "linear", domain=domain, nice=False)
        return channel(
            f"{field}:Q", title=title, scale=scale, axis=size_axis(domain if log else None)
        )

    x = axis(alt.X, "student_params", "Student size S, parameters", [left, right])
    y = axis(alt.Y, "teacher_params", None, [bottom, top])
    y_low = axis(alt.Y, "params_low", None, [bottom, top])
    names = ["fitted line", *dict.fromkeys(_published(found) for found in law.lines)]
    drawn = [name for name in names if (data.kind == name).any()]
    styles = {name: ((RED, [6, 4]) if name != names[0] else (BLUE, [1, 0])) for name in drawn}
    legend = alt.Legend(title=None, symbolType="stroke", symbolSize=300, symbolStrokeWidth=2)
    layers = [
        of_kind(data, "band")
        .mark_area(color=PALE_BLUE, opacity=0.45, clip=True)
        .encode(x=x, y=y_low, y2="params_high:Q"),
        alt.Chart(data)
        .transform_filter(alt.FieldOneOfPredicate("kind", drawn))
        .mark_line(strokeWidth=2, clip=True)
        .encode(
            x=x,
            y=y,
            color=alt.Color(
                "kind:N",
                legend=legend,
                scale=alt.Scale(domain=drawn, range=[colour for colour, _ in styles.values()]),
            ),
            strokeDash=alt.StrokeDash(
                "kind:N",
                legend=legend,
                scale=alt.Scale(domain=drawn, range=[dash for _, dash in styles.values()]),
            ),
        ),
        of_kind(data, "tried")
        .mark_tick(orient="horizontal", color=GREY, size=12, thickness=1)
        .encode(x=x, y=y),
    ]
    chosen = [name for name in RIVALS.values() if (data.kind == name).any()]
    if chosen:
        marks = alt.Scale(domain=chosen, range=["cross", "square"][: len(chosen)])
        layers.append(
            alt.Chart(data)
            .transform_filter(alt.FieldOneOfPredicate("kind", chosen))
            .mark_point(stroke=ORANGE, fill="#ffffff", size=55, strokeWidth=1.5, opacity=1)
            .encode(
                x=x,
                y=y,
                shape=alt.Shape("kind:N", legend=alt.Legend(title=None), scale=marks),
                tooltip=tips("student kind", size="teacher_params"),
            )
        )
    for kind, colour, shape in (
        ("interior", BLUE, "circle"),
        ("lower_bound", INK, "triangle-up"),
        ("upper_bound", INK, "triangle-down"),
        ("not_identifiable", GREY, "stroke"),
        ("predicted", RED, "diamond"),
    ):
        base = of_kind(data, kind).encode(x=x)
        dash = [1, 0] if kind in ("interior", "predicted") else [2, 3]
        fill = "#ffffff" if kind == "predicted" else colour
        layers += [
            base.mark_rule(color=colour, strokeDash=dash, strokeWidth=1.6, clip=True).encode(
                y=y_low, y2="params_high:Q"
            ),
            base.mark_point(
                shape=shape, stroke=colour, fill=fill, size=90, strokeWidth=2, opacity=1
            ).encode(y=y, tooltip=tips("student kind", size="teacher_params")),
            *(
                base.mark_text(align="left", dx=9, dy=14, fontSize=12, **ink).encode(
                    y=y, text="student:N"
                )
                for ink in ({"stroke": "#ffffff", "strokeWidth": 4}, {"color": INK})
            ),
        ]
    title = "Best teacher size T*, parameters"
    if len(headers) > 1:
        panel = {"width": 380 if len(headers) == 2 else 246, "height": 300}
        chart = facet(layers, data, list(headers.values()), 3, panel)
        return Figure("law", titled(chart, title), data)
    chart = alt.layer(*layers, data=data).properties(**WIDE)
    return Figure("law", titled(chart, title, next(iter(headers.values())).split("|")), data)


def _optimum_rows(found: Optimum) -> list[dict]:
    """The teachers tried, and the optimum: T* with its interval, its bound, or the whole range."""
    sizes = sorted({cell.teacher_params_non_embedding for cell in found.cells})
    at = {
        "tokens": found.tokens,
        "student": found.student,
        "student_params": found.student_params_non_embedding,
    }
    rows = [at | {"kind": "tried", "teacher_params": teacher} for teacher in sizes]
    low, high = sizes[0], sizes[-1]
    if found.teacher_params is not None:
        where = limits(found.teacher_params)
    elif found.status == "lower_bound":
        where = {"teacher_params": sizes[-2], "params_low": sizes[-2], "params_high": 1.1 * high}
    elif found.status == "upper_bound":
        where = {"teacher_params": sizes[1], "params_low": 0.8 * low, "params_high": sizes[1]}
    else:
        middle = (low * high) ** 0.5
        where = {"teacher_params": middle, "params_low": low, "params_high": high}
    return [*rows, at | {"kind": found.status} | where]


def _rival_rows(law: LawRecord) -> list[dict]:
    """What the rival laws choose for every student without having seen it."""
    return [
        {
            "tokens": pick.tokens,
            "kind": RIVALS[score.law],
            "student": pick.student,
            "student_params": pick.student_params_non_embedding,
            "teacher_params": pick.teacher_params_non_embedding,
        }
        for score in law.scores
        if score.law in RIVALS
        for pick in score.picks
    ]


def _published(found: Line) -> str:
    return f"published: {found.published_slope:g} × S"


def _line_rows(found: Line, students: np.ndarray, bottom: float, log: bool) -> list[dict]:
    """Points of the published line and, where there is one, of the fitted line."""
    lines = [(_published(found), found.published_slope, 0.0)]
    if found.slope and found.intercept:
        lines.append(("fitted line", found.slope.value, found.intercept.value))
    return [
        {
            "tokens": found.tokens,
            "kind": kind,
            "student_params": s,
            "teacher_params": slope * s + shift,
        }
        for kind, slope, shift in lines
        for s in students.tolist()
        if not log or slope * s + shift > bottom
    ]


def _band_rows(found: Line, bottom: float, top: float) -> list[dict]:
    """The interval of the fitted line; where it has no limit on a side it ends with the figure."""
    return [
        {
            "tokens": found.tokens,
            "kind": "band",
            "student_params": point.student_params_non_embedding,
            "teacher_params": point.teacher_params.value,
            "params_low": bottom if point.teacher_params.low is None else point.teacher_params.low,
            "params_high": top if point.teacher_params.high is None else point.teacher_params.high,
        }
        for point in found.band
    ]


def _header(found: Line, law: LawRecord) -> str:
    """What a panel says: the slope, or that there is none."""
    says = [case(None, found.tokens, True)] if len(law.lines) > 1 else []
    if found.slope:
        return "|".join([*says, f"fitted slope {interval(found.slope)}"])
    students = sum(place.tokens == found.tokens for place in law.optima)
    return "|".join(
        [*says, f"no line: {found.n_students} of {students} optima", "lie inside the teacher grid"]
    )
