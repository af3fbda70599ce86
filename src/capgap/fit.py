"""
Fit the law of capacity gap.

IN   runs.csv   one row a finished run; docs/method.md says which columns a table needs
OUT  law.json   optimum teacher per student size and budget, lines, surface, rivals, verdict
"""

from __future__ import annotations

from pathlib import Path

from capgap.artifacts import write_text
from capgap.config import Law
from capgap.law.claims import sentence
from capgap.law.study import law_record
from capgap.law.table import read_runs
from capgap.records import LawRecord
from capgap.stage import StageParser, run_stage


def run(runs_path: str | Path, settings: Law) -> LawRecord:
    """Read a table of runs and fit the law on its main arm; errors as in `read_runs`."""
    return law_record(read_runs(runs_path), settings)


def scores_text(record: LawRecord) -> str:
    """How each law chose for student sizes left out, a line each."""
    lines = [f"{'law, one student left out':<26}{'cases':>6}{'regret':>9}{'worst':>9}{'hits':>6}"]
    for score in record.scores:
        if score.status == "not_available":
            lines.append(f"{score.law:<26}     -  {score.reason}")
        else:
            lines.append(
                f"{score.law:<26}{score.n_cases:>6}{score.mean_regret_nats:>9.4f}"
                f"{score.max_regret_nats:>9.4f}{score.hit_rate:>6.0%}"
            )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """Parse the command line, fit, write the record and print what was found."""
    parser = StageParser("capgap.fit", __doc__, Law)
    parser.add_argument("table", nargs="?", help="table of runs, CSV (or --runs)")
    parser.add_argument("--runs", help="table of runs, CSV")
    parser.add_argument("--out", help="law record to write, JSON; without it, only print")
    args, settings = parser.parse(argv)
    if (args.table is None) == (args.runs is None):
        parser.error("one table is needed: capgap fit runs.csv, or --runs runs.csv")
    record = run(args.runs or args.table, settings)
    if args.out:
        write_text(args.out, record.to_json())
    print(record.verdict)
    print(sentence(record.overall, record.optima))
    print(scores_text(record))


if __name__ == "__main__":
    run_stage(main)
