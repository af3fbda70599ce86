"""The power law of a table of runs, with every optimum and every line by itself."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from capgap.config import Law
from capgap.law.optima.optimum_line import FittedLine, Level, fit_line, levels_of
from capgap.law.optima.single_optima import Located, locate
from capgap.law.power_law.curve_fit import axes_of
from capgap.law.power_law.diagnostics import outlier_in
from capgap.law.power_law.power_law import PowerLaw, fit_power_law
from capgap.law.table.grouped_runs import GroupedRuns, group_runs
from capgap.law.table.read_runs import main_arm


@dataclass(frozen=True)
class Fit:
    """All results of the regression."""

    runs: GroupedRuns
    power_law: PowerLaw | None
    why_not: str  # why there is no power law
    located: list[Located]  # by budget and student size
    lines: list[tuple[Level, FittedLine | None]]


def fit_law(runs: pd.DataFrame, settings: Law) -> Fit:
    """Fit the power law, every optimum and every line; `runs` as `read_runs` returns it.

    Raises CapgapError for a table without a main arm, and for an outlier, naming the run.
    """
    grouped = group_runs(main_arm(runs), settings.size)
    why_not = _why_not(grouped, settings)
    power_law = None if why_not else fit_power_law(grouped, settings.noise_sd)
    if power_law is not None:
        outlier_in(power_law, settings)
    located = [
        locate(grouped, group, power_law, settings.confidence)
        for group in range(len(grouped.first_G))
    ]
    factor = stats.norm.ppf((1 + settings.confidence) / 2)
    if power_law is not None:
        centre_3 = np.array([1.0, 0.0, 0.0])
        factor = max(abs(end) for end in power_law.multipliers(centre_3, settings.confidence))
    lines = [
        (level, fit_line(level.places, factor, settings.confidence)) for level in levels_of(located)
    ]
    return Fit(grouped, power_law, why_not, located, lines)


def _why_not(runs: GroupedRuns, settings: Law) -> str:
    """Why no power law can be fitted; empty if one can."""
    if runs.most_sizes < 3:
        return f"at most {runs.most_sizes} teacher size(s) a student; a minimum needs three"
    free = len(runs.loss_N) - len(runs.first_G) - axes_of(runs).basis_3Q.shape[1] - 1
    known = settings.noise_sd is not None or np.isfinite(runs.stated_sd_N).any()
    if free < 1 and not known:
        return "no degree of freedom is left for the noise; add seeds, or state law.noise_sd"
    return ""
