"""
Run a study: `capgap run` is Snakemake with the defaults of this project and no manual unlocking.

One run at a time has the lock of the working folder. The lock belongs to the process and ends
with it, so whatever locks a killed Snakemake left behind are known to be stale and are removed,
as are the temporary files of killed jobs.
"""

from __future__ import annotations

import argparse
import fcntl
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from capgap import paths
from capgap.config import load_study
from capgap.errors import CapgapError
from capgap.stage import run_stage
from capgap.summary import run as print_summary

SNAKEMAKE_LOCKS = Path(".snakemake/locks")
OWN_LOCK = Path(".snakemake/capgap.lock")


@contextmanager
def only_run() -> Iterator[None]:
    """Hold the working folder's lock; CapgapError if another run has it."""
    OWN_LOCK.parent.mkdir(exist_ok=True)
    with OWN_LOCK.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CapgapError("another run is active in this folder; wait for it to end") from None
        yield


def clear_leftovers(root: Path) -> None:
    """Remove what a killed run left: Snakemake's locks and unfinished temporary artifacts."""
    shutil.rmtree(SNAKEMAKE_LOCKS, ignore_errors=True)
    for path in root.rglob(".*.tmp") if root.is_dir() else []:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def run(study_file: Path, snakemake_options: list[str]) -> int:
    """Run Snakemake on a study; its exit status. Prints the summary after a full run."""
    if not Path("Snakefile").is_file():
        raise CapgapError("no Snakefile here; run from the top folder of the repository")
    study = load_study(study_file)
    command = [sys.executable, "-m", "snakemake", "--configfile", str(study_file)]
    with only_run():
        clear_leftovers(Path(paths.ROOT.format(study=study.study)))
        status = subprocess.run([*command, *snakemake_options]).returncode
    if status == 0 and not snakemake_options:
        print_summary(study.study, Console())
    return status


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
    sys.exit(run(args.study, rest))


if __name__ == "__main__":
    run_stage(main)
