"""
The laws of the loss and those of T*: their fits, how they are scored, and which one leads.

Laws of the loss are refitted from their fit to all cells, because that takes milliseconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from capgap.config import Law
from capgap.config.run_grid import pruned_from
from capgap.law.causes.causes_fit import fit_two_causes
from capgap.law.causes.teacher_family import family_of
from capgap.law.causes.two_causes import TwoCauses
from capgap.law.law_record import CausesOptimum, Interval, TeacherCauses, TwoCausesFit
from capgap.law.power_law.power_law import fit_power_law
from capgap.law.rivals.busbridge import fit_busbridge
from capgap.law.rivals.loss_laws import LossLaw, absent
from capgap.law.rivals.p2 import fit_p2
from capgap.law.scores.left_out import Case, Choose, Contender, leading, nearest, score_laws
from capgap.law.table.grouped_runs import group_runs
from capgap.law.table.metric import measure_of
from capgap.law.table.run_means import averaged

RIVALS = {"busbridge": fit_busbridge, "p2": fit_p2}


def scores_of(
    runs: pd.DataFrame,
    cells: pd.DataFrame,
    own: Mapping[tuple[str, int], Interval],
    settings: Law,
) -> dict[str, Any]:
    """Fields of LawRecord: rivals, scores, two_causes, leading and its reason.

    runs: as `read_runs`; cells: as `run_means.cell_table`; own: as `left_out.score_laws`.
    """
    causes = fit_two_causes(cells, settings.confidence)
    rivals = {name: _rival(name, cells, settings) for name in RIVALS}
    laws = {
        "power_law": _power_law_contender(settings),
        "ratio": _ratio_contender(cells, own),
        "two_causes": _causes_contender(causes),
        **{name: _rival_contender(name, law) for name, law in rivals.items()},
    }
    scores = score_laws(runs, cells, own, laws, settings)
    law, reason = leading(scores, measure_of(settings).short)
    return {
        "rivals": [rival.record for rival in rivals.values()],
        "scores": scores,
        "two_causes": causes_record(causes, cells),
        "leading": law,
        "leading_reason": reason,
    }


def causes_record(causes: TwoCauses | str, cells: pd.DataFrame) -> TwoCausesFit:
    """The law of two causes, with the best teachers of the table's own family."""
    if isinstance(causes, str):
        return TwoCausesFit(status="not_available", reason=causes)
    family, optima = family_of(cells), []
    pruned = cells[(cells["arm"] == "main") & cells["init"].str.startswith(pruned_from(""))]
    groups = pruned.groupby(["tokens", "student"])["student_params"].mean()
    for (tokens, student), size in sorted(groups.items(), key=lambda item: (item[0][0], item[1])):
        if size < family.ends[1]:
            star, place = causes.best_teacher(size, tokens, family.loss_of, family.ends)
            optima.append(
                CausesOptimum(
                    student=student,
                    student_params_non_embedding=size,
                    tokens=tokens,
                    teacher_params=star,
                    place=place,
                )
            )
    found = {"optima": optima, "teachers": _parts(causes, pruned), "off_family": list(family.off)}
    return causes.record().model_copy(update=found)


def _parts(causes: TwoCauses, pruned: pd.DataFrame) -> list[TeacherCauses]:
    """Damage and help of every teacher at every measured student and budget."""
    found = []
    groups = pruned.dropna(subset=["teacher_loss"]).groupby(["tokens", "student"])
    for (tokens, student), rows in sorted(
        groups, key=lambda item: (item[0][0], item[1]["student_params"].mean())
    ):
        teachers = rows.groupby("teacher")[["teacher_params", "teacher_loss"]].mean()
        teachers = teachers.sort_values("teacher_params")
        size = float(rows["student_params"].mean())
        damage_K, teacher_K = causes.parts(
            size, tokens, teachers["teacher_loss"].to_numpy(), teachers["teacher_params"].to_numpy()
        )
        found += [
            TeacherCauses(
                student=student,
                student_params_non_embedding=size,
                tokens=tokens,
                teacher=name,
                teacher_params_non_embedding=float(params),
                damage=damage,
                teacher_part=part,
            )
            for (name, params), damage, part in zip(
                teachers["teacher_params"].items(), damage_K, teacher_K, strict=True
            )
        ]
    return found


def _rival(name: str, cells: pd.DataFrame, settings: Law) -> LossLaw:
    metric = measure_of(settings)
    if metric.unit != "nats per token":
        return absent(name, f"it is a law of losses, and the runs are measured by {metric.name}")
    return RIVALS[name](cells)


def _power_law_contender(settings: Law) -> Contender:
    def contender(runs: pd.DataFrame, _: pd.DataFrame) -> Choose | str:
        main = runs[runs["arm"] == "main"]
        if main.empty:
            return "nothing is left to fit to"
        grouped = group_runs(averaged(main), settings.size)  # fewer rows: the fit goes with N^3
        # alpha, a, b and c are found beside the levels of the groups
        if grouped.most_sizes < 3 or len(grouped.loss_N) - len(grouped.first_G) - 4 < 1:
            return "the runs that are left do not determine the law"
        law = fit_power_law(grouped, settings.noise_sd)

        def choose(case: Case) -> tuple[int, Interval | None] | str:
            star = law.star(case.size, case.tokens, settings.confidence)
            if star is None:
                return "the runs that are left do not determine T* there"
            return nearest(case.teachers, star.value), star

        return choose

    return contender


def _ratio_contender(cells: pd.DataFrame, own: Mapping[tuple[str, int], Interval]) -> Contender:
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


def _rival_contender(name: str, whole: LossLaw) -> Contender:
    def contender(_: pd.DataFrame, kept: pd.DataFrame) -> Choose | str:
        if whole.predict is None:
            return whole.record.reason
        law = RIVALS[name](kept, whole)
        if law.predict is None or law.record.status == "failed":
            return law.record.reason
        return lambda case: _lowest(law.predict(case.rows))

    return contender


def _causes_contender(whole: TwoCauses | str) -> Contender:
    def contender(_: pd.DataFrame, kept: pd.DataFrame) -> Choose | str:
        law = whole if isinstance(whole, str) else fit_two_causes(kept, near=whole)
        if isinstance(law, str):
            return law
        return lambda case: _by_causes(law, case)

    return contender


def _by_causes(law: TwoCauses, case: Case) -> tuple[int, None] | str:
    teachers = case.teachers
    if teachers["teacher_loss"].isna().any():
        return "the table has no losses of some teachers"
    pruned = pruned_main(teachers)
    return _lowest(
        law.above_level(
            case.size,
            case.tokens,
            teachers["teacher_loss"].to_numpy(),
            teachers["teacher_params"].to_numpy() if pruned else None,
        )
    )


def pruned_main(cells: pd.DataFrame) -> bool:
    """Whether all inits of the main arm were pruned from a teacher."""
    main = cells[cells["arm"] == "main"] if "arm" in cells else cells
    return bool(main["init"].str.startswith(pruned_from("")).all())


def _lowest(loss_K: np.ndarray) -> tuple[int, None]:
    return int(np.argmin(loss_K)), None
