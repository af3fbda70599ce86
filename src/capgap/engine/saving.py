"""
Save the states of a run, so that training waits as little as it can.

If a model is sharded (FSDP2), each process copies the rows that it holds to main memory and writes them, in
a thread, into files of its own while training goes on. No process ever holds, sends or reads a whole
state. When all have written, which they tell each other at the end of a step, the first one publishes
the folder with everybody's checksums: a kill at any moment leaves this state or the one before. Of
copies across nodes (HSDP) one is written.

Otherwise the first process writes the state, which all have, and the others go on.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import torch
from safetensors.torch import save_file

from capgap.engine import checkpoints
from capgap.engine.parallel import DistContext
from capgap.engine.state_files import MOMENTS, SAME_FILES, WEIGHTS, is_shared, name_of, own
from capgap.errors import CapgapError
from capgap.records.artifacts import (
    is_first_process,
    naming_full_disk,
    new_folder_of,
    publish_folder,
    sync,
)

DIGEST_BYTES = 32  # SHA-256


class _Unfinished(Exception):
    """A state is not published, because the run ends before all of it is written."""


class Saves:
    """Saves the states of a run, one at a time. All processes call each method, but `writing`, together.

    On leaving it as a context, a state that is not published yet is given up.
    """

    def __init__(
        self,
        scratch: Path,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        dist: DistContext,
    ):
        self.scratch, self.model, self.optimizer, self.dist = scratch, model, optimizer, dist
        self.publishing = ExitStack()
        self.thread: ThreadPoolExecutor | None = None
        self.pending: tuple[Path, Future[bytes], dict[str, str]] | None = None
        self.copies: dict[str, dict[str, torch.Tensor]] = {WEIGHTS: {}, MOMENTS: {}}
        self.step: int | None = None  # of the state begun last; None for one in another place

    def __enter__(self) -> Saves:
        return self

    def __exit__(self, *_) -> None:
        if self.thread is not None:
            self.thread.shutdown()  # waits for what is being written
        with suppress(_Unfinished, CapgapError), self.publishing:
            if self.pending is not None:
                raise _Unfinished

    @property
    def writing(self) -> bool:
        """Whether this process is still writing; not if it could not."""
        return self.pending is not None and not self.pending[1].done()

    def begin(self, step: int, notes: dict) -> None:
        """Save the state after `step` steps; it can be resumed from after `finish`."""
        if self.dist.is_sharded:
            self._begin(checkpoints.folder_of(self.scratch, step), step, notes)
        else:
            checkpoints.save(self.scratch, step, self.model, self.optimizer, notes)

    def at_once(self, step: int, notes: dict, folder: Path | None = None) -> None:
        """Save the state after `step` steps and wait until it lies on disk. folder: another place."""
        if folder is None and step != self.step:
            self.begin(step, notes)
        elif folder is not None and self.dist.is_sharded:
            self._begin(folder, step, notes)
        elif folder is not None:
            checkpoints.write(folder, step, self.model, self.optimizer, notes)
        self.finish()
        self.dist.wait()  # a process that ends takes the others with it, the one that saves too

    def finish(self) -> None:
        """Wait until all processes have written what is being written, if anything is, and publish it.

        If one cannot write, or the first one cannot publish, all raise, and the state is given up.
        """
        if self.pending is None:
            return
        folder, written, known = self.pending
        self.pending, failure = None, None
        try:
            with self.publishing:
                self.dist.agree(written.exception(), f"{folder}: saving")
                digests = self.dist.each(written.result())
                for part in range(self.dist.sharers if is_first_process() else 0):
                    for i, kind in enumerate((WEIGHTS, MOMENTS)):
                        name = name_of(kind, part, self.dist.sharers)
                        _require(new_folder_of(folder) / name)
                        at = digests[part][i * DIGEST_BYTES :]
                        known[name] = at[:DIGEST_BYTES].hex()
        except (CapgapError, OSError) as error:
            failure = error
        self.dist.agree(failure, f"{folder}: saving")
        if self.step is not None:
            checkpoints.prune(self.scratch, self.step)

    def _begin(self, folder: Path, step: int, notes: dict) -> None:
        """Copy what this process holds and begin to write it."""
        self.finish()
        known: dict[str, str] = {}
        failure = None
        try:
            if is_first_process():
                new = self.publishing.enter_context(publish_folder(folder, ours=True, known=known))
                checkpoints.write_notes(new, step, notes | {"parts": self.dist.sharers})
        except (CapgapError, OSError) as error:
            failure = error
        self.dist.agree(failure, f"{folder}: saving")  # and the folder is there
        if self.dist.rank < self.dist.sharers:
            self._copy()
            self.thread = self.thread or ThreadPoolExecutor(1)
            written = self.thread.submit(self._write, new_folder_of(folder))
        else:
            written = Future()
            written.set_result(bytes(2 * DIGEST_BYTES))
        self.pending = folder, written, known
        self.step = step if folder == checkpoints.folder_of(self.scratch, step) else None

    def _copy(self) -> None:
        """Copy what this process holds to main memory; the first one, what is not sharded as well."""
        for kind, tensors in checkpoints.state(self.model, self.optimizer).items():
            copies = self.copies[kind]
            for name, tensor in tensors.items():
                if not is_shared(tensor) and not is_first_process():
                    continue
                mine = own(tensor)
                if name not in copies:
                    copies[name] = torch.empty(
                        mine.shape, dtype=mine.dtype, pin_memory=mine.is_cuda
                    )
                copies[name].copy_(mine, non_blocking=True)
        if self.dist.device.type == "cuda":
            torch.cuda.synchronize()

    def _write(self, new: Path) -> bytes:
        """Write the copies into a new folder and put them on the disk; returns their digests."""
        digests = b""
        for kind, copies in self.copies.items():
            path = new / name_of(kind, self.dist.rank, self.dist.sharers)
            _require(new)
            with naming_full_disk(path):
                save_file(copies, path)
                sync(path)
            with open(path, "rb") as file:  # uncached, because nobody else reads it
                digests += hashlib.file_digest(file, "sha256").digest()
        return digests


def _require(path: Path) -> None:
    if not path.exists():
        raise CapgapError(f"{path}: not all processes of the job see this; {SAME_FILES}")
