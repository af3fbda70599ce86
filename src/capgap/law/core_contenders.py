"""Refits of the laws of T* to a part of the runs, for scoring against the laws of the loss."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from capgap.config import Law
from capgap.law.grouped_runs import group_runs
from capgap.law.joint_law import fit_joint
from capgap.law.law_record import Interval
from capgap.law.means import averaged
from capgap.law.scoring import Case, Choose, Contender, nearest


def core_contenders(
    cells: pd.DataFrame, own: Mapping[tuple[str, int], Interval], settings: Law
) -> dict[str, Contender]:
    """The laws of T*, by their names in `scoring.LEARNED`; arguments as `scoring.score_laws`."""
    return {"power_law": _power_law(settings), "ratio": _ratio(cells, own)}


def _power_law(settings: Law) -> Contender:
    def contender(runs: pd.DataFrame, _: pd.DataFrame) -> Choose | str:
        main = runs[runs["arm"] == "main"]
        if main.empty:
            return "nothing is left to fit to"
        grouped = group_runs(averaged(main), settings.size)  # fewer rows: the fit goes with N^3
        groups = len(grouped.first_G)
        pairs = np.unique(np.column_stack([grouped.group_N, grouped.teacher_size_N]), axis=0)
        most = int(np.bincount(pairs[:, 0].astype(int)).max())
        # one curve has a minimum only with three sizes; alpha, a, b, c are found beside the levels
        if most < 3 or len(grouped.loss_N) - groups - 4 < 1:
            return "the runs that are left do not determine the law"
        law = fit_joint(grouped, settings.noise_sd)

        def choose(case: Case) -> tuple[int, Interval | None] | str:
            star = law.star(case.size, case.tokens, settings.confidence)
            if star is None:
                return "the runs that are left do not determine T* there"
            return nearest(case.teachers, star.value), star

        return choose

    return contender


def _ratio(cells: pd.DataFrame, own: Mapping[tuple[str, int], Interval]) -> Contender:
    sizes = cells.groupby("student")["student_params"].mean()
    tried = _teachers(cells)

    def contender(_: pd.DataFrame, kept: pd.DataFrame) -> Choose | str:
        logs: dict[int, list[float]] = {}
        for key, teachers in _teachers(kept).items():
            if key in own and teachers == tried[key]:  # nothing of this group is left out
                logs.setdefault(key[1], []).append(float(np.log(own[key].value / sizes[key[0]])))

        def choose(case: Case) -> tuple[int, None] | str:
            if case.tokens not in logs:
                return "no interior optimum is left at this budget"
            return nearest(case.teachers, case.size * np.exp(np.mean(logs[case.tokens]))), None

        return choose

    return contender


def _teachers(cells: pd.DataFrame) -> dict[tuple[str, int], set[str]]:
    main = cells[cells["arm"] == "main"]
    groups = main.groupby(["student", "tokens"])["teacher"]
    return {(str(student), int(tokens)): set(names) for (student, tokens), names in groups}
