"""
Fit the law of capacity gap.

IN   runs.csv   one row for each finished run; docs/tables.md lists the columns
OUT  law.json   T* ~ S^a D^b with its noise, optima and lines as checks, rivals, verdicts
"""

from __future__ import annotations

from pathlib import Path

from capgap.command_parser import by_hand
from capgap.config import Law
from capgap.law.law_record import LawRecord
from capgap.law.make_record import law_record
from capgap.law.table.read_runs import RunTable, read_table
from capgap.records.artifacts import write_text
from capgap.reporting.law_text import with_inputs
from capgap.stages.base import StageParser, out_file, run_stage


@by_hand
def run(runs_path: str | Path, settings: Law) -> LawRecord:
    """Read a table of runs and fit the law on its main arm; errors as in `read_table`."""
    return fit(read_table(runs_path, settings.metric, settings.exclude), settings)


def fit(table: RunTable, settings: Law) -> LawRecord:
    """Fit the law on the main arm of a table that was read."""
    record = law_record(table.runs, table.settings(settings), table.name, table.compared(settings))
    return record.throughout(metric=table.metric.name, excluded=table.excluded)


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
        print(with_inputs(table, record))


if __name__ == "__main__":
    run_stage(main)
