"""
Run a study: `capgap run` is Snakemake with the defaults of this project and no manual unlocking.

One run at a time has the lock of the working folder. The lock ends with the run, so whatever
locks that a killed Snakemake left are stale and are removed, as are the temporary
files of killed jobs.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from contextlib import ExitStack, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TextIO

from rich.console import Console

from capgap.command_parser import CommandParser
from capgap.commands import clean, plan
from capgap.commands.summary import run as print_summary
from capgap.commands.verify import check, refuse
from capgap.config.study_file import load_study
from capgap.cost.requests import Requests
from capgap.cost.saved_work import saved_work
from capgap.cost.teacher_configs import open_study
from capgap.errors import CapgapError, at_most
from capgap.records import checksums, paths
from capgap.records.artifacts import disk_is_full
from capgap.terminal import die_with_parent
from capgap.workflow import ledger, private
from capgap.workflow.leftovers import remove_temporary
from capgap.workflow.locks import RUN_VARIABLE, name_run, only_run
from capgap.workflow.pending import foreign_snakefile, snakefile, snakemake_command
from capgap.workflow.shared_settings import own_caches

PLANNED = "CAPGAP_PLANNED"  # the file in which our logger lists what a dry run would make
NOTES = 10  # lines about missing and unlisted files before a run


def clear_leftovers(root: Path) -> None:
    """Remove what a killed run left: locks, temporary artifacts, outputs that were not recorded,
    states that nothing resumes.

    Snakemake remakes the unfinished outputs of its records at its start, not those behind the
    checkpoint: it would take them as they are, and without a record.
    """
    shutil.rmtree(private.SNAKEMAKE_LOCKS, ignore_errors=True)
    here = Path.cwd().resolve()
    for output in ledger.unfinished(root):
        folder = Path(os.path.realpath(Path(output).parent))  # a link may lead elsewhere
        if folder.is_relative_to(here):
            Path(output).unlink(missing_ok=True)
        private.location(private.UNFINISHED, output).unlink()
    clean.collect(root)
    remove_temporary(root)


def check_results(root: Path, *, look: bool) -> None:
    """Raise CapgapError for results that are not as the jobs left them; note what is missing.

    A file is read again only if its size, time or inode changed since the last run. look: keep
    nothing of what was read.
    """
    if not root.is_dir():
        return
    known = checksums.KnownDigests()
    found, records = checksums.check(root, known), ledger.read_all(root)
    open_folders = tuple(f"{Path(output).parent}/" for output in ledger.unfinished(root))
    damaged = {k: v for k, v in found.damaged.items() if not k.startswith(open_folders)}
    listed = checksums.read(root) if not damaged else records
    for name in records.keys() - listed.keys():
        damaged[name] = f"{name} has no checksum, so it cannot be compared with what was made"
    refuse(sorted(damaged.values()), "nothing was started")
    # a folder whose manifest alone is here was left out by a pull; jobs that need it name it
    missing = [text for name, text in found.missing.items() if not os.path.isfile(name)]
    notes = [] if not records else [*missing, *found.unlisted.values()]
    for line in at_most(notes, NOTES):
        print(f"note: {line}", file=sys.stderr)
    if not look:
        known.save()


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

    Prints the summary after a full run, and after a dry run what the jobs would cost. A dry run,
    like every option of Snakemake that only lists, takes no lock and changes no file.
    """
    study = open_study(study_file)
    root = Path(paths.ROOT.format(study=study.study))
    look = private.only_looks(snakemake_options)
    options = snakemake_options
    if study.plan.max_runtime and "--retries" not in options:
        options = [*options, "--retries", str(Requests(study).retries)]
    if look and (unfinished := ledger.unfinished(root)):  # a run removes these and makes them again
        options = [*options, "--forcerun", *unfinished]
    command = snakemake_command(study_file, options)
    if foreign_snakefile(graph := snakefile()):
        print(
            f"note: this folder's Snakefile is not used, but that of capgap ({graph}); to run yours: "
            "snakemake --snakefile Snakefile",
            file=sys.stderr,
        )
    with ExitStack() as stack:
        planned_file = Path(stack.enter_context(TemporaryDirectory()), "planned")
        os.environ[PLANNED] = str(planned_file)
        lock = None
        if not look:
            check_writable([root, *map(Path, ("logs", "timings", "scratch", ".snakemake"))])
            lock = stack.enter_context(only_run())
            own_caches()
            clear_leftovers(root)
            stack.callback(checksums.fold, root)
        check_results(root, look=look)
        if lock:
            os.environ[RUN_VARIABLE] = name_run(lock)
            signal.signal(signal.SIGTERM, _terminated)
        with ledger.kept_times(root) if look else nullcontext():
            status = _snakemake(command, lock)
        planned = None
        if planned_file.is_file():
            planned = planned_file.read_text(encoding="utf-8").splitlines()
        whole = status == 0 and private.is_whole(snakemake_options)
        if whole:  # what is missing now is no longer of the study
            checksums.fold(root, forget=lambda output: True)
    if status and disk_is_full(root):
        raise CapgapError(
            f"{root}: no space left on the disk; free some and run again: finished jobs are kept"
        )
    if whole:
        print_summary(study, study_file, Console())
    if status == 0 and planned:
        note = saved_work(study, dict.fromkeys(planned))
        if note:
            print(f"note: {note}")
    if status == 0 and planned is not None:
        print(plan.short(plan.make_plan(study, not_done=planned)))
    return status


def _terminated(*_) -> None:
    """Print a note and end; Snakemake and its jobs end with this process."""
    sys.exit("terminated; run again to go on: finished jobs are kept")


def _snakemake(command: list[str], lock: TextIO | None) -> int:
    """Run Snakemake as a child that shares the lock and does not outlive this process."""
    process = subprocess.Popen(
        command, pass_fds=[lock.fileno()] if lock else [], preexec_fn=die_with_parent
    )
    interrupted = False
    while True:
        try:
            status = process.wait()
            break
        except KeyboardInterrupt:
            interrupted = True  # Snakemake has got it too, ends its jobs and then itself
    if interrupted:
        print("interrupted; run again to go on: finished jobs are kept", file=sys.stderr)
    return status


def main(argv: list[str] | None = None) -> None:
    """Command line of `capgap run`."""
    parser = CommandParser(
        "run",
        "Run a study: everything that is not up to date, and nothing else.\n\n"
        "Other options and targets go to Snakemake: -n (a dry run, with its cost), -j N (jobs at a\n"
        "time), --profile profiles/slurm, teachers, students or law (a part of the study), or the\n"
        "path of a result. An interrupted or killed run continues where it was.",
    )
    parser.add_study()
    args, rest = parser.parse_known_args(argv)
    under_dvc = "DVC_STAGE" in os.environ  # `dvc repro` and `dvc exp run`
    if under_dvc:  # a run that DVC no longer waits for has no use
        die_with_parent()
    status = run(args.study, rest)
    if under_dvc and status == 0:  # DVC takes whatever is there
        check(load_study(args.study).study, "DVC is given nothing")
    sys.exit(status)
