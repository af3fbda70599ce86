"""
What a teacher says about the training text, computed once and kept on disk.

For a token the whole distribution would be V numbers. Kept is one of

  sampled  K tokens drawn from the distribution, each for a mass of 1 / K (random sampling
           distillation, arXiv 2503.16870, with the distribution itself as its proposal)
  top_k    the K most likely tokens with their probabilities, and K more drawn from the others,
           each for 1 / K of what is left

The expected target of both is the teacher's distribution, at its temperature; the cross-entropy
under a target is linear in it, so the expected gradient is the exact one. Draws are systematic: one
uniform number moves K equidistant points over the cumulated probabilities, so a token of mass m
comes floor(Km) or ceil(Km) times.

Windows lie at the fixed places of `lattice`, in ascending order, in shards of safetensors. A signal
belongs to one teacher, one token stream and one temperature, and its record says which.
"""

# B sequences, T tokens, N tokens of a batch, C tokens of a chunk, K kept or drawn, V vocabulary

from __future__ import annotations

import shutil
import time
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from capgap.artifacts import open_folder
from capgap.config import SignalStage
from capgap.engine.losses import PartialSignal
from capgap.engine.models import hidden_and_head
from capgap.engine.streams import lattice
from capgap.errors import CapgapError
from capgap.records import SignalRecord
from capgap.shapes import chunk_tokens

RECORD = "signal.json"
SHARD_BYTES = 2**26


def _id_dtype(vocab: int) -> torch.dtype:
    return torch.uint16 if vocab <= 2**16 else torch.int32


def require_space(settings: SignalStage, vocab: int, out: Path) -> str:
    """What the signal needs and what the disk has, as a sentence; CapgapError if it has less."""
    each = settings.bytes_per_token(vocab)
    need = each * settings.unique_tokens
    folder = next(p for p in out.absolute().parents if p.is_dir())
    free = shutil.disk_usage(folder).free
    said = (
        f"{settings.unique_tokens:,} tokens x {each} bytes = {need / 1e6:,.1f} MB, "
        f"{free / 1e6:,.1f} MB free"
    )
    if need > free:
        raise CapgapError(
            f"{out}: the teacher's signal does not fit on the disk: {said}. Free some space, or "
            "lower distill.unique_tokens or distill.signal_entries, or set distill.teacher_signal "
            "to online"
        )
    return said


@torch.no_grad()
def write_signal(
    folder: Path,
    teacher: torch.nn.Module,
    stream: np.ndarray,
    settings: SignalStage,
    vocab: int,
) -> dict:
    """Fill an empty folder with the shards of a teacher's signal on a training stream.

    vocab: size of the tokenizer; further rows of the teacher's head are no tokens.
    Returns what the record says about them: tokens, windows_per_shard and mean_tail_mass (None
    unless kind is top_k).
    """
    length = settings.sequence_length
    starts = lattice(len(stream), length, settings.unique_tokens)
    per_shard = max(1, SHARD_BYTES // (settings.bytes_per_token(vocab) * length))
    batch = max(1, settings.batch_tokens // length)
    clock, tail = time.monotonic(), 0.0
    for first in range(0, len(starts), per_shard):
        pieces = []
        windows = starts[first : first + per_shard]
        for start in range(0, len(windows), batch):
            part = windows[start : start + batch]
            rows = np.stack([stream[at : at + length] for at in part]).astype(np.int64)
            inputs_BT = torch.from_numpy(rows).to(teacher.device)
            hidden_ND, head_VD = hidden_and_head(
                teacher, inputs_BT, precision=settings.precision, vocab=vocab
            )
            draws = np.concatenate([_uniforms(settings.seed, at, length) for at in part])
            pieces += reduce_to_signal(hidden_ND, head_VD, torch.from_numpy(draws), settings)
        whole = join(pieces)
        tail += (1 - whole["probs"].double().sum(1)).sum().item() if "probs" in whole else 0.0
        save_file(whole, folder / _shard(first // per_shard))
        done = (first + len(windows)) * length
        speed = done / (time.monotonic() - clock)
        print(f"{done:,} of {len(starts) * length:,} tokens, {speed:,.0f} tok/s", flush=True)
    tokens = len(starts) * length
    return {
        "tokens": tokens,
        "windows_per_shard": per_shard,
        "mean_tail_mass": tail / tokens if settings.kind == "top_k" else None,
    }


def _shard(number: int) -> str:
    return f"shard-{number:05d}.safetensors"


def _uniforms(seed: int, start: int, length: int) -> np.ndarray:
    """One number in [0, 1) for each token of the window at `start`, whatever the batch."""
    return np.random.Generator(np.random.Philox(key=[seed, start])).random(length)


def reduce_to_signal(
    hidden_ND: torch.Tensor, head_VD: torch.Tensor, draws_N: torch.Tensor, settings: SignalStage
) -> list[dict[str, torch.Tensor]]:
    """Keep or draw K of V tokens for each of N, as it goes to disk, by chunks.

    draws: one uniform number in [0, 1) a token, float64.
    """
    pieces, chunk = [], chunk_tokens(head_VD.shape[0])
    for start in range(0, hidden_ND.shape[0], chunk):
        part = slice(start, start + chunk)
        probs_CV = torch.softmax((hidden_ND[part] @ head_VD.T).float() / settings.temperature, 1)
        piece = {}
        if settings.kind == "top_k":
            probs_CK, top_CK = probs_CV.topk(settings.entries)
            piece["probs"] = probs_CK.half()
            probs_CV.scatter_(1, top_CK, 0.0)
        ids_CK = draw(probs_CV, draws_N[part].to(probs_CV.device), settings.entries)
        if settings.kind == "top_k":
            ids_CK = torch.cat([top_CK, ids_CK], 1)
        piece["ids"] = ids_CK.to(_id_dtype(head_VD.shape[0]))
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


def partial_signal(kept: dict[str, torch.Tensor]) -> PartialSignal:
    """Targets from what is kept on disk."""
    ids_NK = kept["ids"].to(torch.int64)
    if "probs" not in kept:
        return PartialSignal(ids_NK, torch.full(ids_NK.shape, 1 / ids_NK.shape[1]))
    top_NK = kept["probs"].float()
    rest_N1 = (1 - top_NK.sum(1, keepdim=True)).clamp_(min=0)
    masses_NK = torch.cat([top_NK, (rest_N1 / top_NK.shape[1]).expand_as(top_NK)], 1)
    return PartialSignal(
        ids_NK, masses_NK / masses_NK.sum(1, keepdim=True)
    )  # half precision rounds


class SignalStore:
    """A teacher's signal on disk: `read(starts)` gives the targets of the windows at these places."""

    def __init__(self, path: str | Path):
        self.folder = open_folder(path)
        self.record = SignalRecord.read(self.folder / RECORD)
        settings = self.record.settings
        self.length = settings.sequence_length
        self.starts = lattice(self.record.stream_tokens, self.length, settings.unique_tokens)
        self.shards: dict[int, dict[str, np.ndarray]] = {}

    def check(self, settings: SignalStage, *, weights_sha256: str, stream_sha256: str) -> None:
        """Raise CapgapError where this is not the signal of these settings, teacher and stream."""
        for what, wanted, have in [
            ("settings", settings, self.record.settings),
            ("teacher's weights (SHA-256)", weights_sha256, self.record.weights_sha256),
            ("training stream (SHA-256)", stream_sha256, self.record.stream_sha256),
        ]:
            if wanted != have:
                raise CapgapError(
                    f"{self.folder}: the signal was made for another {what}: {have}, wanted "
                    f"{wanted}; make it again with capgap signal"
                )

    def read(self, starts_B: torch.Tensor) -> PartialSignal:
        """Targets of the windows that start at these places of the stream, (B T) tokens."""
        rows = np.searchsorted(self.starts, starts_B.numpy())
        if not np.array_equal(
            self.starts[np.minimum(rows, len(self.starts) - 1)], starts_B.numpy()
        ):
            raise CapgapError(f"{self.folder}: the signal does not cover the windows of this run")
        numbers, places = np.divmod(rows, self.record.windows_per_shard)
        kept: dict[str, np.ndarray] = {}
        for number in np.unique(numbers):
            here = numbers == number
            for name, windows in self._shard(int(number)).items():
                target = kept.setdefault(
                    name, np.empty((len(rows), *windows.shape[1:]), windows.dtype)
                )
                target[here] = windows[places[here]]
        return partial_signal(
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
