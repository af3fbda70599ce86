"""
The best teacher size of one student size at one token budget.

Loss against log teacher size is interpolated by the polynomial through the best cell and up to two
cells on either side of it: three cells give a parabola, four a cubic, five a quartic. Its lowest
point between the neighbours of the best cell is T*. A parabola through three cells is biased by
k h^2 / 6 in log T (h: log step of the ladder, k: third over second derivative of the curve), a
least-squares parabola through five cells by 3.4 times that; the higher orders remove the leading
term and cost about a third in standard deviation (benchmarks/coverage.py measures both).

Where the best cell is the first or the last, the curve has no minimum inside the grid: the data
bound T* on one side only. The bounds that hold for every curve with a single minimum are the
neighbours of the best cell: T* < second smallest, or T* > second largest.

Shapes: K teachers by size, R resamples, W cells of a window, G points of a search grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from capgap.config import Law
from capgap.law.cells import Cells, Noise
from capgap.law.records import Interval, Optimum, TeacherCell
from capgap.law.unevenness import Unevenness
from capgap.law.words import about, listed

REACH = 2  # cells on either side of the best one that the polynomial passes through
SEARCH = 129  # points at which the polynomial is searched before Newton's method
NEWTON = 4  # steps; a parabola needs one

Status = Literal["interior", "lower_bound", "upper_bound", "not_identifiable"]


@dataclass(frozen=True)
class Located:
    """Where the optimum of some cells lies, with its resamples."""

    cells: Cells
    status: Status
    star: float | None  # T*, parameters; only where interior
    low_R: np.ndarray | None  # T* of each resample; a resample whose best teacher is the smallest
    high_R: (
        np.ndarray | None
    )  # says only 0 < T* < second smallest; the largest, T* > second largest
    interior_share: float | None


def minimum(log_size_K: np.ndarray, loss_RK: np.ndarray) -> np.ndarray:
    """Log size of the lowest point of each row's curve, (R,).

    log_size_K: strictly increasing, K >= 3. -inf where the first cell is the lowest, inf where the
    last one is. Equal losses count for the smaller size.
    """
    best_R = loss_RK.argmin(axis=1)
    last = len(log_size_K) - 1
    star_R = np.where(best_R == 0, -np.inf, np.inf)
    for best in range(1, last):
        rows = best_R == best
        if rows.any():
            window = slice(max(best - REACH, 0), best + REACH + 1)
            x_W = log_size_K[window] - log_size_K[best]
            around = (
                log_size_K[best - 1] - log_size_K[best],
                log_size_K[best + 1] - log_size_K[best],
            )
            star_R[rows] = log_size_K[best] + _lowest(x_W, loss_RK[rows, window], around)
    return star_R


def _lowest(x_W: np.ndarray, loss_RW: np.ndarray, between: tuple[float, float]) -> np.ndarray:
    """Lowest point between two abscissae of the polynomials through all points, (R,)."""
    order = np.arange(len(x_W))
    coefficient_RW = np.linalg.solve(np.vander(x_W, increasing=True), loss_RW.T).T
    grid_G = np.linspace(*between, SEARCH)
    value_RG = coefficient_RW @ np.vander(grid_G, len(x_W), increasing=True).T
    x_R = grid_G[value_RG.argmin(axis=1)]
    step = grid_G[1] - grid_G[0]
    low_R, high_R = x_R - step, x_R + step
    for _ in range(NEWTON):
        power_RW = x_R[:, None] ** order
        slope_R = (coefficient_RW[:, 1:] * order[1:] * power_RW[:, :-1]).sum(axis=1)
        bend_R = (coefficient_RW[:, 2:] * order[2:] * (order[2:] - 1) * power_RW[:, :-2]).sum(
            axis=1
        )
        x_R = np.clip(
            x_R - np.divide(slope_R, bend_R, out=np.zeros_like(x_R), where=bend_R > 0),
            low_R,
            high_R,
        )
    return np.clip(x_R, *between)


def locate(
    cells: Cells,
    noise: Noise | None,
    unevenness: Unevenness | None,
    resamples: int,
    rng: np.random.Generator,
) -> Located:
    """Find the optimum of some cells, and again in every resample of their runs."""
    size_U, average_UK = cells.by_size()
    if len(size_U) < 3:
        return Located(cells, "not_identifiable", None, None, None, None)
    log_size_U = np.log(size_U)
    star = float(minimum(log_size_U, (average_UK @ cells.mean_K)[None])[0])
    status: Status = "interior"
    if np.isinf(star):
        status = "upper_bound" if star < 0 else "lower_bound"
    value = float(np.exp(star)) if status == "interior" else None
    if noise is None:
        return Located(cells, status, value, None, None, None)
    loss_RK = cells.mean_K + noise.draw(rng, resamples, cells.map_KN.shape[1]) @ cells.map_KN.T
    if unevenness is not None:
        loss_RK += unevenness.draw(rng, resamples, len(cells.teachers))
    star_R = minimum(log_size_U, loss_RK @ average_UK.T)
    low_R = np.where(star_R == np.inf, size_U[-2], np.exp(star_R))
    high_R = np.where(star_R == -np.inf, size_U[1], np.exp(star_R))
    return Located(cells, status, value, low_R, high_R, float(np.isfinite(star_R).mean()))


def limits(low_R: np.ndarray, high_R: np.ndarray, confidence: float) -> tuple[float, float]:
    """Percentile limits over resamples of which each is known to lie in [low, high]."""
    tail = (1 - confidence) / 2
    skip = int(np.floor(tail * len(low_R) + 1e-9))  # 0.05 * 100 is 5
    return float(np.sort(low_R)[skip]), float(np.sort(high_R)[len(high_R) - 1 - skip])


def size_interval(value: float, low: float, high: float) -> Interval:
    """An interval of a size: a limit at or below 0, or at infinity, is no limit."""
    return Interval(
        value=value,
        low=low if low > 0 else None,
        high=high if np.isfinite(high) else None,
    )


def interval_of(located: Located, confidence: float) -> Interval | None:
    """T* with its interval over resamples (none with one seed); None unless inside the grid."""
    if located.star is None:
        return None
    if located.low_R is None:
        return Interval(value=located.star, low=None, high=None)
    return size_interval(located.star, *limits(located.low_R, located.high_R, confidence))


def describe(located: Located, settings: Law, between: tuple[float, int] | None) -> Optimum:
    """The record of an optimum; `between`: standard deviation between seeds (nats) and its df."""
    cells = located.cells
    star, ratio = interval_of(located, settings.confidence), None
    if star is not None:
        ratio = Interval(
            **{
                name: None if value is None else value / cells.student_params
                for name, value in star.model_dump().items()
            }
        )
    regret_K = cells.mean_K - cells.mean_K.min()
    return Optimum(
        student=cells.student,
        student_params_non_embedding=cells.student_params,
        tokens=cells.tokens,
        status=located.status,
        reason=_reason(located, star, settings.tie_nats),
        teacher_params=star,
        ratio=ratio,
        interior_share=located.interior_share,
        best_teacher=cells.teachers[int(cells.mean_K.argmin())],
        within_tie=[
            name
            for name, regret in zip(cells.teachers, regret_K, strict=True)
            if regret <= settings.tie_nats
        ],
        cells=_teacher_cells(cells, settings, between),
    )


def _teacher_cells(
    cells: Cells, settings: Law, between: tuple[float, int] | None
) -> list[TeacherCell]:
    records = []
    for k, name in enumerate(cells.teachers):
        mean, n = float(cells.mean_K[k]), int(cells.n_seeds_K[k])
        half = None
        if between is not None:
            sd, df = between
            half = float(stats.t.ppf((1 + settings.confidence) / 2, df) * sd / np.sqrt(n))
        records.append(
            TeacherCell(
                teacher=name,
                teacher_params_non_embedding=int(cells.teacher_params_K[k]),
                n_seeds=n,
                mean_loss_nats_per_token=mean,
                loss_low=None if half is None else mean - half,
                loss_high=None if half is None else mean + half,
                regret_nats=mean - float(cells.mean_K.min()),
            )
        )
    return records


def _largest_dip(mean_K: np.ndarray) -> float:
    """Largest fall of the loss from one cell to the next, going away from the best; 0 if none."""
    best = int(mean_K.argmin())
    away = np.concatenate([np.diff(mean_K[best:]), np.diff(mean_K[best::-1])])
    return float(max(0.0, -away.min(initial=0.0)))


def _reason(located: Located, star: Interval | None, tie_nats: float) -> str:
    """Why the status is what it is, in one or two sentences."""
    cells = located.cells
    sizes = np.unique(cells.teacher_params_K)
    if located.status == "not_identifiable":
        return (
            f"only {len(sizes)} teacher size(s) ({listed(cells.teachers)}); a minimum needs three"
        )
    best = cells.teachers[int(cells.mean_K.argmin())]
    if located.status == "upper_bound":
        return (
            f"the smallest teacher, {best}, is the best of {len(sizes)}: the optimum lies below "
            f"{about(sizes[1])}; add smaller teachers"
        )
    if located.status == "lower_bound":
        return (
            f"the largest teacher, {best}, is the best of {len(sizes)}: the optimum lies above "
            f"{about(sizes[-2])}; add larger teachers"
        )
    text = f"the lowest point of the curve through {len(sizes)} teacher sizes, near {best}"
    if len(sizes) == 3:
        text += "; with three sizes the shape of the curve is assumed, not checked"
    dip = _largest_dip(cells.mean_K)
    if dip > tie_nats:
        text += (
            f". The loss does not rise steadily away from it but dips by {dip:.3f} nats: "
            "the teachers differ in more than size"
        )
    if located.low_R is None:
        return text + ". One seed a cell: no interval is possible; add seeds"
    if star.low is None or star.high is None:
        away = 1 - located.interior_share
        text += (
            f". In {away:.0%} of the resamples the best teacher stands at the edge of the grid: "
            "the interval is open there"
        )
    return text
