"""
Fit the law of capacity gap.

IN   runs.csv   one row for each finished run; docs/tables.md lists the columns
OUT  law.json   T* ~ S^a D^b with its noise, optima and lines as checks, rivals, verdicts
"""

from __future__ import annotations

from pathlib import Path

from capgap.command_parser import by_hand
from capgap.config import Law
from capgap.law.law_record import Interval, LawRecord, Optimum
from capgap.law.make_record import law_record
from capgap.law.number_text import about, listed
from capgap.law.table.metric import METRICS
from capgap.law.table.read_runs import RunTable, read_table
from capgap.law.verdicts.claims import sentence
from capgap.records.artifacts import write_text
from capgap.reporting import report_text
from capgap.stages.base import StageParser, out_file, run_stage


@by_hand
def run(runs_path: str | Path, settings: Law) -> LawRecord:
    """Read a table of runs and fit the law on its main arm; errors as in `read_table`."""
    return fit(read_table(runs_path, settings.metric, settings.exclude), settings)


def fit(table: RunTable, settings: Law) -> LawRecord:
    """Fit the law on the main arm of a table that was read."""
    record = law_record(table.runs, table.settings(settings))
    return record.model_copy(update={"metric": table.metric.name, "excluded": table.excluded})


@by_hand
def inputs_text(table: RunTable) -> str:
    """Notes on the table that the numbers depend on; empty if there are none."""
    lines = []
    if table.metric.name != "loss":
        lines.append(
            f"Runs are measured by {table.metric.name}. The law is fitted to the "
            f"{table.metric.noun}, in {table.metric.unit}; what is called a loss below is that."
        )
    for run in table.excluded:
        lines.append("Left out: " + ", ".join(f"{name} {value}" for name, value in run.items()))
    if table.ignored:
        lines.append(f"Columns that are not used: {', '.join(table.ignored)}")
    return "\n".join(lines)


@by_hand
def text(record: LawRecord) -> str:
    """A summary for a reader who has not read the paper, with the verdict first."""
    blocks = [sentence(record.overall, record.optima), claims_text(record)]
    if record.curve is not None:
        blocks += [law_text(record), noise_text(record)]
    blocks.append(optima_text(record))
    if any(line.slope for line in record.lines):
        blocks.append(lines_text(record))
    if record.two_causes is not None and record.two_causes.status != "not_available":
        blocks.append(causes_text(record))
    if record.equal_compute:
        blocks.append(compute_text(record))
    if record.text_comparison is not None:
        found = record.text_comparison
        blocks.append(f"On another text: {report_text.compared_texts(found)}: {found.reason}")
    if record.init_comparisons:
        blocks.append(inits_text(record))
    return "\n\n".join([*blocks, left_out_text(record), scores_text(record), rivals_text(record)])


def claims_text(record: LawRecord) -> str:
    """The answer to every claim, a line each."""
    width = max(len(report_text.CLAIMS[claim.name]) for claim in record.overall.claims)
    lines = [
        f"Claims; equal: within {record.exponent_margin:g} of an exponent and "
        f"{record.ratio_margin:.0%} of the ratio, with the whole {record.confidence:.0%} interval"
    ]
    for claim in record.overall.claims:
        name, answer = report_text.CLAIMS[claim.name], report_text.ANSWERS[claim.answer]
        lines.append(f"  {name:<{width}}  {answer:<16}{claim.reason}")
    return "\n".join(lines)


def law_text(record: LawRecord) -> str:
    """Exponents and ratios."""
    exponents, curve = record.exponents, record.curve
    student = about(curve.central_student_params)
    rows = [
        ("a: growth with S at equal tokens", exponents.by_size),
        ("b: growth with D for one student", exponents.by_tokens),
        (
            "a + b: with S at equal tokens per parameter",
            exponents.by_size_at_fixed_tokens_per_param,
        ),
        (f"T*/S at 25 tokens per parameter, S = {student}", record.ratio_at_25_tokens_per_param),
        (
            f"tokens per parameter at which T*/S is {record.lines[0].published_slope:g}",
            record.published_ratio_at_tokens_per_param,
        ),
    ]
    lines = [
        f"The law T* ~ S^a D^b over {record.reason}, {record.confidence:.0%} intervals",
        *(f"  {name:<48}{_estimate(value)}" for name, value in rows),
        f"  curve: {curve.curvature_nats:.3g} {_short(record)} per squared unit of log T, skew {curve.skew:.2f}",
    ]
    if record.misfit is not None:
        lines.append(f"  {record.misfit.reason}")
    if len(record.sizes) > 1:
        counts = ", ".join(f"{s.size.replace('_', ' ')} {s.rms_nats:.4f}" for s in record.sizes)
        best = min(record.sizes, key=lambda s: s.rms_nats).size.replace("_", " ")
        lines.append(
            f"  sizes are counted as {record.size.replace('_', ' ')}; runs lie about the law by "
            f"{counts} {_short(record)}, least by {best}"
        )
    return "\n".join(lines)


def noise_text(record: LawRecord) -> str:
    """Components of the noise, a line each, and the teachers off their family."""
    unit = METRICS[record.metric].unit
    lines = [
        f"Noise, standard deviations in {unit} (scatter: of log T*; curvature: of its log; misfit: a "
        "share)"
    ]
    for part in record.noise:
        with_it = f", with {listed(part.includes)}" if part.includes else ""
        spread = f"{part.sd.value:.4f} [{part.sd.low:.4f}, {part.sd.high:.4f}]"
        lines.append(
            f"  {part.name:<11}{spread:<26}{report_text.NOISE_SOURCES[part.source]}{with_it}"
        )
    off = [effect for effect in record.teacher_effects if effect.off_family]
    for effect in off:
        side = "worse" if effect.effect_nats > 0 else "better"
        lines.append(
            f"  students of {effect.teacher} are {abs(effect.effect_nats):.3f} {_short(record)} {side} than its "
            f"size predicts ({_estimate(effect.effect, 3)})"
        )
    return "\n".join(lines)


def optima_text(record: LawRecord) -> str:
    """The best teacher of every student at every budget, a line each."""
    lines = [
        "T* of every student (S) by the power law, and by its own curve alone; sizes are parameters",
        f"  {'student':<12}{'S':>7}{'tokens':>8}  {'T*':<24}{'T*/S':>6}  {'alone':<24}"
        f"{'of those tried':<16}curve",
    ]
    for found in record.optima:
        ratio = "" if found.ratio is None else f"{found.ratio.value:.2f}"
        lines.append(
            f"  {found.student:<12}{about(found.student_params_non_embedding):>7}"
            f"{about(found.tokens):>8}  {_size(found.teacher_params):<24}{ratio:>6}  "
            f"{_size(found.own_teacher_params):<24}{found.best_teacher:<16}"
            f"{_curve(found)}"
        )
    return "\n".join(lines)


def lines_text(record: LawRecord) -> str:
    """The lines in numbers, one each."""
    lines = [
        "Lines T* = a + b S through the separate optima, as a check",
        f"  {'at':<26}{'slope b':<24}T*/S through the origin",
    ]
    for found in record.lines:
        at = (
            f"{found.tokens_per_param:.3g} tokens/parameter"
            if found.tokens is None
            else f"{about(found.tokens)} tokens"
        )
        if found.slope is None:
            lines.append(f"  {at:<26}{found.reason}")
        else:
            slope, origin = _estimate(found.slope), _estimate(found.ratio_through_origin)
            lines.append(f"  {at:<26}{slope:<24}{origin}")
    return "\n".join(lines)


@by_hand
def _short(record: LawRecord) -> str:
    return METRICS[record.metric].short


@by_hand
def _estimate(value: Interval | None, decimals: int = 2) -> str:
    if value is None:
        return "not determined by these runs"
    low, high = ("open" if v is None else f"{v:.{decimals}f}" for v in (value.low, value.high))
    return f"{value.value:.{decimals}f} [{low}, {high}]"


@by_hand
def _size(value: Interval | None) -> str:
    if value is None:
        return "-"
    low, high = ("open" if v is None else about(v) for v in (value.low, value.high))
    return f"{about(value.value)} [{low}, {high}]"


@by_hand
def _curve(found: Optimum) -> str:
    places = {"below": "T* below the ladder", "above": "T* above the ladder"}
    shape = found.shape.replace("_", " ")
    return f"{shape}, {places[found.place]}" if found.place in places else shape


def causes_text(record: LawRecord) -> str:
    """The law of two causes in numbers."""
    found, unit = record.two_causes, _short(record)
    student, tokens = about(found.centre_student_params), about(found.centre_tokens)
    rows = [
        (f"g: {unit} of a student for each of its teacher", found.help),
        (
            f"c: {unit} for each factor e cut, S = {student}, {tokens} tokens",
            found.damage_rate_nats,
        ),
        ("q: this damage falls with D^-q", found.damage_by_tokens),
        ("r: and with S^-r", found.damage_by_size),
        (f"A: most {unit} a cut can cost", found.damage_ceiling_nats),
    ]
    lines = [
        f"The law of two causes, loss = level + g L_T + damage of the cut, over {found.n_cells} cells "
        f"of {found.n_teachers} teachers: {found.status.replace('_', ' ')}",
        *(f"  {name:<56}{_estimate(value)}" for name, value in rows),
        f"  cells lie about it by {found.noise_nats:.4f} {unit}",
    ]
    if found.status != "identified":
        lines.append(f"  {found.reason}")
    if found.held:
        lines.append(f"  set mostly by a weak prior: {', '.join(found.held)}")
    for at in found.optima:
        bound = "" if at.place == "interior" else f", the {at.place} of the family"
        lines.append(
            f"  T* of {at.student} at {about(at.tokens)} tokens within this family: "
            f"{_size(at.teacher_params)}{bound}"
        )
    lines += [
        f"  {off.teacher} is {off.above_curve:.3f} above the curve of its family's own losses"
        for off in found.off_family
    ]
    lines += [f"  far from the law: {cell}" for cell in found.far_off]
    return "\n".join(lines)


def compute_text(record: LawRecord) -> str:
    """T* at equal compute beside T* at equal tokens, a line for each student and budget."""
    lines = [
        "T* at the compute of the run with the best teacher at equal tokens (at an end of the ladder a "
        "bound)",
        f"  {'student':<12}{'tokens':>8}  {'at equal tokens':<17}{'at equal compute':<28}{'tokens':>8}  "
        "the teacher runs",
    ]
    for row in record.equal_compute:
        runs = "online" if row.shared_by == 1 else f"once for {row.shared_by} runs"
        lines.append(
            f"  {row.student:<12}{about(row.tokens):>8}  {about(row.at_equal_tokens):<17}"
            f"{_size(row.teacher_params):<28}{about(row.tokens_there):>8}  {runs}"
        )
    return "\n".join(lines)


def inits_text(record: LawRecord) -> str:
    """Whether the best teacher differs between kinds of init, a paragraph for every two."""
    lines = ["The best teacher by what the student starts from"]
    for found in record.init_comparisons:
        lines.append(f"  {report_text.compared_inits(found)}: {found.reason}")
        for at in found.at:
            first, second = (
                f"{about(at.teacher_params[kind])} ({at.place[kind]})"
                for kind in (found.first, found.second)
            )
            lines.append(
                f"    {at.student:<14}{about(at.tokens):>6}  {found.first} {first}, {found.second} {second}, "
                f"ratio {_estimate(at.ratio)}"
            )
    return "\n".join(lines)


def left_out_text(record: LawRecord) -> str:
    """How well each law predicts left-out runs, a line each."""
    lines = [
        f"Leads: {record.leading or 'no law'} ({record.leading_reason})",
        "Regret over left-out students, budgets and teachers, each kind weighted alike; means with "
        "t intervals",
        "over students; a random teacher's regret counts if a law has no answer",
    ]
    for score in record.scores:
        if score.left_out and score.left_out[-1].n_answered:
            kinds = "  ".join(
                f"{part.kind} {part.regret.value:.4f}"
                for part in score.left_out
                if part.kind != "all"
            )
            lines.append(f"  {score.law:<14}{_estimate(score.left_out[-1].regret, 4):<28}{kinds}")
    return "\n".join(lines)


def scores_text(record: LawRecord) -> str:
    """How each law and rule chose for left-out student sizes, a line each."""
    lines = [
        "Each law was fitted without one student size and chose its teacher. Regret: loss of the "
        "choice above",
        f"the best tried, {METRICS[record.metric].unit}; hits: regrets up to {record.tie_nats:g}; held: intervals "
        "that hold the T*",
        "left out. FLOPs: of the runs it was fitted on with one run of its choice, and of one run "
        "with every",
        "teacher (exhaustive)",
        f"  {'law':<14}{'cases':>6}{'regret':>9}{'worst':>9}{'hits':>6}{'chance':>8}{'held':>9}"
        f"{'FLOPs':>9}{'exhaustive':>12}",
    ]
    for score in record.scores:
        if score.status == "not_available":
            lines.append(f"  {score.law:<14}{'-':>6}  {score.reason}")
        else:
            lines.append(
                f"  {score.law:<14}{score.n_cases:>6}{score.mean_regret_nats:>9.4f}"
                f"{score.max_regret_nats:>9.4f}{score.hit_rate:>6.0%}{score.chance_hit_rate:>8.0%}"
                f"{report_text.held(score):>9}"
                f"{score.pilot_flops + score.choice_flops:>9.1e}{score.exhaustive_flops:>12.1e}"
            )
    return "\n".join(lines)


def rivals_text(record: LawRecord) -> str:
    """How the rival laws fit the same runs, a line each."""
    rows = [
        f"  {rival.law:<14}{report_text.RIVAL_STATUS[rival.status]}: {rival.reason}"
        for rival in record.rivals
    ]
    return "\n".join(["Rival laws on these runs", *rows])


def main(argv: list[str] | None = None) -> None:
    """Parse the command line, fit, write the record and print what was found."""
    parser = StageParser("capgap.stages.fit", __doc__, Law)
    parser.add_argument("table", nargs="?", help="table of runs, CSV (or --runs)")
    parser.add_argument("--runs", help="table of runs, CSV")
    parser.add_argument(
        "--out", type=out_file, help="law record to write, JSON; without it, only print"
    )
    args, settings = parser.parse(argv)
    if (args.table is None) == (args.runs is None):
        parser.error("one table is needed: capgap fit runs.csv, or --runs runs.csv")
    table = read_table(
        args.table if args.runs is None else args.runs, settings.metric, settings.exclude
    )
    record = fit(table, settings)
    if args.out:
        write_text(args.out, record.to_json())
    if args.spec:
        print(record.verdict)
    else:
        print("\n\n".join(filter(None, [inputs_text(table), text(record)])))


if __name__ == "__main__":
    run_stage(main)
