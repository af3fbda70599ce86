"""A recommendation as text, for a reader who has not read the paper."""

from __future__ import annotations

from capgap.law.answers.answer_records import (
    ComputeAnswer,
    RankedTeacher,
    Recommendation,
    RuleRegret,
    StudentAnswer,
)
from capgap.law.law_record import Interval, LawRecord
from capgap.law.number_text import about, budget, span
from capgap.law.table.metric import METRICS
from capgap.reporting.report_text import nats_interval, reach


def text(answer: Recommendation, law: LawRecord) -> str:
    """The answer for a reader who has not read the paper: a few sentences and two tables."""
    size, tokens = about(answer.student_params_non_embedding), budget(answer.tokens)
    level = f"{law.confidence:.0%}"
    if answer.status == "abstains":
        lines = [
            f"No recommendation for a student of {size} at {tokens}: {answer.reason}.",
            f"What is known: {answer.basis_note}.",
        ]
    else:
        lines = [
            f"For {_who(law)} of {size} at {tokens}: {answer.ranked[0].teacher}.",
            f"Basis: {answer.basis_note}.",
        ]
    if answer.teacher_params_star is not None:
        star = answer.teacher_params_star
        lines.append(
            f"Best teacher size T* = {about(star.value)} ({level} interval: {span(star)}), "
            f"{star.value / answer.student_params_non_embedding:.2g} times the student."
        )
    lines.append(reach(answer))
    metric = METRICS[law.metric]
    known = any(row.measured_loss is not None for row in answer.ranked)
    lines += [
        "",
        f"Teachers, best first; {metric.noun} in {metric.unit} with {level} intervals",
        f"  {'teacher':<14}{'size':>7}{'T/S':>7}  {'predicted':<22}{'above the best':<22}"
        + (f"{'measured':<22}{'above the best':<16}" if known else "")
        + f"{'FLOPs':>8}",
    ]
    for row in answer.ranked:
        mark = "*" if row.within_tie else ""
        lines.append(
            f"  {row.teacher + mark:<14}{about(row.teacher_params_non_embedding):>7}"
            f"{row.ratio:>7.3g}  {nats_interval(row.predicted_loss):<22}{_above(row.predicted_regret):<22}"
            + (_measured(row) if known else "")
            + f"{row.train_flops:>8.2g}"
        )
    if answer.within_tie:
        lines.append(
            f"  * predicted within {law.tie_nats:g} {metric.short} of the best, which counts as equally good"
        )
    lines += [
        "",
        f"Rules of thumb, with the {metric.noun} expected above the best teacher (regret), {metric.unit}",
        *(_rule(rule, answer.status != "abstains") for rule in answer.rules),
        "",
        _compute(answer),
    ]
    return "\n".join([*lines, *_notes(answer.notes)])


def _compute(answer: Recommendation) -> str:
    """What the runs cost: the advised one against a run with each teacher, and those behind the law."""
    each, pilots = f"{answer.exhaustive_flops:.2g}", f"{answer.pilot_flops:.2g}"
    formula = "(A run takes 6 S D + 2 T D; the teacher's own training is not counted.)"
    if answer.status == "abstains":
        return f"Compute: training with each of them takes {each} FLOPs. The runs behind the law took {pilots}. {formula}"
    return (
        f"Compute: training with the first teacher takes {answer.ranked[0].train_flops:.2g} FLOPs instead of "
        f"{each} with each of them, which saves {answer.saved_flops / answer.exhaustive_flops:.0%}. The runs "
        f"behind the law took {pilots}. {formula}"
    )


def compute_text(answer: ComputeAnswer, law: LawRecord) -> str:
    """The answer at equal compute: a few sentences and a table."""
    size = about(answer.student_params_non_embedding)
    what = f"{_who(law)} of {size} at {answer.flops:.3g} FLOPs"
    if answer.status == "abstains":
        lines = [f"No recommendation for {what}: {answer.reason}."]
    else:
        lines = [f"For {what}: {answer.ranked[0].teacher}."]
    if answer.teacher_params is not None:
        star = answer.teacher_params
        bound = f"the {answer.place} teacher tried"
        if star.value <= 1.02 * answer.student_params_non_embedding:
            bound = "barely more than the student itself"
        end = "" if answer.place == "inside" else f", {bound}: only a bound"
        lines.append(
            f"Best teacher size T* at this compute = {about(star.value)} ({law.confidence:.0%} interval: "
            f"{span(star)}{end})."
        )
    if answer.ranked:
        lines += [
            "",
            f"Teachers, best first; {METRICS[law.metric].short} above the best",
            f"  {'teacher':<14}{'size':>7} {'tokens':>9}  above the best",
        ]
    for row in answer.ranked:
        far = row.tokens_extrapolation
        lines.append(
            f"  {row.teacher:<14}{about(row.teacher_params_non_embedding):>7} {about(row.tokens):>9}  "
            f"{_above(row.predicted_regret)}"
            + (f"  (tokens {far:.3g} times beyond the runs)" if far > 1.005 else "")
        )
    shared = (
        "the teacher runs online"
        if answer.shared_by == 1
        else f"{answer.shared_by} runs share its pass"
    )
    lines += [
        "",
        f"A token costs three forward passes of the student and one of the teacher; {shared}.",
    ]
    return "\n".join([*lines, *_notes(answer.notes)])


def _who(law: LawRecord) -> str:
    return "a student" if law.init == "pruned" else f"a {law.init} student"


def student_text(answer: StudentAnswer, _: LawRecord) -> str:
    """The student size that a teacher suits best, as a sentence."""
    teacher, tokens = about(answer.teacher_params_non_embedding), budget(answer.tokens)
    text = f"No student size is known for a teacher of {teacher} at {tokens}: {answer.reason}."
    if answer.student_params is not None:
        size = answer.student_params
        text = (
            f"At {tokens} a teacher of {teacher} is the optimum of a student of {about(size.value)} "
            f"({span(size)})."
        )
    return "\n".join([text, *_notes(answer.notes)])


def _notes(notes: list[str]) -> list[str]:
    return [f"Note: {note}." for note in notes]


def _rule(rule: RuleRegret, answered: bool) -> str:
    regret = rule.expected_regret_nats
    cost = "unknown" if regret is None else f"{regret:.4f}"
    if rule.teacher is None and regret is None and answered:
        cost += " (the table has no runs without a teacher)"
    return f"  {rule.rule:<14}{rule.teacher or '-':<14}{cost}"


def _above(interval: Interval | None) -> str:
    """A regret; that of the best teacher is 0 by definition and has no interval."""
    if interval is not None and interval.value == interval.low == interval.high == 0:
        return "the lowest"
    return nats_interval(interval)


def _measured(row: RankedTeacher) -> str:
    if row.measured_loss is None:
        return f"{'not measured':<38}"
    above = "the lowest" if row.measured_regret == 0 else f"{row.measured_regret:.3f}"
    return f"{nats_interval(row.measured_loss):<22}{above:<16}"
