"""
Hand a finished study to DVC: `capgap save`, then `git commit` and `capgap push`.

What a colleague pulls must be whole, so a study that is running, incomplete, stale or corrupt is
refused; `dvc commit` alone would take anything.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from capgap.commands.verify import check, results_of
from capgap.config.study_file import load_study
from capgap.errors import CapgapError
from capgap.stages.base import run_stage
from capgap.workflow.locks import only_run
from capgap.workflow.pending import pending
from capgap.workflow.remote import refuse_secrets


def run(study_file: Path) -> None:
    """Commit a study's results and records to DVC's cache and to dvc.lock."""
    study = load_study(study_file).study
    refuse_secrets()
    results_of(study)
    with only_run():
        left = pending(study_file)
        if left:
            rules = ", ".join(sorted({item.rule for item in left}))
            raise CapgapError(
                f"nothing was saved: {len(left)} results are not up to date ({rules}); "
                "`capgap run` makes them"
            )
        check(study, "nothing was saved")
        command = [sys.executable, "-m", "dvc", "commit", "--force", "study"]
        if subprocess.run(command).returncode:
            raise CapgapError("nothing was saved: dvc commit failed, see its message above")


def main(argv: list[str] | None = None) -> None:
    """Command line of `capgap save`."""
    parser = argparse.ArgumentParser(
        prog="capgap save", description="Hand the finished study of config.yaml to DVC."
    )
    parser.parse_args(argv)
    run(Path("config.yaml"))
    print("saved; now: git add dvc.lock && git commit, and capgap push")


if __name__ == "__main__":
    run_stage(main)
