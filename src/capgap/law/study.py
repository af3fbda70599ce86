"""The whole regression: from a table of runs to the record of the law."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

import numpy as np
import pandas as pd

from capgap.config import Law
from capgap.law.arms import effects_of
from capgap.law.cells import Noise, between_seeds, cells_of, pool
from capgap.law.claims import falls, grows, overall_of
from capgap.law.line import FittedLine, describe_line, fit_line
from capgap.law.means import cell_table
from capgap.law.optimum import Located, describe, interval_of, locate
from capgap.law.ratios import describe_surface
from capgap.law.records import Interval, LawRecord, Line, Optimum
from capgap.law.relation import elasticity, influence
from capgap.law.scores import scores_of
from capgap.law.shape import judge
from capgap.law.start_test import start_test
from capgap.law.surface import Surface, fit_surface
from capgap.law.table import family_monotone, main_arm
from capgap.law.unevenness import Unevenness, unevenness_of
from capgap.law.words import about, budget, span


@dataclass(frozen=True)
class Fit:
    """Everything the regression computed, with the resamples that the record does not keep."""

    noise: Noise | None
    between: tuple[float, int] | None
    unevenness: Unevenness | None
    located: dict[int, list[Located]]  # by token budget, students by size
    lines: dict[int, FittedLine | None]  # by token budget
    surface: Surface | None  # over all budgets, where asked for and possible


def fit_law(runs: pd.DataFrame, settings: Law, with_surface: bool = True) -> Fit:
    """Locate every optimum and fit every line; `runs` as `read_runs` returns it.

    The same runs and settings give the same numbers: resamples come from settings.seed, and cells
    are visited by budget and student size whatever the order of the rows.
    """
    cells = cells_of(main_arm(runs))
    noise = pool(cells)
    unevenness = unevenness_of(cells, noise)
    rng = np.random.default_rng(settings.seed)
    located = {
        tokens: [locate(c, noise, unevenness, settings.resamples, rng) for c in group]
        for tokens, group in groupby(cells, key=lambda c: c.tokens)
    }
    lines = {tokens: fit_line(places, settings.confidence) for tokens, places in located.items()}
    surface = None
    if with_surface:
        surface = fit_surface(cells, noise, settings.resamples, settings.confidence, settings.seed)
    return Fit(noise, between_seeds(cells), unevenness, located, lines, surface)


def own_optima(fit: Fit, settings: Law) -> dict[tuple[str, int], Interval]:
    """T* that each student and budget shows alone, where it is interior."""
    found = {
        (place.cells.student, tokens): interval_of(place, settings.confidence)
        for tokens, places in fit.located.items()
        for place in places
        if place.star is not None
    }
    return {key: own for key, own in found.items() if own is not None}


def optima_of(fit: Fit, settings: Law) -> list[Optimum]:
    """Records of all optima, by budget and student size."""
    return [
        _with_shape(describe(place, settings, fit.between), place, fit, settings)
        for places in fit.located.values()
        for place in places
    ]


def lines_of(fit: Fit, settings: Law) -> list[Line]:
    """Records of the lines, one for each budget."""
    return [_line(fit.lines[tokens], places, settings) for tokens, places in fit.located.items()]


def _line(fitted: FittedLine | None, places: list[Located], settings: Law) -> Line:
    """A line with its elasticity and the influence of each student."""
    power, resampled = elasticity(places, settings.confidence) or (None, None)
    more = {"elasticity": power, "elasticity_resampled": resampled, "influence": influence(places)}
    return describe_line(places, fitted, settings).model_copy(update=more)


def law_record(runs: pd.DataFrame, settings: Law) -> LawRecord:
    """The content of `law.json`."""
    fit, cells = fit_law(runs, settings), cell_table(runs)
    optima, lines = optima_of(fit, settings), lines_of(fit, settings)
    effects = effects_of(runs, fit.noise, settings.confidence, settings.tie_nats)
    surface = None if fit.surface is None else describe_surface(fit.surface, optima, settings)
    explained = start_test(cells)
    return LawRecord(
        n_runs=len(main_arm(runs)),
        confidence=settings.confidence,
        resamples=settings.resamples,
        tie_nats=settings.tie_nats,
        seed=settings.seed,
        seed_sd_nats=None if fit.between is None else fit.between[0],
        paired_sd_nats=None if fit.noise is None else fit.noise.sd,
        unevenness_sd_nats=None if fit.unevenness is None else fit.unevenness.sd,
        optima=optima,
        lines=lines,
        family_monotone=family_monotone(runs),
        verdict=_verdict(lines, settings.confidence, fit.unevenness),
        overall=overall_of(optima, lines, surface, effects, settings.published_slope),
        surface=surface,
        **scores_of(runs, cells, own_optima(fit, settings), settings),
        effects=effects,
        start_explains=explained,
    )


def _with_shape(optimum: Optimum, place: Located, fit: Fit, settings: Law) -> Optimum:
    """An optimum with the verdict on its curve."""
    judged = judge(place.cells, fit.noise, fit.unevenness, settings.confidence, settings.tie_nats)
    return optimum.model_copy(update={"shape": judged.shape, "shape_reason": judged.reason})


def _verdict(lines: list[Line], level: float, unevenness: Unevenness | None) -> str:
    """One sentence: what the data say about the law at each budget, and no more."""
    text = "; ".join(f"at {budget(line.tokens)} {_line_verdict(line, level)}" for line in lines)
    if unevenness is not None and unevenness.sd > 0:
        text += (
            f"; cells leave a smooth curve by {unevenness.sd:.2g} nats, more than seeds explain, "
            "and the intervals allow for it"
        )
    return text[0].upper() + text[1:] + "."


def _line_verdict(line: Line, level: float) -> str:
    if line.status == "not_identifiable":
        return f"the law is not identifiable: {line.reason}"
    slope, intercept = line.slope, line.intercept.value
    text = (
        f"T* = {slope.value:.3g} S {'-' if intercept < 0 else '+'} {about(abs(intercept))} over "
        f"{line.n_students} students, with a slope of {span(slope, _short)} ({level:.0%} interval"
    )
    if line.slope_resampled is not None:
        text += f"; {span(line.slope_resampled, _short)} if the law is exactly linear"
    text += (
        f"): the published {line.published_slope:g} is "
        f"{'inside' if line.published_slope_inside else 'outside'}"
    )
    if not (grows(line) or falls(line)):
        text += ", and 0 is not excluded, so no growth of T* with S is shown"
    return text


def _short(number: float) -> str:
    return f"{number:.3g}"
