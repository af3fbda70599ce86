"""
Fit the law of capacity gap.

IN   runs.csv   one row a finished run; docs/method.md says which columns a table needs
OUT  law.json   optimum teacher per student size and budget, lines, surface, rivals, verdict
"""

from __future__ import annotations

from pathlib import Path

from capgap.config import Law
from capgap.law.claims import sentence
from capgap.law.law_record import LawRecord
from capgap.law.study import law_record
from capgap.law.table import read_runs
from capgap.law.words import about
from capgap.records.artifacts import write_text
from capgap.reporting import wording
from capgap.stages.base import StageParser, run_stage


def run(runs_path: str | Path, settings: Law) -> LawRecord:
    """Read a table of runs and fit the law on its main arm; errors as in `read_runs`."""
    return law_record(read_runs(runs_path), settings)


def text(record: LawRecord) -> str:
    """What was found, for a reader who has not read the paper: verdict first."""
    blocks = [
        sentence(record.overall, record.optima),
        record.verdict,
        optima_text(record),
    ]
    if any(line.slope for line in record.lines):
        blocks.append(lines_text(record))
    if len(record.lines) > 1 and record.surface is not None:
        blocks.append(wording.tokens(record))
    return "\n\n".join([*blocks, scores_text(record), rivals_text(record)])


def optima_text(record: LawRecord) -> str:
    """The best teacher of every student at every budget, a line each."""
    lines = [
        f"Best teacher size T* of every student (S) with {record.confidence:.0%} intervals; sizes "
        "are parameters without embeddings",
        f"  {'student':<12}{'S':>7}{'tokens':>8}  {'T*':<24}{'T*/S':>6}  curve",
    ]
    for found in record.optima:
        ratio = "" if found.ratio is None else f"{found.ratio.value:.2f}"
        lines.append(
            f"  {found.student:<12}{about(found.student_params_non_embedding):>7}"
            f"{about(found.tokens):>8}  {wording.optimum(found):<24}{ratio:>6}  "
            f"{found.shape.replace('_', ' ')}"
        )
    return "\n".join(lines)


def lines_text(record: LawRecord) -> str:
    """The line of every budget in numbers, and what each student does to it, two lines each."""
    lines = [
        "Lines T* = a + b S. Power: slope of log T* on log S, 1 is a proportion",
        f"  {'tokens':>8}  {'slope b':<24}{'T*/S through the origin':<26}power",
    ]
    for found in record.lines:
        if found.slope is None:
            lines.append(f"  {about(found.tokens):>8}  {found.reason}")
            continue
        power = "-" if found.elasticity is None else wording.interval(found.elasticity)
        lines.append(
            f"  {about(found.tokens):>8}  {wording.interval(found.slope):<24}"
            f"{wording.interval(found.ratio_through_origin):<26}{power}"
        )
        without = ", ".join(f"{one.student}: {one.slope_without:.2f}" for one in found.influence)
        lines.append(f"  {'':>8}  slope without each student: {without}")
    return "\n".join(lines)


def scores_text(record: LawRecord) -> str:
    """How each law and rule chose for student sizes it had not seen, a line each."""
    lines = [
        "Each law fitted without one student size and asked for its teacher. Regret: loss of its "
        "choice above",
        f"the best tried, nats per token; hits: regrets up to {record.tie_nats:g}; held: intervals "
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
                f"{wording.held(score):>9}"
                f"{score.pilot_flops + score.choice_flops:>9.1e}{score.exhaustive_flops:>12.1e}"
            )
    return "\n".join(lines)


def rivals_text(record: LawRecord) -> str:
    """How the rival laws fit the same runs, a line each."""
    rows = [
        f"  {rival.law:<14}{wording.RIVAL_STATUS[rival.status]}: {rival.reason}"
        for rival in record.rivals
    ]
    return "\n".join(["Rival laws on these runs", *rows])


def main(argv: list[str] | None = None) -> None:
    """Parse the command line, fit, write the record and print what was found."""
    parser = StageParser("capgap.stages.fit", __doc__, Law)
    parser.add_argument("table", nargs="?", help="table of runs, CSV (or --runs)")
    parser.add_argument("--runs", help="table of runs, CSV")
    parser.add_argument("--out", help="law record to write, JSON; without it, only print")
    args, settings = parser.parse(argv)
    if (args.table is None) == (args.runs is None):
        parser.error("one table is needed: capgap fit runs.csv, or --runs runs.csv")
    record = run(args.runs or args.table, settings)
    if args.out:
        write_text(args.out, record.to_json())
    print(text(record))


if __name__ == "__main__":
    run_stage(main)
