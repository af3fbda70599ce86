"""
Locks that end with their process, and jobs that end with their run.

All locks are flocks: the kernel drops them when the last process that holds them has ended, however
it ended, so no lock is ever removed by hand.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from capgap.errors import CapgapError
from capgap.workflow.own_places import check_own_places

RUN_LOCK = Path(".snakemake/capgap.lock")  # held by a run; contains the name of the latest run
RUN_VARIABLE = "CAPGAP_RUN"  # the name of the run that started a job
SCRATCH = Path("scratch")
WATCH_SECONDS = 5.0


@contextmanager
def only_run() -> Iterator[TextIO]:
    """Hold the working folder's lock; CapgapError if a run has it, or if git brought files that only
    this machine may make. Yields the locked file."""
    check_own_places()
    RUN_LOCK.parent.mkdir(exist_ok=True)
    with RUN_LOCK.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CapgapError("another run is active in this folder; wait for it to end") from None
        yield file


def name_run(lock: TextIO) -> str:
    """Name a new run and write the name into the lock, so that older runs start no more jobs."""
    name = uuid.uuid4().hex
    lock.truncate(0)
    lock.write(name)
    lock.flush()
    return name


def claim_output(out: str | Path) -> TextIO:
    """Become the only writer of an output, for as long as the returned file stays open.

    Waits for a job of an earlier run that still writes it. Raises CapgapError in a job of a run that
    a newer run has replaced, because the output belongs to the newer run's job.
    """
    path = SCRATCH / f"{out}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("w", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"waiting for an earlier job that still writes {out}", flush=True)
        fcntl.flock(file, fcntl.LOCK_EX)
    if _superseded():
        raise CapgapError(f"{out}: a newer run has taken over, so this job of an older run stops")
    threading.Thread(target=_end_when_superseded, args=(out,), daemon=True).start()
    return file


def _superseded() -> bool:
    """Whether a newer run has followed the one that started this job."""
    name = os.environ.get(RUN_VARIABLE)
    if not name or not RUN_LOCK.is_file():
        return False
    return RUN_LOCK.read_text(encoding="utf-8") not in (name, "")


def _end_when_superseded(out: str | Path) -> None:
    """End this process once a newer run has taken over; that run's job resumes from its state.

    On a cluster jobs outlive their run, and the newer run would wait for this job and then repeat it.
    """
    while not _superseded():
        time.sleep(WATCH_SECONDS)
    print(f"{out}: a newer run has taken over, so this job of an older run stops", flush=True)
    os._exit(1)
