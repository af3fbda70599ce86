"""
What a job needs to be killed at any moment and resumed: a place, a name for its state, a way to end.
What nothing can resume any more is collected here, too.
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

STAGES = ("cache_teacher", "distill", "pretrain")  # that keep a state
JOB = "job.json"  # in the folder of a state: whose it is; locked while its job runs


@dataclass(frozen=True)
class Place:
    """Where a job writes and keeps its state; none of it changes the result."""

    out: Path
    scratch: Path
    checkpoint_seconds: float
    shard: bool = False  # share the model among the processes instead of copying it to each


def state_key(settings: Section, facts: dict, inputs: list[Path]) -> str:
    """Name of the scratch folder: a digest of what decides the result.

    These are identity, contents of the inputs, and settings, without those that only decide how much
    memory a job takes. So a job that ran out of memory goes on with less.
    """
    return digest(settings.model_dump(mode="json", exclude=settings.memory_only), facts, inputs)


def digest(settings: dict, facts: dict, inputs: list[Path]) -> str:
    """16 hexadecimal digits that stand for all of these."""
    text = json.dumps([settings, facts, list(map(content_digest, inputs))], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def hold_state(scratch: Path, out: Path) -> TextIO:
    """Become the only user of a job's state for as long as the returned file stays open.

    The file notes whose state it is. Waits for another process that runs the same job.
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
    """Delete the state of a job that has published its result, and what other settings left of it."""
    shutil.rmtree(scratch, ignore_errors=True)
    for note in scratch.parent.parent.glob(f"*/*/{JOB}"):
        if _output_of(note) == folder_of(out).resolve():
            _remove_unless_held(note)


def collect_states(root: Path, sources: Callable[[], Container[str]]) -> list[Path]:
    """Remove the states that nothing can resume; their folders.

    These are of source that has changed, of outputs that were finished since, or empty. root: the
    scratch folder. sources: returns the digests of the source that jobs have now; states of it
    lie in a folder of that name.
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
    """The output whose state lies beside a note; None for a note that a kill or a full disk tore."""
    try:
        return Path(json.loads(note.read_text(encoding="utf-8"))["out"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _remove_unless_held(note: Path) -> bool:
    """Remove a state unless a process has it; whether that was done."""
    try:
        with note.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(note.parent, ignore_errors=True)
    except OSError:
        return False
    return True


class Stop:
    """Notes a SIGTERM, as Slurm sends before it takes a job's node, instead of dying of it."""

    def __init__(self):
        self.asked = False

    def __enter__(self) -> Stop:
        self.in_main = threading.current_thread() is threading.main_thread()
        if self.in_main:
            self.before = signal.signal(signal.SIGTERM, self._note)
        return self

    def _note(self, *_) -> None:
        self.asked = True  # no word of it here: the signal may come while another is written

    def __exit__(self, *_) -> None:
        if self.in_main:
            signal.signal(signal.SIGTERM, self.before)
