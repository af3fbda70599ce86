"""
Scratch state that lets a job be killed at any moment and resumed.

The state's folder is named by a digest of all inputs; states that no job can resume are removed here.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import signal
import threading
from collections.abc import Callable, Container
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TextIO

from capgap.config.section import Section
from capgap.records.artifacts import content_digest, folder_of
from capgap.records.paths import MANIFEST, TRAIN

STAGES = ("cache_teacher", "distill", "pretrain")  # stages that keep a state
JOB = "job.json"  # names the output that a state belongs to; locked while the job runs


@dataclass(frozen=True)
class RunPaths:
    """Folders of a job's output and state, and how it runs; none of it changes the result."""

    out: Path
    scratch: Path
    checkpoint_seconds: float
    shard: bool = False  # shard the model over the processes instead of replicating it


def state_key(settings: Section, facts: dict, inputs: list[Path]) -> str:
    """Name of the scratch folder, a digest of everything that decides the result.

    It covers identity, contents of the inputs, and settings except those that only change memory use,
    so that a job that ran out of memory can be resumed with less.
    """
    return digest(settings.model_dump(mode="json", exclude=settings.memory_only), facts, inputs)


def digest(settings: dict, facts: dict, inputs: list[Path]) -> str:
    """16 hexadecimal digits that stand for all of these."""
    text = json.dumps([settings, facts, list(map(content_digest, inputs))], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def hold_state(scratch: Path, out: Path) -> TextIO:
    """Lock a job's state for as long as the returned file stays open.

    The file names the output of the state. Waits for another process that runs the same job.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    file = (scratch / JOB).open("a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"waiting for another process that fills {out} from {scratch}", flush=True)
        fcntl.flock(file, fcntl.LOCK_EX)
    file.truncate(0)
    json.dump({"out": str(folder_of(out).resolve())}, file)
    file.flush()
    return file


def discard(scratch: Path, out: Path) -> None:
    """Delete the state of a job that has published its result, and states of its other settings."""
    shutil.rmtree(scratch, ignore_errors=True)
    for note in scratch.parent.parent.glob(f"*/*/{JOB}"):
        if _output_of(note) == folder_of(out).resolve():
            _remove_unless_held(note)


def collect_states(root: Path, sources: Callable[[], Container[str]]) -> list[Path]:
    """Remove the states that no job can resume; returns their folders.

    Such states belong to source that has changed or to outputs that were finished since, or are
    empty. root: the scratch folder. sources: returns the current source digests of jobs, which are
    the names of the folders of their states.
    """
    removed, current = [], cache(sources)
    for note in sorted(root.rglob(JOB)):
        out, folder = _output_of(note), note.parent
        finished = (out / name for name in (TRAIN, MANIFEST)) if out else ()
        if (
            folder.parent.name not in current()
            or any(p.is_file() and p.stat().st_mtime > note.stat().st_mtime for p in finished)
            or not any(path.is_dir() for path in folder.iterdir())
        ) and _remove_unless_held(note):
            removed.append(folder)
    for folder in {folder.parent for folder in removed}:
        with suppress(OSError):  # not empty
            folder.rmdir()
    return removed


def _output_of(note: Path) -> Path | None:
    """The output that a state's file names; None if a kill or a full disk has torn the file."""
    try:
        return Path(json.loads(note.read_text(encoding="utf-8"))["out"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _remove_unless_held(note: Path) -> bool:
    """Remove a state unless a process has locked it; returns whether it was removed."""
    try:
        with note.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(note.parent, ignore_errors=True)
    except OSError:
        return False
    return True


class Stop:
    """Sets a flag on SIGTERM instead of ending, so that a job can save before Slurm takes its node."""

    def __init__(self):
        self.asked = False

    def __enter__(self) -> Stop:
        self.in_main = threading.current_thread() is threading.main_thread()
        if self.in_main:
            self.before = signal.signal(signal.SIGTERM, self._note)
        return self

    def _note(self, *_) -> None:
        self.asked = True  # don't print in a signal handler

    def __exit__(self, *_) -> None:
        if self.in_main:
            signal.signal(signal.SIGTERM, self.before)
