"""
What a job needs to be killed at any moment and resumed: a place, a name for its state, a way to end.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import threading
from dataclasses import dataclass
from pathlib import Path

from capgap.config.section import Section
from capgap.records.artifacts import folder_of
from capgap.records.paths import MANIFEST


@dataclass(frozen=True)
class Place:
    """Where a job writes and keeps its state; none of it changes the result."""

    out: Path
    scratch: Path
    checkpoint_seconds: float
    shard: bool = False  # share the model among the processes instead of copying it to each


def state_key(settings: Section, facts: dict, inputs: list[Path]) -> str:
    """Name of the scratch folder: a digest of settings, identity and the inputs' manifests."""
    return digest(settings.model_dump(mode="json"), facts, inputs)


def digest(settings: dict, facts: dict, inputs: list[Path]) -> str:
    """16 hexadecimal digits that stand for all of these."""
    manifests = [folder_of(path) / MANIFEST for path in inputs]
    contents = [m.read_text(encoding="utf-8") if m.is_file() else str(m) for m in manifests]
    text = json.dumps([settings, facts, contents], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def discard(scratch: Path) -> None:
    """Delete the state of a run that has been published."""
    shutil.rmtree(scratch, ignore_errors=True)


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
