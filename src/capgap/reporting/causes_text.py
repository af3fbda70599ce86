"""
The law of two causes and the law that leads, as the report and the summary write them.

Pure functions of the law's record. Sizes are parameters without embeddings; losses are on the scale of
the fit, whose unit `capgap.law.table.metric` names.
"""

from __future__ import annotations

from typing import NamedTuple

from capgap.law.law_record import CausesOptimum, Interval, LawRecord, LeftOut, TeacherCauses
from capgap.law.number_text import LAW_NAMES, about, bracketed, budget, listed
from capgap.law.scores.left_out import KINDS
from capgap.law.table.metric import METRICS
from capgap.reporting.report_text import number, sentence


class DamageRow(NamedTuple):
    """The two causes at one measured student and budget."""

    student: str
    tokens: int
    smallest: TeacherCauses
    largest: TeacherCauses
    optimum: CausesOptimum | None


class LeadRow(NamedTuple):
    """What a law or rule cost on what it had not seen."""

    law: str
    leads: bool
    regret: LeftOut  # over all kinds
    by_kind: dict[str, LeftOut]


def leads(law: LawRecord) -> str:
    """Which law leads and what its choices cost, in a sentence; '' if no law was scored."""
    regrets = {row.law: row.regret.regret.value for row in lead_rows(law) if row.law in LAW_NAMES}
    if law.leading not in regrets:
        return ""
    best = regrets.pop(law.leading)
    text = (
        f"{sentence(LAW_NAMES[law.leading])} predicts best: for runs left out of its fit, the teacher that "
        f"it chose cost {loss(best)} {METRICS[law.metric].short} on average"
    )
    others = listed(f"that of {LAW_NAMES[name]} {loss(regret)}" for name, regret in regrets.items())
    return f"{text}; {others}." if others else f"{text}."


def lead_rows(law: LawRecord) -> list[LeadRow]:
    """Laws and rules by their mean regret over what they had not seen."""
    rows = [
        LeadRow(
            score.law,
            score.law == law.leading,
            score.left_out[-1],
            {part.kind: part for part in score.left_out if part.kind in KINDS},
        )
        for score in law.scores
        if score.left_out and score.left_out[-1].n_answered
    ]
    return sorted(rows, key=lambda row: (row.regret.regret.value, not row.leads))


def effects(law: LawRecord) -> str:
    """How much a better teacher helps and pruning harms, or why it is open; '' without the law."""
    found = law.two_causes
    if found is None or found.status == "not_available":
        return ""
    if found.status == "not_identifiable":
        return f"These runs do not settle how much a better teacher helps and pruning harms: {found.reason}."
    unit = METRICS[law.metric].short
    tenth = spread(found.help.apply(lambda help_: 0.1 * help_))
    text = f"A teacher that is 0.1 {unit} better makes its student {tenth} {unit} better."
    held = set(found.held)
    rows = damage_rows(law)
    if rows:
        row = max(rows, key=lambda r: (r.largest.student_params_non_embedding, -r.tokens))
        same = [r for r in rows if r.student == row.student]
        first, last = same[0], same[-1]
        text += (
            f" Pruning {first.largest.teacher} down to {first.student} costs "
            f"{spread(first.largest.damage)} {unit} after {budget(first.tokens)}"
        )
        if last.tokens > first.tokens:
            text += f" and {spread(last.largest.damage)} after {budget(last.tokens)}"
        text += "."
    if "by_tokens" in held:
        text += " These runs do not determine how fast further training repairs the damage."
    if found.off_family:
        text += f" {off_family(law)}"
    return text


def off_family(law: LawRecord) -> str:
    """Teachers whose own loss lies above the curve of their family; '' if there are none."""
    found = law.two_causes
    if found is None or not found.off_family:
        return ""
    unit = METRICS[law.metric].short
    each = listed(f"{off.teacher} (by {loss(off.above_curve)} {unit})" for off in found.off_family)
    many = len(found.off_family) > 1
    return (
        f"{each} {'have' if many else 'has'} a higher loss than the other teachers predict "
        f"for {'their sizes' if many else 'its size'}."
    )


def damage_rows(law: LawRecord) -> list[DamageRow]:
    """The smallest and the largest teacher of every measured student and budget."""
    found = law.two_causes
    if found is None or found.status == "not_available":
        return []
    optima = {(o.student, o.tokens): o for o in found.optima}
    groups: dict[tuple[str, int], list[TeacherCauses]] = {}
    for one in found.teachers:
        groups.setdefault((one.student, one.tokens), []).append(one)
    rows = [
        DamageRow(*key, rows[0], rows[-1], optima.get(key))
        for key, rows in groups.items()
        if len(rows) > 1
    ]
    return sorted(rows, key=lambda r: (r.smallest.student_params_non_embedding, r.tokens))


def gain(row: DamageRow) -> Interval:
    """What the largest teacher's better loss gains the student over the smallest, above 0 if it helps."""
    part = row.largest.teacher_part
    low, high = (None if end is None else -end for end in (part.high, part.low))
    return Interval(value=-part.value, low=low, high=high)


def parameters(law: LawRecord) -> list[tuple[str, str]]:
    """The constants of the law of two causes in words, with their estimates."""
    found, unit = law.two_causes, METRICS[law.metric].short
    if found is None or found.help is None:
        return []
    student, tokens = about(found.centre_student_params), about(found.centre_tokens)
    rows = [
        ("help", f"g: {unit} of the student for each of its teacher", found.help),
        (
            "log_rate",
            f"c: {unit} of damage for each factor e in size, for {student} at {tokens} tokens",
            found.damage_rate_nats,
        ),
        (
            "by_tokens",
            "q: the damage falls with tokens as D to the power −q",
            found.damage_by_tokens,
        ),
        (
            "by_size",
            "r: the damage falls with the student’s size as S to the power −r",
            found.damage_by_size,
        ),
        ("log_ceiling", f"A: the most {unit} that pruning can cost", found.damage_ceiling_nats),
    ]
    held = set(found.held)
    return [
        (text + (" (these runs hardly determine it)" if name in held else ""), spread(value))
        for name, text, value in rows
        if value is not None
    ]


def within_family(found: CausesOptimum | None) -> str:
    """'98k [56k, 170k]', or the end of the family that bounds it."""
    if found is None:
        return "–"
    if found.place != "interior":
        return f"at {'most' if found.place == 'smallest' else 'least'} {about(found.teacher_params.value)}"
    return bracketed(found.teacher_params, about)


def spread(found: Interval) -> str:
    """'0.052 [0.025, 0.079]'."""
    return bracketed(found, loss)


def loss(value: float) -> str:
    """A difference of losses, with a true minus sign."""
    return number(value, 4 if 0 < abs(value) < 0.01 else 3)
