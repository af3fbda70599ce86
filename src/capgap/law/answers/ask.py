"""
Query a fitted law for the best teacher of a student and the best student of a teacher.

The record of a law does not keep its draws, so the same law is fitted again to the same table.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from capgap.config import Law
from capgap.config.counts import parse_count
from capgap.errors import CapgapError
from capgap.law.answers.answer_records import ComputeAnswer, Recommendation
from capgap.law.answers.equal_compute import at_compute
from capgap.law.answers.leading_law_answer import by_leading
from capgap.law.answers.power_law_answer import recommend, student_for
from capgap.law.fit_law import Fit, fit_law
from capgap.law.law_record import LawRecord
from capgap.law.number_text import about, budget, span
from capgap.law.table.init_kinds import runs_of_law
from capgap.law.table.read_runs import main_arm, read_runs, teacher_sizes
from capgap.law.table.run_means import cell_table, spent_flops


def ask(
    law_path: str | Path,
    runs_path: str | Path,
    student: int,
    tokens: int | None = None,
    teachers: list[str] | None = None,
    init: str | None = None,
    weight: float | None = None,
) -> Recommendation:
    """Rank teachers for a student.

    student: parameters without embeddings. tokens: distillation budget, the largest of the table
    if None. teachers: names of the table or sizes like 7B, all of the table if None; those not
    larger than the student are left out. init: kind of its init, pruned, given or random; that of the
    main arm if None. weight: of the teacher's term, that of the first law if None. Raises CapgapError if
    a count is not positive, no teacher is larger than the student, a teacher is neither a name nor a
    size, or the law was not fitted on this table.
    """
    law, runs = read_both(law_path, runs_path, init, weight)
    fit = refit(law, runs, f"{law_path} and {runs_path}")
    return answer(fit, law, runs, student, tokens, teachers)


def answer(
    fit: Fit,
    law: LawRecord,
    runs: pd.DataFrame,
    student: int,
    tokens: int | None = None,
    teachers: list[str] | None = None,
) -> Recommendation:
    """Rank teachers for a student by a fit, its record and its table; the rest as in `ask`."""
    if tokens is None:
        tokens = max(optimum.tokens for optimum in law.optima)
    for name, value in (("student", student), ("tokens", tokens)):
        if value <= 0:
            raise CapgapError(f"{name} is {value}, but must be greater than 0")
    larger = _larger(_offered(teachers, teacher_sizes(runs)), student, teachers)
    cells = cell_table(runs, law.size)
    slope = law.lines[0].published_slope
    found = recommend(fit, law, larger, student, tokens, spent_flops(cells), slope)
    return by_leading(found, law, cells)


def ask_compute(
    law_path: str | Path,
    runs_path: str | Path,
    student: int,
    flops: float,
    shared_by: int = 1,
    teachers: list[str] | None = None,
    init: str | None = None,
    weight: float | None = None,
) -> ComputeAnswer:
    """Rank teachers for a student at a number of FLOPs, so that larger teachers leave fewer tokens.

    shared_by: runs that share one pass of the teacher over the text, 1 if it runs online. The rest and
    errors as in `ask`.
    """
    law, runs = read_both(law_path, runs_path, init, weight)
    fit = refit(law, runs, f"{law_path} and {runs_path}")
    offered = _larger(_offered(teachers, teacher_sizes(runs)), student, teachers)
    return at_compute(
        fit.power_law, fit.why_not, runs, offered, student, flops, shared_by, law.confidence
    )


def best_student(
    law_path: str | Path,
    runs_path: str | Path,
    teacher: int,
    tokens: int | None,
    init: str | None = None,
    weight: float | None = None,
) -> str:
    """Which student size a teacher fits best at a budget, by the power law, as a sentence."""
    law, runs = read_both(law_path, runs_path, init, weight)
    fit = refit(law, runs, f"{law_path} and {runs_path}")
    tokens = tokens or max(optimum.tokens for optimum in law.optima)
    if fit.power_law is None:
        return f"No law could be fitted: {fit.why_not}."
    found = student_for(fit, teacher, tokens, law.confidence)
    if found is None:
        return f"By the law no student has its optimum at {about(teacher)} at {budget(tokens)}."
    return (
        f"At {budget(tokens)} a teacher of {about(teacher)} is the optimum of a student of "
        f"{about(found.value)} ({span(found)})."
    )


def read_both(
    law_path: str | Path,
    runs_path: str | Path,
    init: str | None = None,
    weight: float | None = None,
) -> tuple[LawRecord, pd.DataFrame]:
    """A law and its table, read as it was when the law was fitted.

    init, weight: kind of init, and weight of the teacher's term, whose law and runs are wanted; the
    record's own if None.
    """
    whole = LawRecord.read(law_path)
    runs = read_runs(runs_path, whole.measured, whole.excluded)
    law = whole.of_weight(weight).of_init(init)
    return law, runs_of_law(runs, law)


def refit(law: LawRecord, runs: pd.DataFrame, where: str) -> Fit:
    """The fit behind a law record, whose draws the record does not keep.

    Raises CapgapError if the record belongs to another table.
    """
    settings = Law(
        confidence=law.confidence, tie_nats=law.tie_nats, size=law.size, noise_sd=law.noise_sd
    )
    fit = fit_law(runs, settings)
    found = [
        (place.student, round(place.tokens), place.status, set(place.runs.teacher_N.tolist()))
        for place in fit.located
    ]
    recorded = [
        (o.student, o.tokens, o.status, {one.teacher for one in o.teachers}) for o in law.optima
    ]
    if found != recorded or len(main_arm(runs)) != law.n_runs:
        raise CapgapError(f"{where} do not belong together: fit the law again on this table")
    return fit


def _larger(offered: dict[str, int], student: int, teachers: list[str] | None) -> dict[str, int]:
    larger = {name: size for name, size in offered.items() if size > student}
    if not larger:
        raise CapgapError(
            f"{'the table' if teachers is None else 'teachers'}: no teacher is larger than the "
            f"student, {student:,} parameters without embeddings; add a larger teacher or choose "
            "a smaller student"
        )
    return larger


def _offered(teachers: list[str] | None, known: dict[str, int]) -> dict[str, int]:
    if teachers is None:
        return known
    sizes = {}
    for name in teachers:
        try:
            sizes[name] = known.get(name) or int(parse_count(name))
        except ValueError:
            raise CapgapError(
                f"teachers: '{name}' is neither a teacher of the table ({', '.join(known)}) nor "
                "a size like 7B"
            ) from None
    return sizes
