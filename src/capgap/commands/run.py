"""
Run a study: `capgap run` is Snakemake with the defaults of this project and no manual unlocking.

One run at a time has the lock of the working folder. The lock ends with the run, so whatever
locks a killed Snakemake left behind are known to be stale and are removed, as are the temporary
files of killed jobs.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TextIO

from rich.console import Console

from capgap.commands import clean, plan
from capgap.commands.summary import run as print_summary
from capgap.commands.verify import check
from capgap.config.study_file import load_study
from capgap.errors import CapgapError
from capgap.records import paths
from capgap.records.artifacts import disk_is_full
from capgap.stages.base import run_stage
from capgap.workflow import ledger
from capgap.workflow.locks import RUN_VARIABLE, die_with_parent, name_run, only_run
from capgap.workflow.pending import snakemake_command

PLANNED = "CAPGAP_PLANNED"  # the file in which our logger lists what a dry run would make
SNAKEMAKE_LOCKS = Path(".snakemake/locks")


def clear_leftovers(root: Path) -> None:
    """Remove what a killed run left: locks, temporary artifacts, outputs that were not recorded,
    states that nothing resumes.

    Snakemake remakes unfinished outputs that it knows of at its start, not those behind the
    checkpoint: it would take them as they are, and without a record.
    """
    shutil.rmtree(SNAKEMAKE_LOCKS, ignore_errors=True)
    for output in ledger.unfinished(root):
        Path(output).unlink(missing_ok=True)
        ledger.location(ledger.UNFINISHED, output).unlink()
    clean.collect(root)


def check_writable(folders: list[Path]) -> None:
    """Raise CapgapError for a folder that cannot be written to, or not be made."""
    for folder in folders:
        there = next(path for path in (folder, *folder.parents) if path.exists())
        if not there.is_dir() or not os.access(there, os.W_OK):
            raise CapgapError(
                f"{there}: cannot be written to, and the run writes {folder}/ there; make it a "
                "writable folder (chmod u+w, or mount it read-write)"
            )


def run(study_file: Path, snakemake_options: list[str]) -> int:
    """Run Snakemake on a study; its exit status.

    Prints the summary after a full run, and after a dry run what the jobs would cost.
    """
    study = load_study(study_file)
    root = Path(paths.ROOT.format(study=study.study))
    check_writable([root, *map(Path, ("logs", "timings", "scratch", ".snakemake"))])
    with only_run() as lock, TemporaryDirectory() as folder:
        clear_leftovers(root)
        told = Path(folder, "planned")
        os.environ[PLANNED] = str(told)
        os.environ[RUN_VARIABLE] = name_run(lock)
        signal.signal(signal.SIGTERM, _terminated)
        status = _snakemake(study_file, snakemake_options, lock)
        planned = told.read_text(encoding="utf-8").splitlines() if told.is_file() else None
    if status and disk_is_full(root):
        raise CapgapError(
            f"{root}: no space left on the disk; free some and run again: finished jobs are kept"
        )
    if status == 0 and not snakemake_options:
        print_summary(study.study, Console(), has_final=study.final is not None)
    if status == 0 and planned is not None:
        print(plan.short(plan.make_plan(study, not_done=planned)))
    return status


def _terminated(*_) -> None:
    """End with a word; Snakemake and its jobs end with this process."""
    sys.exit("terminated; run again to go on: finished jobs are kept")


def _snakemake(study_file: Path, options: list[str], lock: TextIO) -> int:
    """Run Snakemake as a child that shares the lock and does not outlive this process."""
    process = subprocess.Popen(
        snakemake_command(study_file, options),
        pass_fds=[lock.fileno()],
        preexec_fn=die_with_parent,
    )
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue  # Snakemake has got it too, ends its jobs and then itself


def main(argv: list[str] | None = None) -> None:
    """Command line of `capgap run`."""
    parser = argparse.ArgumentParser(
        prog="capgap run",
        description="Run a study. Further options and targets go to Snakemake, for example "
        "'capgap run -n' to see what would be done.",
    )
    parser.add_argument(
        "--study", type=Path, default=Path("config.yaml"), help="study file (default config.yaml)"
    )
    args, rest = parser.parse_known_args(argv)
    under_dvc = "DVC_STAGE" in os.environ  # `dvc repro` and `dvc exp run`
    if under_dvc:  # a run that DVC no longer waits for has no use
        die_with_parent()
    status = run(args.study, rest)
    if under_dvc and status == 0:  # DVC takes whatever is there
        check(load_study(args.study).study, "DVC is given nothing")
    sys.exit(status)


if __name__ == "__main__":
    run_stage(main)
