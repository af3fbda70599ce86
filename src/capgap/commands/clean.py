"""
Remove leftovers of killed jobs that nothing can resume: `capgap clean`.

These are temporary files and folders that no process writes any more, and in scratch/ the states of
jobs that have been finished since or whose source has changed. `capgap run` does the same first.
"""

from __future__ import annotations

from pathlib import Path

from capgap.command_parser import CommandParser
from capgap.engine import resuming
from capgap.records.artifacts import collect_temporaries
from capgap.workflow.digest import source_digest
from capgap.workflow.locks import SCRATCH, only_run


def collect(*roots: Path) -> list[Path]:
    """Remove leftovers below folders of results and in scratch/; returns what was removed."""
    removed = [path for root in (*roots, SCRATCH) for path in collect_temporaries(root)]
    return removed + resuming.collect_states(SCRATCH, _sources)


def _sources() -> set[str]:
    """Digests of the source of the stages that keep a state."""
    return {source_digest(f"capgap.stages.{stage}") for stage in resuming.STAGES}


def main(argv: list[str] | None = None) -> None:
    """Command line of `capgap clean`."""
    parser = CommandParser(
        "clean",
        "Remove temporary folders below results/ and scratch/ that no process writes, "
        "and states of jobs in scratch/ that nothing can resume.",
    )
    parser.parse_args(argv)
    with only_run():
        removed = collect(Path("results"))
    for path in removed:
        print(f"removed {path}")
    print(f"{len(removed)} leftovers removed" if removed else "nothing to remove")
