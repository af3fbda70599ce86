"""
Fit the law of capacity gap.

IN   runs.csv   one row a finished run
OUT  law.json   optimum teacher per student size and budget, the line through them, intervals
"""

from __future__ import annotations

from pathlib import Path

from capgap.artifacts import write_text
from capgap.config import Law
from capgap.law.study import law_record
from capgap.law.table import read_runs
from capgap.records import LawRecord
from capgap.stage import StageParser, run_stage


def run(runs_path: str | Path, settings: Law) -> LawRecord:
    """Read a table of runs and fit the law on its main arm; errors as in `read_runs`."""
    return law_record(read_runs(runs_path), settings)


def main(argv: list[str] | None = None) -> None:
    """Parse the command line, fit, write the record and print its verdict."""
    parser = StageParser("capgap.fit", __doc__, Law)
    parser.add_argument("--runs", required=True, help="table of runs, CSV")
    parser.add_argument("--out", required=True, help="law record to write, JSON")
    args, settings = parser.parse(argv)
    record = run(args.runs, settings)
    write_text(args.out, record.to_json())
    print(record.verdict)


if __name__ == "__main__":
    run_stage(main)
