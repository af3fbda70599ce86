"""Temporary files that kills leave among results and records."""

from __future__ import annotations

from pathlib import Path

from capgap.records.artifacts import collect_temporaries
from capgap.records.checksums import PENDING
from capgap.workflow.private import RECORDS


def remove_temporary(root: Path) -> None:
    """Remove temporary files of killed jobs, pulls and checkouts. The caller holds the run's lock."""
    for folder in (root, RECORDS, PENDING):
        collect_temporaries(folder)
