"""
A recommendation by the law that leads, if it is a law of the loss and not the power law.

The law of two causes needs the losses of the teachers on offer: those of the table's teachers are
known, those of others are interpolated in the table's family. If a teacher lies beyond the family, the
answer of the power law stands, with the reason in a note.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from capgap.config.run_grid import NONE
from capgap.law.answers.answer_records import RankedTeacher, Recommendation
from capgap.law.answers.extrapolation import limited
from capgap.law.answers.power_law_answer import notes_of
from capgap.law.causes.causes_fit import fit_two_causes
from capgap.law.causes.teacher_family import TeacherFamily, family_of
from capgap.law.causes.two_causes import TwoCauses
from capgap.law.law_record import Interval, LawRecord
from capgap.law.number_text import LAW_NAMES, about, budget, span
from capgap.law.rivals.loss_laws import LossLaw
from capgap.law.scores.contenders import RIVALS, pruned_main
from capgap.law.table.metric import METRICS

AT_END = 1.1  # times beyond an end of the family that still has its loss


@dataclass(frozen=True)
class LeadingLaw:
    """The law that leads, refitted at the first answer that needs it."""

    law: LawRecord
    cells: pd.DataFrame  # `run_means.cell_table` of the table that the law was fitted on

    @property
    def of_losses(self) -> bool:
        """Whether the leading law is a law of the loss, not the power law."""
        return self.law.leading not in (None, "power_law")

    @cached_property
    def family(self) -> TeacherFamily:
        """The curve of the teachers' own losses."""
        return family_of(self.cells)

    @cached_property
    def causes(self) -> TwoCauses:
        """The law of two causes."""
        return fit_two_causes(self.cells, self.law.confidence)

    @cached_property
    def rival(self) -> LossLaw:
        """The rival law of the loss."""
        return RIVALS[self.law.leading](self.cells)

    def answer(self, answer: Recommendation) -> Recommendation:
        """The answer of the power law, or that of the law that leads, within its limits."""
        return limited(self._by_leading(answer), self.law)

    def _by_leading(self, answer: Recommendation) -> Recommendation:
        if not self.of_losses:
            return answer
        losses = teacher_losses(self.cells, self.family, answer.ranked)
        if isinstance(losses, str):
            note = f"{LAW_NAMES[self.law.leading]} predicts best ({self.law.leading_reason}), but {losses}"
            return answer.model_copy(update={"notes": [*answer.notes, note]})
        costs = _two_causes if self.law.leading == "two_causes" else _rival
        return costs(answer, self, losses)


def teacher_losses(
    cells: pd.DataFrame, family: TeacherFamily, offered: list[RankedTeacher]
) -> dict[str, float] | str:
    """Losses of the teachers on offer by name, or which one is not known."""
    known = cells[cells["teacher"] != NONE].groupby("teacher")["teacher_loss"].mean()
    found = {}
    for one in offered:
        size = one.teacher_params_non_embedding
        if one.teacher in known.index:
            found[one.teacher] = float(known[one.teacher])
        elif family.ends[0] / AT_END <= size <= family.ends[1] * AT_END:
            found[one.teacher] = float(family.loss_of(size))
        else:
            low, high = map(about, family.ends)
            return f"the loss of {one.teacher} is not known: the family has {low} to {high}"
    return found


def _two_causes(answer: Recommendation, by: LeadingLaw, losses) -> Recommendation:
    law, cells, family, causes = by.law, by.cells, by.family, by.causes
    student, tokens = answer.student_params_non_embedding, answer.tokens
    names = list(losses)
    sizes = {one.teacher: float(one.teacher_params_non_embedding) for one in answer.ranked}
    size_K = np.array([sizes[name] for name in names]) if pruned_main(cells) else None
    loss_K = np.array([losses[name] for name in names])
    regret_K = causes.regret(student, tokens, loss_K, size_K)
    predicted = {
        name: causes.loss(student, tokens, loss_K[k], None if size_K is None else size_K[k])
        for k, name in enumerate(names)
    }
    regrets = dict(zip(names, regret_K, strict=True))
    star, note = None, "without pruning, the best teacher is the one with the lowest loss"
    if size_K is not None:
        star, place = causes.best_teacher(student, tokens, family.loss_of, family.ends)
        bound = f", the {place} of the family, which gives only a bound"
        where = "" if place == "interior" else bound
        note = (
            f"a teacher better by 1 makes its student better by {causes.theta_P[0]:.2f}, but heavier pruning "
            f"makes it worse; in the table's family of teachers the optimum for {about(student)} at "
            f"{budget(tokens)} is {about(star.value)} ({span(star)}){where}"
        )
    return _ranked(answer, law, regrets, predicted, star, note)


def _rival(answer: Recommendation, by: LeadingLaw, losses) -> Recommendation:
    frame = pd.DataFrame(
        {
            "teacher_loss": [losses[one.teacher] for one in answer.ranked],
            "teacher_params": [float(one.teacher_params_non_embedding) for one in answer.ranked],
            "student_params": float(answer.student_params_non_embedding),
            "tokens": float(answer.tokens),
        }
    )
    loss_K = np.exp(by.rival.predict(frame))
    names = [one.teacher for one in answer.ranked]
    predicted = {n: Interval.around(loss, None) for n, loss in zip(names, loss_K, strict=True)}
    regrets = {n: Interval.around(predicted[n].value - loss_K.min(), None) for n in names}
    return _ranked(
        answer, by.law, regrets, predicted, None, "it predicts the loss of every teacher"
    )


def _ranked(
    answer: Recommendation,
    law: LawRecord,
    regrets: dict[str, Interval],
    predicted: dict[str, Interval],
    star: Interval | None,
    note: str,
) -> Recommendation:
    """The answer with another law's regrets (by teacher), losses and T*."""
    ranked = [
        one.model_copy(
            update={
                "predicted_loss": predicted[one.teacher],
                "predicted_regret": regrets[one.teacher],
                "within_tie": regrets[one.teacher].value <= law.tie_nats,
            }
        )
        for one in answer.ranked
    ]
    ranked.sort(key=lambda one: (one.predicted_regret.value, one.teacher_params_non_embedding))
    best, everything = ranked[0], answer.exhaustive_flops
    sure = any((regret.low or 0.0) > law.tie_nats for regret in regrets.values())
    why_not = None
    if len(ranked) > 1 and not sure:
        why_not = (
            f"no teacher on offer is shown to be worse than the best by more than {law.tie_nats:g} "
            f"{METRICS[law.metric].short}"
        )
    rules = [
        rule.model_copy(update={"expected_regret_nats": regrets[rule.teacher].value})
        if rule.teacher in regrets
        else rule
        for rule in answer.rules
    ]
    return answer.model_copy(
        update={
            "status": "abstains" if why_not else "recommended",
            "reason": why_not,
            "basis": law.leading,
            "basis_note": f"{LAW_NAMES[law.leading]} ({law.leading_reason}): {note}",
            "teacher_params_star": star,
            "target_params": (
                star.value if star is not None else float(best.teacher_params_non_embedding)
            ),
            "ranked": ranked,
            "within_tie": [one.teacher for one in ranked if one.within_tie],
            "rules": rules,
            "saved_flops": everything - best.train_flops,
            "notes": notes_of(law, ranked),
        }
    )
