"""Temporary files that kills leave among results and records."""

from __future__ import annotations

import shutil
from pathlib import Path

from capgap.records.checksums import PENDING
from capgap.workflow.private import RECORDS


def remove_temporary(root: Path) -> None:
    """Remove temporary files of killed jobs, pulls and checkouts. Only under the lock of the run."""
    for folder in (root, RECORDS, PENDING):
        for path in folder.rglob(".*.tmp") if folder.is_dir() else []:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
