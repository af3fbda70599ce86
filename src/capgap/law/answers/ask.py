"""
Query a fitted law for the best teacher of a student and the best student of a teacher.

The record of a law does not keep its draws, so the same law is fitted again to the same table.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from capgap.config import Law
from capgap.config.counts import parse_count
from capgap.errors import CapgapError
from capgap.law.answers.answer_records import ComputeAnswer, Recommendation, StudentAnswer
from capgap.law.answers.equal_compute import at_compute
from capgap.law.answers.extrapolation import too_far_for
from capgap.law.answers.leading_law_answer import LeadingLaw
from capgap.law.answers.power_law_answer import recommend, student_for
from capgap.law.fit_law import Fit, fit_law
from capgap.law.law_record import LawRecord
from capgap.law.number_text import about
from capgap.law.table.init_kinds import runs_of_law
from capgap.law.table.read_runs import main_arm, read_runs, teacher_sizes
from capgap.law.table.run_means import cell_table, spent_flops


@dataclass(frozen=True)
class OpenLaw:
    """A law with its table and the fit behind it.

    Its answers raise CapgapError if a count is not positive, no teacher is larger than the student, or a
    teacher is neither a name of the table nor a size. Sizes are parameters without embeddings; `tokens`
    is a distillation budget, the largest of the table if None; `teachers` are names of the table or sizes
    like 7B, all of the table if None, and those not larger than the student are left out.
    """

    law: LawRecord
    runs: pd.DataFrame
    fit: Fit

    def teachers_for(
        self, student: int, tokens: int | None = None, teachers: list[str] | None = None
    ) -> Recommendation:
        """Rank teachers for a student."""
        tokens = self._budget(tokens)
        larger = self._larger(student, teachers)
        cells = cell_table(self.runs, self.law.size)
        slope = self.law.lines[0].published_slope
        found = recommend(self.fit, self.law, larger, student, tokens, spent_flops(cells), slope)
        return LeadingLaw(self.law, cells).answer(found)

    def at_compute(
        self, student: int, flops: float, shared_by: int = 1, teachers: list[str] | None = None
    ) -> ComputeAnswer:
        """Rank teachers for a student at a number of FLOPs, so that larger teachers leave fewer tokens.

        shared_by: runs that share one pass of the teacher over the text, 1 if it runs online.
        """
        larger = self._larger(student, teachers)
        fit, level = self.fit, self.law.confidence
        found = at_compute(
            fit.power_law, fit.why_not, self.runs, larger, student, flops, shared_by, level
        )
        unfit = self._unfit_for(student)
        if unfit is None or self.fit.power_law is None:
            return found
        unknown = {"status": "abstains", "reason": unfit, "teacher_params": None, "ranked": []}
        return found.model_copy(update=unknown)

    def student_for(self, teacher: int, tokens: int | None = None) -> StudentAnswer:
        """Which student size a teacher suits best at a budget, by the power law."""
        if teacher <= 0:
            raise CapgapError(f"teacher is {teacher}, but must be greater than 0")
        tokens, found = self._budget(tokens), None
        reason = f"no law could be fitted: {self.fit.why_not}"
        if self.fit.power_law is not None:
            found = student_for(self.fit, teacher, tokens, self.law.confidence)
            reason = "by the law no student has its optimum there"
        if found is not None:
            size = about(found.value)
            unfit = self._unfit_for(found.value, tokens)
            if unfit is None and found.value >= teacher:
                unfit = "that is no smaller than the teacher"
            if unfit is not None:
                found, reason = None, f"by the law it would be the optimum of {size}, but {unfit}"
        return StudentAnswer(
            teacher_params_non_embedding=teacher,
            tokens=tokens,
            student_params=found,
            reason=reason if found is None else None,
        )

    def _unfit_for(self, student: float, tokens: int | None = None) -> str | None:
        """Why the law has no answer for this student and budget; None if it has one."""
        if self.law.status == "flat":
            return "teacher size makes no difference beyond noise in these runs"
        return too_far_for(self.law, student, tokens)

    def _budget(self, tokens: int | None) -> int:
        if tokens is None:
            return max(optimum.tokens for optimum in self.law.optima)
        if tokens <= 0:
            raise CapgapError(f"tokens is {tokens}, but must be greater than 0")
        return tokens

    def _larger(self, student: int, teachers: list[str] | None) -> dict[str, int]:
        """Sizes of the teachers on offer that are larger than a student, by name."""
        if student <= 0:
            raise CapgapError(f"student is {student}, but must be greater than 0")
        offered = known = teacher_sizes(self.runs)
        if teachers is not None:
            offered = {name: known.get(name) or _size(name, known) for name in teachers}
        larger = {name: size for name, size in offered.items() if size > student}
        if not larger:
            raise CapgapError(
                f"{'the table' if teachers is None else 'teachers'}: no teacher is larger than the "
                f"student, {student:,} parameters without embeddings; add a larger teacher or choose "
                "a smaller student"
            )
        return larger


def _size(name: str, known: dict[str, int]) -> int:
    try:
        return int(parse_count(name))
    except ValueError:
        raise CapgapError(
            f"teachers: '{name}' is neither a teacher of the table ({', '.join(known)}) nor a size "
            "like 7B"
        ) from None


def open_law(
    law_path: str | Path,
    runs_path: str | Path,
    init: str | None = None,
    weight: float | None = None,
) -> OpenLaw:
    """A law and its table, read as it was when the law was fitted, and fitted again.

    init, weight: kind of init (pruned, given or random), and weight of the teacher's term, whose law and
    runs are wanted; the record's own if None. Raises CapgapError if there is none, or if the law was not
    fitted on this table.
    """
    whole = LawRecord.read(law_path)
    runs = read_runs(runs_path, whole.measured, whole.excluded)
    law = whole.of_weight(weight).of_init(init)
    runs = runs_of_law(runs, law)
    return OpenLaw(law, runs, refit(law, runs, f"{law_path} and {runs_path}"))


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
