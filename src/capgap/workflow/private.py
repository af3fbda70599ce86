"""
The undocumented parts of Snakemake and DVC that capgap uses. No other module may use any.

Snakemake: the path of a record, the columns of --summary, the names of its parsed options, when its
scheduler looks for jobs to start.
DVC: the name of an object in a store, the formats of a folder's listing and of dvc.lock, how the
file system of a remote is made. A test names the versions that were checked.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
import threading
from base64 import b64decode, urlsafe_b64encode
from pathlib import Path
from typing import Any, NamedTuple

from capgap.records import paths

CHECKED = {"snakemake": "9.27.1", "dvc": "3.67.1", "dvc-data": "3.18.3", "dvc-objects": "5.2.0"}

RECORDS = Path(".snakemake/metadata")  # persistence/file.py, record format 6
UNFINISHED = Path(".snakemake/incomplete")
SNAKEMAKE_LOCKS = Path(".snakemake/locks")
PIECE = 254  # bytes of a file name
LOOKS = (
    "dryrun summary detailed_summary lint list_rules list_target_rules dag rulegraph filegraph "
    "d3dag list_changes list_input_changes list_params_changes list_untracked print_compilation"
).split()
OBJECT = re.compile(r"[0-9a-f]{32}(\.dir)?")


def location(folder: Path, output: str) -> Path:
    """The record's file of an output, in a folder of Snakemake's records."""
    name = urlsafe_b64encode(output.encode()).decode()
    pieces = [name[i : i + PIECE] for i in range(0, len(name), PIECE)]
    return folder.joinpath(*(f"@{piece}" for piece in pieces[:-1]), pieces[-1])


def output_of(folder: Path, file: Path) -> str | None:
    """The output whose record a file in `folder` is; None if its name is not a record's.

    Killed processes and operating systems leave other files, and a name may come from another
    machine, so only paths inside the working folder are accepted.
    """
    name = "".join(part.removeprefix("@") for part in file.relative_to(folder).parts)
    try:
        output = b64decode(name, altchars=b"-_", validate=True).decode()
    except ValueError:
        return None
    return output if paths.is_inside(output) and location(folder, output) == file else None


# Options of Snakemake that change how a study runs, not how much of it. These take a value.
HOW = {"--cores", "-c", "--jobs", "-j", "--profile", "--latency-wait", "-w"}


def is_whole(options: list[str]) -> bool:
    """Whether a run with these options makes the whole study; False if in doubt."""
    words = iter(options)
    return all(word.split("=")[0] in HOW and ("=" in word or next(words, "")) for word in words)


def only_looks(options: list[str]) -> bool:
    """Whether Snakemake would change nothing with these options: a dry run, a list, a picture."""
    if not options:
        return False
    from snakemake.cli import get_argument_parser

    quiet = io.StringIO()
    try:
        with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
            given, _ = get_argument_parser().parse_known_args(options)
    except SystemExit:  # wrong options, or --version: Snakemake itself will print the reason
        return True
    return any(getattr(given, name) for name in LOOKS)


def out_of_date(table: str) -> list[tuple[str, str]]:
    """(rule, output) of every row that --summary marks as pending."""
    rows = [line.split("\t") for line in table.splitlines() if line.count("\t") == 5]
    return [(row[2], row[0]) for row in rows[1:] if row[5] == "update pending"]


class Remote(NamedTuple):
    """A remote named in DVC's settings."""

    name: str
    url: str
    path: str  # on its file system
    fs: Any  # a file system of dvc_objects
    settings: dict[str, Any]


def settings() -> dict[str, Any]:
    """DVC's settings for this folder, all levels merged."""
    from dvc.config import Config

    return Config(dvc_dir=".dvc")


def open_remote(settings: dict[str, Any]) -> Remote:
    """The default remote. If it cannot be made, DVC raises errors of many kinds."""
    from dvc.fs import get_cloud_fs

    name = settings["core"]["remote"]
    kind, options, path = get_cloud_fs(settings, name=name)
    return Remote(name, settings["remote"][name]["url"], path, kind(**options), options)


def cache_folder(settings: dict[str, Any]) -> Path:
    """DVC's cache for this folder."""
    return Path(settings["cache"].get("dir") or ".dvc/cache")


def object_name(oid: str) -> str:
    """Path of an object inside a store."""
    return f"files/md5/{oid[:2]}/{oid[2:]}"


def saved_outs(lock: Any) -> dict[str, dict[str, Any]]:
    """Outputs of the stage `study` in the contents of dvc.lock, by path."""
    outs = lock["stages"]["study"]["outs"]
    for out in outs:
        if out["hash"] != "md5" or not OBJECT.fullmatch(out["md5"]):
            raise ValueError(f"{out['path']} has no md5")
    return {out["path"]: out for out in outs}


def look_again(scheduler: Any, delay_s: float) -> None:
    """Let the scheduler look for jobs to start after a while, unless it will anyway.

    Snakemake's own `_schedule_reevalutation` starts a timer each time that it has looked, and every timer
    makes it look again. So each finished job adds a timer that never ends, and after 500 jobs the
    scheduler used half a core. Here one timer waits at a time, and none while all cores are busy,
    because a job that finishes wakes the scheduler.
    """
    if scheduler.resources["_cores"] == 0 or vars(scheduler).get("looks_again"):
        return

    def wake() -> None:
        scheduler.looks_again = False
        scheduler._open_jobs.release()

    scheduler.looks_again = True
    timer = threading.Timer(delay_s, wake)
    timer.daemon = True
    timer.start()


def main() -> None:
    """Snakemake's command line, without a traceback if it is interrupted while it loads."""
    try:
        from snakemake.cli import main as snakemake
        from snakemake.scheduling.job_scheduler import JobScheduler
    except KeyboardInterrupt:
        os._exit(130)
    JobScheduler._schedule_reevalutation = look_again
    sys.argv[0] = "snakemake"
    snakemake()


if __name__ == "__main__":
    main()
