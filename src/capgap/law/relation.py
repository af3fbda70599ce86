"""
More about a line of optima: its elasticity, what each student does to it, and its inverse.

Shapes: I interior optima, R resamples.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.optimize import brentq

from capgap.law.line import LEAST, FittedLine, fit_line
from capgap.law.optimum import Located
from capgap.law.records import Influence, Interval

FAR = 100.0  # times the students' range; how far an inverse is looked for


def interior(located: list[Located]) -> list[Located]:
    """The optima inside the grid."""
    return [place for place in located if place.status == "interior"]


def elasticity(
    located: list[Located], confidence: float
) -> tuple[Interval, Interval | None] | None:
    """Slope of log T* on log S over the optima of one budget; 1 where T* is in proportion.

    The regression's interval, as for the line, and the one over runs alone (None with one seed a
    cell). None with fewer than three sizes.
    """
    fitted = fit_line(located, confidence)
    if fitted is None:
        return None
    with np.errstate(divide="ignore"):  # a resample may put no lower limit on T*
        logs = FittedLine(
            1.0,
            np.log(fitted.student_I),
            np.log(fitted.star_I),
            None if fitted.low_RI is None else np.log(fitted.low_RI),
            None if fitted.high_RI is None else np.log(fitted.high_RI),
            confidence,
            replace(
                fitted.edges,
                student_C=np.log(fitted.edges.student_C),
                limit_C=np.log(fitted.edges.limit_C),
            ),
            relative=False,
        )
    value, low, high = logs.estimate(logs.line, [0.0, 1.0])
    own = Interval(
        value=value,
        low=float(low) if np.isfinite(low) else None,
        high=float(high) if np.isfinite(high) else None,
    )
    return own, logs.resampled(logs.line, [0.0, 1.0])


def influence(located: list[Located]) -> list[Influence]:
    """Slope of T* on S without each student in turn; empty with fewer than three sizes.

    Two optima that are left make a line by themselves, without bounds.
    """
    inside = interior(located)
    if len({place.cells.student_params for place in inside}) < LEAST:
        return []
    found = []
    for place in located:
        rest = [other for other in located if other is not place]
        line = fit_line(rest, 0.95)
        if line is not None:
            slope = float(line.line.coefficient_P[1])
        else:
            left = interior(rest)
            sizes = [other.cells.student_params for other in left]
            if len(set(sizes)) < 2:
                continue
            slope = float(np.polyfit(sizes, [other.star for other in left], 1)[0])
        if place.status != "not_identifiable":
            found.append(Influence(student=place.cells.student, slope_without=slope))
    return found


def student_for(line: FittedLine, teacher_params: float) -> Interval | None:
    """Student size whose T* is this teacher, by the line; None where the line does not rise.

    The interval holds the students for which the interval of T* contains the teacher (inversion of
    the prediction, Fieller 1954): a limit is None where none is met within FAR times the students.
    """
    intercept, slope = line.line.coefficient_P
    if slope <= 0:
        return None
    value = (teacher_params / line.unit - intercept) / slope * line.unit
    if value <= 0:
        return None
    least = line.student_I.min() * line.unit / FAR
    most = line.student_I.max() * line.unit * FAR

    def crossing(end: str, start: float, stop: float) -> float | None:
        def gap(log_size: float) -> float:
            limit = getattr(line.predict(float(np.exp(log_size))), end)
            if limit is None:
                limit = 0.0 if end == "low" else 1e6 * teacher_params
            return limit - teacher_params

        if not start < stop or gap(np.log(start)) * gap(np.log(stop)) > 0:
            return None
        return float(np.exp(brentq(gap, np.log(start), np.log(stop), xtol=1e-4)))

    return Interval(
        value=float(value),
        low=crossing("high", least, value),
        high=crossing("low", value, most),
    )
