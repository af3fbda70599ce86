"""A law as `capgap fit` prints it, for a reader who has not read the paper: the verdict first."""

from __future__ import annotations

from collections.abc import Iterable

from capgap.command_parser import by_hand
from capgap.law.law_record import Interval, LawRecord
from capgap.law.number_text import about, bracketed, budget, listed
from capgap.law.table.metric import METRICS
from capgap.law.table.read_runs import RunTable
from capgap.law.verdicts.claims import sentence
from capgap.reporting import causes_text, comparison_text, report_text

COMPARED = {
    "metric": "metric",
    "init": "kind of init",
    "weight": "weight of its term in the student's loss",
}


def inputs_text(table: RunTable) -> str:
    """Notes on the table that the numbers depend on; empty if there are none."""
    lines = []
    if table.metric.name != "loss":
        lines.append(
            f"Runs are measured by {table.metric.name}. The law is fitted to the "
            f"{table.metric.noun}, in {table.metric.unit}, which is called a loss below."
        )
    for run in table.excluded:
        lines.append("Left out: " + ", ".join(f"{name} {value}" for name, value in run.items()))
    if table.ignored:
        lines.append(f"Columns that are not used: {', '.join(table.ignored)}")
    return "\n".join(lines)


@by_hand
def with_inputs(table: RunTable, record: LawRecord) -> str:
    """What `capgap fit` prints: notes on the table, then the law."""
    return "\n\n".join(filter(None, [inputs_text(table), text(record)]))


def text(record: LawRecord) -> str:
    """All that was found, in paragraphs and tables."""
    blocks = [sentence(record.overall, record.optima), _claims(record)]
    if record.curve is not None:
        blocks += [_law(record), _noise(record)]
    blocks += [_optima(record), _lines(record), _causes(record), _equal_compute(record)]
    blocks += [_compared(record, what) for what in COMPARED]
    blocks += [_scores(record), _rivals(record)]
    return "\n\n".join(filter(None, blocks))


def _aligned(title: str, rows: Iterable[Iterable[object]]) -> str:
    """A title and rows whose columns are aligned; '' without rows."""
    table = [[str(entry) for entry in row] for row in rows]
    if not table:
        return ""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in table]
    return "\n  ".join([title, *lines])


def _estimate(value: Interval | None, decimals: int = 2) -> str:
    return "not determined" if value is None else bracketed(value, f"{{:.{decimals}f}}".format)


def _size(value: Interval | None) -> str:
    return "-" if value is None else bracketed(value, about)


def _claims(record: LawRecord) -> str:
    title = (
        f"Claims (equal: within {record.exponent_margin:g} of an exponent or {record.ratio_margin:.0%} "
        f"of the ratio, with the whole {record.confidence:.0%} interval)"
    )
    return _aligned(
        title,
        (
            (report_text.CLAIMS[claim.name], report_text.ANSWERS[claim.answer], claim.reason)
            for claim in record.overall.claims
        ),
    )


def _law(record: LawRecord) -> str:
    exponents, curve, unit = record.exponents, record.curve, METRICS[record.metric].short
    both = exponents.by_size_at_fixed_tokens_per_param
    at = f"S = {about(curve.central_student_params)}"
    slope = record.lines[0].published_slope
    rows = [
        ("a: growth with S at equal tokens", _estimate(exponents.by_size)),
        ("b: growth with D for one student", _estimate(exponents.by_tokens)),
        ("a + b: growth with S at equal tokens per parameter", _estimate(both)),
        (f"T*/S at 25 tokens per parameter, {at}", _estimate(record.ratio_at_25_tokens_per_param)),
        (
            f"tokens per parameter at which T*/S is {slope:g}",
            _estimate(record.published_ratio_at_tokens_per_param),
        ),
        (f"curvature, {unit} per squared unit of log T", f"{curve.curvature_nats:.3g}"),
        ("skew of the curve", f"{curve.skew:.2f}"),
    ]
    rows += [
        (f"rms of the runs about it if sizes are {s.size.replace('_', ' ')}", f"{s.rms_nats:.4f}")
        for s in record.sizes
    ]
    title = f"The law T* ~ S^a D^b over {record.reason}, {record.confidence:.0%} intervals"
    notes = [] if record.misfit is None else [record.misfit.reason]
    return "\n  ".join([_aligned(title, rows), *notes])


def _noise(record: LawRecord) -> str:
    metric = METRICS[record.metric]
    title = (
        f"Noise, standard deviations in {metric.unit} (scatter: of log T*; curvature: of its log; "
        "misfit: a share)"
    )
    rows = (
        (
            part.name,
            _estimate(part.sd, 4),
            report_text.NOISE_SOURCES[part.source]
            + (f", with {listed(part.includes)}" if part.includes else ""),
        )
        for part in record.noise
    )
    off = [
        f"students of {effect.teacher} are {abs(effect.effect_nats):.3f} {metric.short} "
        f"{'worse' if effect.effect_nats > 0 else 'better'} than its size predicts "
        f"({_estimate(effect.effect, 3)})"
        for effect in record.teacher_effects
        if effect.off_family
    ]
    return "\n  ".join([_aligned(title, rows), *off])


def _optima(record: LawRecord) -> str:
    rows = [("student", "S", "tokens", "T*", "T*/S", "T* alone", "best tried", "curve")]
    for found in record.optima:
        shape = found.shape.replace("_", " ")
        if found.place in ("below", "above"):
            shape += f", T* {found.place} the ladder"
        rows.append(
            (
                found.student,
                about(found.student_params_non_embedding),
                about(found.tokens),
                _size(found.teacher_params),
                "" if found.ratio is None else f"{found.ratio.value:.2f}",
                _size(found.own_teacher_params),
                found.best_teacher,
                shape,
            )
        )
    return _aligned("T* of every student (S) by the law, and by its own curve alone", rows)


def _lines(record: LawRecord) -> str:
    rows = [
        (
            f"{found.tokens_per_param:.3g} tokens/parameter"
            if found.tokens is None
            else budget(found.tokens),
            "-" if found.slope is None else f"slope b {_estimate(found.slope)}",
            found.reason
            if found.slope is None
            else f"T*/S through the origin {_estimate(found.ratio_through_origin)}",
        )
        for found in record.lines
    ]
    known = any(line.slope for line in record.lines)
    return _aligned("Lines T* = a + b S through the separate optima", rows if known else ())


def _causes(record: LawRecord) -> str:
    found = record.two_causes
    if found is None or found.status == "not_available":
        return ""
    title = (
        f"The law of two causes, loss = level + g L_T + damage of the cut, over {found.n_cells} cells of "
        f"{found.n_teachers} teachers: {found.status.replace('_', ' ')}"
    )
    notes = [causes_text.effects(record)]
    notes += [
        f"T* of {at.student} at {budget(at.tokens)} within this family: {causes_text.within_family(at)}"
        for at in found.optima
    ]
    notes += [f"far from the law: {cell}" for cell in found.far_off]
    return "\n  ".join([_aligned(title, causes_text.parameters(record)), *filter(None, notes)])


def _equal_compute(record: LawRecord) -> str:
    if not record.equal_compute:
        return ""
    rows = [("student", "tokens", "at equal tokens", "at equal compute", "tokens", "teacher runs")]
    rows += [
        (
            row.student,
            about(row.tokens),
            about(row.at_equal_tokens),
            _size(row.teacher_params),
            about(row.tokens_there),
            "online" if row.shared_by == 1 else f"once for {row.shared_by} runs",
        )
        for row in record.equal_compute
    ]
    return _aligned(
        "T* at the compute of the run with the best teacher at equal tokens (a bound at an end of the "
        "ladder)",
        rows,
    )


def _compared(record: LawRecord, what: str) -> str:
    """Whether the best teacher differs between kinds, a paragraph for every two; '' without any."""
    lines = []
    for found in comparison_text.comparisons(record)[what]:
        rows = (
            (
                at.student,
                about(at.tokens),
                *(
                    f"{kind} {about(at.teacher_params[kind])} ({at.place[kind]})"
                    for kind in (found.first, found.second)
                ),
                f"ratio {_estimate(at.ratio)}",
            )
            for at in found.at
        )
        title = f"{comparison_text.compared(found, what)}: {found.reason}"
        lines.append(_aligned(title, rows) or title)
    return "\n".join([f"The best teacher by {COMPARED[what]}", *lines]) if lines else ""


def _scores(record: LawRecord) -> str:
    title = (
        f"{record.leading or 'No law'} leads ({record.leading_reason}).\nRegret: loss of the choice above "
        f"the best teacher tried, {METRICS[record.metric].unit}, mean over students, budgets and teachers "
        "left out of the\nfit, with equal weight for each kind. For left-out students also: hits (regrets up "
        f"to {record.tie_nats:g}), intervals that hold the T* left\nout, and FLOPs of the runs that it was "
        "fitted on with one run of its choice, against one run with every teacher"
    )
    rows = [("law or rule", "regret", "cases", "worst", "hits", "held", "FLOPs", "all", "by kind")]
    for score in record.scores:
        if score.status == "not_available":
            rows.append((score.law, *["-"] * 7, score.reason))
            continue
        *kinds, every = score.left_out or [None]
        rows.append(
            (
                score.law,
                f"{score.mean_regret_nats:.4f}" if every is None else _estimate(every.regret, 4),
                score.n_cases,
                f"{score.max_regret_nats:.4f}",
                f"{score.hit_rate:.0%}",
                report_text.held(score),
                f"{score.pilot_flops + score.choice_flops:.1e}",
                f"{score.exhaustive_flops:.1e}",
                ", ".join(f"{part.kind} {part.regret.value:.4f}" for part in kinds),
            )
        )
    return _aligned(title, rows)


def _rivals(record: LawRecord) -> str:
    rows = (
        (rival.law, f"{report_text.RIVAL_STATUS[rival.status]}: {rival.reason}")
        for rival in record.rivals
    )
    return _aligned("Rival laws on these runs", rows)
