"""
A teacher's soft targets on the training text, computed once and kept on disk.

The whole distribution of a token would be V numbers. One of two kinds of sparse targets is kept instead:

  sampled  K tokens drawn from the distribution, each for a mass of 1 / K (random sampling
           distillation, arXiv 2503.16870, with the distribution itself as its proposal)
  top_k    the K most likely tokens with their probabilities, and K more drawn from the others,
           each for 1 / K of what is left

The expected target of both is the teacher's distribution, at its temperature; the cross-entropy
under a target is linear in it, so the expected gradient is the exact one. Draws are systematic: one
uniform number moves K equidistant points over the cumulated probabilities, so a token of mass m
comes floor(Km) or ceil(Km) times.

Windows lie at the fixed places of `lattice`, in ascending order, in shards of safetensors. Targets belong
to one teacher, one token stream and one temperature, which their record names.
"""

# B sequences, T tokens, N tokens of a batch, C tokens of a chunk, K kept or drawn, V vocabulary

from __future__ import annotations

import os
import shutil
import time
from bisect import bisect
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from capgap.config import TargetsStage
from capgap.config.shapes import chunk_tokens
from capgap.data.token_streams import begin, lattice
from capgap.engine.forward import model_output
from capgap.engine.losses import ModelOutput, PartialTargets
from capgap.engine.onednn_matmul import use_onednn
from capgap.engine.parallel import ONE_PROCESS, DistContext
from capgap.engine.resuming import Stop
from capgap.engine.streaming import ready
from capgap.engine.time_left import duration
from capgap.errors import CapgapError, Terminated
from capgap.records.artifacts import intact, open_folder, publish_folder
from capgap.records.run_records import TargetsRecord

RECORD = "targets.json"
SHARD_BYTES = 2**26
WINDOWS = "windows.safetensors"  # file of a saved part


def _id_dtype(vocab: int) -> torch.dtype:
    return torch.uint16 if vocab <= 2**16 else torch.int32


def require_space(settings: TargetsStage, vocab: int, folder: Path, saved: int = 0) -> str:
    """What the targets need and what the disk has, as a sentence; CapgapError if it has less.

    folder: where it will lie. saved: tokens whose targets lie there already.
    """
    each = settings.bytes_per_token(vocab)
    need = each * (settings.unique_tokens - saved)
    there = next(p for p in folder.absolute().parents if p.is_dir())
    free = shutil.disk_usage(there).free
    said = (
        f"{settings.unique_tokens - saved:,} tokens x {each} bytes = {need / 1e6:,.1f} MB, "
        f"{free / 1e6:,.1f} MB free"
    )
    if need > free:
        raise CapgapError(
            f"{folder}: the teacher's targets do not fit on the disk: {said}. Free some space, or "
            "lower distill.unique_tokens or distill.target_entries, or set distill.teacher_targets "
            "to online"
        )
    return said


class Unfinished:
    """The part of the targets that is computed, in a folder of its own.

    A folder artifact `windows-<n>` holds the windows of a shard up to window n, so one that ends a
    shard is that shard. dist: the processes, each of which computes every `size`-th shard.
    """

    def __init__(
        self,
        folder: Path,
        settings: TargetsStage,
        windows: int,
        vocab: int,
        dist: DistContext = ONE_PROCESS,
    ):
        each = settings.bytes_per_token(vocab) * settings.sequence_length
        self.folder, self.vocab, self.dist = folder, vocab, dist
        self.per_shard = max(1, SHARD_BYTES // each)
        self.ends = [*range(self.per_shard, windows, self.per_shard), windows]
        saved = self._saved()
        # windows that are saved of this process's shards, by the shard's end
        self.done = {end: self._newest(saved, end) for end in dist.deal(self.ends)}

    def begin(self, end: int) -> int:
        """The first window of a shard."""
        return (end - 1) // self.per_shard * self.per_shard

    @property
    def windows(self) -> int:
        """How many windows this process saves in all."""
        return sum(end - self.begin(end) for end in self.done)

    @property
    def saved(self) -> int:
        """How many of them are saved."""
        return sum(done - self.begin(end) for end, done in self.done.items())

    def _newest(self, saved: list[int], end: int) -> int:
        """The last window of a shard that is saved and whole, its beginning if there is none."""
        here = saved[bisect(saved, self.begin(end)) : bisect(saved, end)]
        return next(filter(self._whole, reversed(here)), self.begin(end))

    def save(self, end: int, done: int, kept: dict[str, torch.Tensor]) -> None:
        """Save the windows of a shard up to window `done` in place of fewer of them."""
        with publish_folder(self._at(done), ours=True) as folder:
            save_file(kept, folder / WINDOWS)
        self.done[end] = done
        for fewer in self._saved():
            if self.begin(end) < fewer < done:
                shutil.rmtree(self._at(fewer))

    def begun(self, end: int) -> list[dict[str, torch.Tensor]]:
        """The saved windows of a shard that is not whole."""
        done = self.done[end]
        return [load_file(self._at(done) / WINDOWS)] if self.begin(end) < done < end else []

    def shards(self) -> list[Path]:
        """Files of all shards; each must be saved."""
        return [self._at(end) / WINDOWS for end in self.ends]

    def _at(self, done: int) -> Path:
        return self.folder / f"windows-{done:09d}"

    def _whole(self, done: int) -> bool:
        return intact(self._at(done), WINDOWS)

    def _saved(self) -> list[int]:
        names = (path.name for path in self.folder.glob("windows-*") if path.is_dir())
        return sorted(int(name[8:]) for name in names if name[8:].isdecimal())


@torch.no_grad()
def compute_targets(
    unfinished: Unfinished,
    teacher: torch.nn.Module,
    stream: np.ndarray,
    settings: TargetsStage,
    *,
    checkpoint_seconds: float,
    bos_id: int | None = None,
) -> None:
    """Compute what is not saved yet of a teacher's targets on a training stream, this process's part.

    bos_id: first of every window, see `token_streams.begin`.

    Raises Terminated in all processes if one of them was told to end (SIGTERM) before its part was
    whole: those that are done wait for the others, and learn it from them.
    """
    length, vocab = settings.sequence_length, unfinished.vocab
    starts = lattice(len(stream), length, settings.unique_tokens)
    batch = max(1, settings.batch_tokens // length)
    first, windows = unfinished.saved, unfinished.windows
    processes = unfinished.dist.size
    whose = "" if processes == 1 else f" of one of {processes} processes"
    if first:
        print(f"resumed after {first * length:,} tokens{whose}", flush=True)
    clock = last_said = last_saved = time.monotonic()

    def parts():
        """Inputs, places of their windows, and the end of the shard that they belong to."""
        for end, at in dict(unfinished.done).items():
            while at < end:
                part = starts[at : min(end, at + batch)]
                rows = np.stack([stream[at : at + length] for at in part]).astype(np.int64)
                yield begin(torch.from_numpy(rows), bos_id).to(teacher.device), part, end
                at += len(part)

    computed, shard, done, pieces = first, None, 0, []
    with Stop() as stop:
        for inputs_BT, part, end in ready(teacher, parts(), lambda: stop.asked):
            if end != shard:
                shard, done, pieces = end, unfinished.done[end], unfinished.begun(end)
            output = model_output(teacher, inputs_BT, precision=settings.precision, vocab=vocab)
            draws = np.concatenate([_uniforms(settings.seed, at, length) for at in part])
            pieces += reduce_to_targets(output, torch.from_numpy(draws), settings)
            done, computed = done + len(part), computed + len(part)
            now = time.monotonic()
            if done == end or stop.asked or now - last_saved > checkpoint_seconds:
                unfinished.save(end, done, join(pieces))
                last_saved = time.monotonic()
            if now - last_said > 5 or computed == windows:
                last_said, per_window = now, (now - clock) / (computed - first)
                left = per_window * (windows - computed)
                print(
                    f"{computed * length:,} of {windows * length:,} tokens{whose}  "
                    f"{length / per_window:,.0f} tok/s  left {duration(left)}",
                    flush=True,
                )
            if stop.asked:
                break
        if computed < windows and shard is not None and done > unfinished.done[shard]:
            unfinished.save(shard, done, join(pieces))  # asked to end between two layers
        # a signal to one that waits here must not end it, because the others would lose it
        ended = unfinished.dist.any_process(computed < windows)[0]
    if ended:
        raise Terminated(
            f"terminated after {computed * length:,} tokens{whose}; the state is saved in "
            f"{unfinished.folder}, run again to go on"
        )


def gather(unfinished: Unfinished, out: Path) -> float:
    """Fill a folder with the shards; the mass of the tail, summed over the tokens."""
    tail = 0.0
    for number, file in enumerate(unfinished.shards()):
        shard = out / _shard(number)
        try:
            os.link(file, shard)
        except OSError:  # another disk, or one without links
            shutil.copyfile(file, shard)
        with safe_open(shard, framework="pt") as kept:
            if "probs" in kept.keys():  # noqa: SIM118
                tail += (1 - kept.get_tensor("probs").double().sum(1)).sum().item()
    return tail


def _shard(number: int) -> str:
    return f"shard-{number:05d}.safetensors"


def _uniforms(seed: int, start: int, length: int) -> np.ndarray:
    """One number in [0, 1) for each token of the window at `start`, whatever the batch."""
    return np.random.Generator(np.random.Philox(key=[seed, start])).random(length)


@use_onednn()
def reduce_to_targets(
    output: ModelOutput, draws_N: torch.Tensor, settings: TargetsStage
) -> list[dict[str, torch.Tensor]]:
    """Keep or draw K of V tokens for each of N, as it goes to disk, by chunks.

    draws: one uniform number in [0, 1) a token, float64.
    """
    pieces, chunk = [], chunk_tokens(output.vocab)
    for start in range(0, output.hidden.shape[0], chunk):
        part = slice(start, start + chunk)
        probs_CV = torch.softmax(output.logits(part).float() / settings.temperature, 1)
        piece = {}
        if settings.kind == "top_k":
            probs_CK, top_CK = probs_CV.topk(settings.entries)
            piece["probs"] = probs_CK.half()
            probs_CV.scatter_(1, top_CK, 0.0)
        ids_CK = draw(probs_CV, draws_N[part].to(probs_CV.device), settings.entries)
        if settings.kind == "top_k":
            ids_CK = torch.cat([top_CK, ids_CK], 1)
        piece["ids"] = ids_CK.to(_id_dtype(output.vocab))
        pieces.append({name: value.cpu() for name, value in piece.items()})
    return pieces


def join(pieces: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Pieces one after another."""
    return {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}


def draw(probs_CV: torch.Tensor, uniform_C: torch.Tensor, count: int) -> torch.Tensor:
    """Draw `count` tokens in proportion to each row by systematic sampling (C x count, int64).

    uniform: one number in [0, 1) for each row, float64. A row of zeros gives tokens without meaning.
    """
    cumulated_CV = probs_CV.double().cumsum(1)
    steps_K = torch.arange(count, dtype=torch.float64, device=probs_CV.device)
    points_CK = (uniform_C.unsqueeze(1) + steps_K) / count * cumulated_CV[:, -1:]
    return torch.searchsorted(cumulated_CV, points_CK, right=True).clamp_(max=probs_CV.shape[1] - 1)


def partial_targets(kept: dict[str, torch.Tensor]) -> PartialTargets:
    """Targets from what is kept on disk."""
    ids_NK = kept["ids"].to(torch.int64)
    if "probs" not in kept:
        return PartialTargets(ids_NK, torch.full(ids_NK.shape, 1 / ids_NK.shape[1]))
    top_NK = kept["probs"].float()
    rest_N1 = (1 - top_NK.sum(1, keepdim=True)).clamp_(min=0)
    masses_NK = torch.cat([top_NK, (rest_N1 / top_NK.shape[1]).expand_as(top_NK)], 1)
    return PartialTargets(
        ids_NK, masses_NK / masses_NK.sum(1, keepdim=True)
    )  # half precision rounds


class TargetStore:
    """A teacher's targets on disk: `read(starts)` gives the targets of the windows at these places."""

    def __init__(self, path: str | Path):
        self.folder = open_folder(path)
        self.record = TargetsRecord.read(self.folder / RECORD)
        settings = self.record.settings
        self.length = settings.sequence_length
        self.starts = lattice(self.record.stream_tokens, self.length, settings.unique_tokens)
        self.shards: dict[int, dict[str, np.ndarray]] = {}

    def check(self, settings: TargetsStage, *, weights_sha256: str, stream_sha256: str) -> None:
        """Raise CapgapError if these are not the targets of these settings, teacher and stream."""
        mine, theirs = (
            one.model_dump(exclude=one.memory_only) for one in (settings, self.record.settings)
        )
        for what, wanted, have in [
            ("settings", mine, theirs),
            ("teacher's weights (SHA-256)", weights_sha256, self.record.weights_sha256),
            ("training stream (SHA-256)", stream_sha256, self.record.stream_sha256),
        ]:
            if wanted != have:
                raise CapgapError(
                    f"{self.folder}: the targets were made for another {what}: {have}, wanted "
                    f"{wanted}; make it again with capgap cache-teacher"
                )

    def read(self, starts_B: torch.Tensor) -> PartialTargets:
        """Targets of the windows that start at these places of the stream, (B T) tokens."""
        rows = np.searchsorted(self.starts, starts_B.numpy())
        if not np.array_equal(
            self.starts[np.minimum(rows, len(self.starts) - 1)], starts_B.numpy()
        ):
            raise CapgapError(f"{self.folder}: the targets do not cover the windows of this run")
        numbers, places = np.divmod(rows, self.record.windows_per_shard)
        kept: dict[str, np.ndarray] = {}
        for number in np.unique(numbers):
            here = numbers == number
            for name, windows in self._shard(int(number)).items():
                target = kept.setdefault(
                    name, np.empty((len(rows), *windows.shape[1:]), windows.dtype)
                )
                target[here] = windows[places[here]]
        return partial_targets(
            {name: torch.from_numpy(value).flatten(0, 1) for name, value in kept.items()}
        )

    def _shard(self, number: int) -> dict[str, np.ndarray]:
        """The windows of a shard, mapped from the file: windows x T x K."""
        if number not in self.shards:
            with safe_open(self.folder / _shard(number), framework="pt") as shard:
                self.shards[number] = {
                    name: shard.get_tensor(name).unflatten(0, (-1, self.length)).numpy()
                    for name in shard.keys()  # noqa: SIM118
                }
        return self.shards[number]
