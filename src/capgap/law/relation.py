"""
More about a line of optima: its elasticity, what each student does to it, and its inverse.

Shapes: I interior optima, R resamples.
"""

from __future__ import annotations

import numpy as np
import statsmodels.api as sm
from scipy.optimize import brentq

from capgap.law.line import LEAST, FittedLine, hull
from capgap.law.optimum import Located
from capgap.records import Influence, Interval

FAR = 100.0  # times the students' range; how far an inverse is looked for


def interior(located: list[Located]) -> list[Located]:
    """The optima inside the grid."""
    return [place for place in located if place.status == "interior"]


def elasticity(located: list[Located], confidence: float) -> Interval | None:
    """Slope of log T* on log S over the interior optima of one budget; 1 where T* is in proportion.

    The interval is the hull of the regression's and that over runs, as for the line. None with
    fewer than three sizes.
    """
    inside = interior(located)
    log_s_I = np.log([place.cells.student_params for place in inside])
    if len(np.unique(log_s_I)) < LEAST:
        return None
    design = sm.add_constant(log_s_I - log_s_I.mean())
    model = sm.OLS(np.log([place.star for place in inside]), design).fit()
    runs = None
    if inside[0].low_R is not None:
        with np.errstate(divide="ignore"):  # a resample may put no lower limit on T*
            logs = FittedLine(
                1.0,
                log_s_I,
                np.log([place.star for place in inside]),
                np.log(np.stack([place.low_R for place in inside], axis=1)),
                np.log(np.stack([place.high_R for place in inside], axis=1)),
                confidence,
            )
        runs = logs.over_runs(np.linalg.pinv(design)[1])
    low, high = hull(model.conf_int(1 - confidence)[1], runs)
    return Interval(
        value=float(model.params[1]),
        low=float(low) if np.isfinite(low) else None,
        high=float(high) if np.isfinite(high) else None,
    )


def influence(located: list[Located]) -> list[Influence]:
    """Slope of T* on S without each student in turn; empty with fewer than three sizes."""
    inside = interior(located)
    size_I = np.array([place.cells.student_params for place in inside])
    star_I = np.array([place.star for place in inside])
    if len(np.unique(size_I)) < LEAST:
        return []
    found = []
    for i, place in enumerate(inside):
        rest = np.arange(len(inside)) != i
        if len(np.unique(size_I[rest])) > 1:
            slope = float(np.polyfit(size_I[rest], star_I[rest], 1)[0])
            found.append(Influence(student=place.cells.student, slope_without=slope))
    return found


def student_for(line: FittedLine, teacher_params: float) -> Interval | None:
    """Student size whose T* is this teacher, by the line; None where the line does not rise.

    The interval holds the students for which the interval of T* contains the teacher (inversion of
    the prediction, Fieller 1954): a limit is None where none is met within FAR times the students.
    """
    intercept, slope = line.regression().params
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
