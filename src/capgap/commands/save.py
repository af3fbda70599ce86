"""
Store a finished study with DVC: `capgap save`, then `git commit` and `capgap push`.

What a colleague pulls must be complete, so a study that is running, incomplete, stale or corrupt is
refused; `dvc commit` alone would accept it. An interrupted save leaves dvc.lock unchanged.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from capgap.command_parser import CommandParser
from capgap.commands.verify import check, results_of
from capgap.config.study_file import load_study
from capgap.errors import CapgapError
from capgap.records import checksums
from capgap.records.artifacts import disk_is_full
from capgap.terminal import die_with_parent
from capgap.workflow import remote
from capgap.workflow.leftovers import remove_temporary
from capgap.workflow.locks import only_run
from capgap.workflow.pending import pending
from capgap.workflow.shared_settings import check_shared, own_caches

FULL_S = 5  # a disk that is full for so long stays full


def run(study_file: Path) -> None:
    """Commit a study's results and records to DVC's cache and to dvc.lock."""
    study = load_study(study_file).study
    check_shared(secrets=True)
    root = results_of(study)
    with only_run():
        remote.restore_lock()
        remove_temporary(root)
        checksums.fold(root)
        check(study, "nothing was saved")
        left = pending(study_file)
        if left:
            rules = ", ".join(sorted({item.rule for item in left}))
            raise CapgapError(
                f"nothing was saved: {len(left)} results are not up to date ({rules}); "
                "`capgap run` makes them"
            )
        own_caches()
        with _whole_lock():
            _commit()
            remote.check_saved(study, root)


@contextmanager
def _whole_lock() -> Iterator[None]:
    """Keep a copy of dvc.lock while DVC writes it in place; it comes back unless all goes well."""
    remote.keep_lock()
    try:
        yield
    except BaseException:
        remote.restore_lock()
        raise
    remote.forget_kept_lock()


def _commit() -> None:
    """Have DVC store the stage's outputs; CapgapError with its reason if it cannot."""
    command = [sys.executable, "-m", "dvc", "commit", "--quiet", "--force", "study"]
    # it dies with this process, or it would go on after a kill, without the lock
    options = {"stderr": subprocess.PIPE, "text": True, "preexec_fn": die_with_parent}
    process = subprocess.Popen(command, **options)
    try:
        errors = _errors_of(process)
    except BaseException:
        process.kill()
        process.wait()
        raise
    if process.returncode:
        reason = [line for line in errors.splitlines() if line.startswith("ERROR: ")]
        lines = reason or errors.strip().splitlines()[-1:] or [f"status {process.returncode}"]
        hint = ""
        if not Path(".git").exists():
            hint = "; saving needs git, which shares dvc.lock: git init"
        raise CapgapError(
            f"nothing was saved: dvc commit failed ({lines[0].removeprefix('ERROR: ')}){hint}"
        )


def _errors_of(process: subprocess.Popen[str]) -> str:
    """What DVC printed when it has ended; CapgapError if the disk is full for `FULL_S`.

    DVC's database of hashes tries for ever to write to a full disk.
    """
    looks_full = 0
    while True:
        with suppress(subprocess.TimeoutExpired):
            return process.communicate(timeout=1)[1]
        looks_full = looks_full + 1 if disk_is_full(remote.LOCK) else 0
        if looks_full == FULL_S:
            raise CapgapError("nothing was saved: the disk is full; free some space and run again")


def main(argv: list[str] | None = None) -> None:
    """Command line of `capgap save`."""
    parser = CommandParser(
        "save",
        "Hand the finished study of config.yaml to DVC.",
    )
    parser.parse_args(argv)
    run(Path("config.yaml"))
    print("saved; now: git add dvc.lock && git commit, and capgap push")
