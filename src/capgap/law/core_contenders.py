"""How the laws of T* are fitted to some of the runs, for scoring against the laws of the loss."""

from __future__ import annotations

import numpy as np
import pandas as pd

from capgap.config import Law
from capgap.law.cells import cells_of, pool
from capgap.law.optimum import locate
from capgap.law.records import Interval
from capgap.law.scoring import Case, Choose, Contender, nearest
from capgap.law.surface import fit_surface
from capgap.law.table import main_arm
from capgap.law.unevenness import unevenness_of

FEWER = 200  # resamples at most, for each thing left out


def core_contenders(settings: Law) -> dict[str, Contender]:
    """The laws of T*, by their names in `scoring.LEARNED`."""
    resamples = min(settings.resamples, FEWER)

    def power_law(runs: pd.DataFrame, _: pd.DataFrame) -> Choose | str:
        cells = cells_of(main_arm(runs))
        noise = pool(cells)
        surface = fit_surface(cells, noise, resamples, settings.confidence, settings.seed)
        if surface is None or surface.status != "fitted":
            return "no surface" if surface is None else f"surface {surface.status}"

        def choose(case: Case) -> tuple[int, Interval | None] | str:
            ratio = surface.ratio(case.size, case.tokens, settings.confidence)
            if ratio is None:
                return "the surface has no minimum there"
            star = {k: None if v is None else v * case.size for k, v in ratio.model_dump().items()}
            interval = Interval(**star) if surface.term_RP is not None else None
            return nearest(case.teachers, star["value"]), interval

        return choose

    def ratio(runs: pd.DataFrame, _: pd.DataFrame) -> Choose | str:
        cells = cells_of(main_arm(runs))
        noise, rng = pool(cells), np.random.default_rng(settings.seed)
        uneven = unevenness_of(cells, noise)
        places = [locate(c, noise, uneven, resamples, rng) for c in cells]
        logs: dict[int, list[float]] = {}
        for place in places:
            if place.status == "interior":
                log_ratio = float(np.log(place.star / place.cells.student_params))
                logs.setdefault(place.cells.tokens, []).append(log_ratio)
        if not logs:
            return "no interior optimum is left"

        def choose(case: Case) -> tuple[int, None] | str:
            if case.tokens not in logs:
                return "no interior optimum is left at this budget"
            return nearest(case.teachers, case.size * np.exp(np.mean(logs[case.tokens]))), None

        return choose

    return {"power_law": power_law, "ratio": ratio}
