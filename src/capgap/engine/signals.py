"""
What a teacher says about the training text, computed once and kept on disk.

For a token the whole distribution would be V numbers. Kept is one of

  top_k    the K most likely tokens with their probabilities, and the mass of all others in sum;
           the student's own sum is held against it. Nothing is known about how the tail is shared
  sampled  K tokens drawn from the distribution, so that the expected gradient is the exact one
           (random sampling distillation, arXiv 2503.16870, with the distribution itself as its
           proposal). Draws are systematic: one uniform number moves K equidistant points over the
           cumulated probabilities, so a token of probability p comes floor(Kp) or ceil(Kp) times

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
from capgap.engine.models import hidden_states, output_head
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
    folder: Path, teacher: torch.nn.Module, stream: np.ndarray, settings: SignalStage
) -> dict:
    """Fill an empty folder with the shards of a teacher's signal on a training stream.

    Returns what the record says about them: tokens, windows_per_shard and mean_tail_mass (None
    unless kind is top_k).
    """
    length, vocab = settings.sequence_length, output_head(teacher).shape[0]
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
            hidden_ND = hidden_states(teacher, torch.from_numpy(rows).to(teacher.device))
            draws = np.concatenate([_uniforms(settings.seed, at, length) for at in part])
            pieces += reduce_to_signal(
                hidden_ND, output_head(teacher), torch.from_numpy(draws), settings
            )
        whole = {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}
        tail += whole["tail"].double().sum().item() if "tail" in whole else 0.0
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

    draws: one uniform number in [0, 1) a token, float64, for kind sampled.
    """
    pieces, chunk = [], chunk_tokens(head_VD.shape[0])
    for start in range(0, hidden_ND.shape[0], chunk):
        part = slice(start, start + chunk)
        probs_CV = torch.softmax((hidden_ND[part] @ head_VD.T).float() / settings.temperature, 1)
        if settings.kind == "sampled":
            ids_CK = draw(probs_CV, draws_N[part].to(probs_CV.device), settings.entries)
            piece = {"ids": ids_CK}
        else:
            probs_CK, ids_CK = probs_CV.topk(settings.entries, sorted=True)
            tail_C1 = probs_CV.scatter_(1, ids_CK, 0.0).sum(1, keepdim=True)
            piece = {"ids": ids_CK, "probs": probs_CK.half(), "tail": tail_C1.half()}
        piece["ids"] = piece["ids"].to(_id_dtype(head_VD.shape[0]))
        pieces.append({name: value.cpu() for name, value in piece.items()})
    return pieces


def draw(probs_CV: torch.Tensor, uniform_C: torch.Tensor, count: int) -> torch.Tensor:
    """Draw `count` tokens from each row of probabilities by systematic sampling (C x count, int64).

    uniform: one number in [0, 1) for each row, float64.
    """
    cumulated_CV = probs_CV.double().cumsum(1)
    steps_K = torch.arange(count, dtype=torch.float64, device=probs_CV.device)
    points_CK = (uniform_C.unsqueeze(1) + steps_K) / count * cumulated_CV[:, -1:]
    return torch.searchsorted(cumulated_CV, points_CK, right=True).clamp_(max=probs_CV.shape[1] - 1)


def partial_signal(pieces: list[dict[str, torch.Tensor]]) -> PartialSignal:
    """Targets from what is kept on disk, the pieces one after another."""
    whole = {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}
    ids_NK = whole["ids"].to(torch.int64)
    if "probs" not in whole:
        probs_NK = torch.full(ids_NK.shape, 1 / ids_NK.shape[1])
        return PartialSignal(ids_NK, probs_NK, torch.empty(len(ids_NK), 0))
    probs_NK, tail_N1 = whole["probs"].float(), whole["tail"].float()
    sum_N1 = probs_NK.sum(1, keepdim=True) + tail_N1  # half precision rounds
    return PartialSignal(ids_NK, probs_NK / sum_N1, tail_N1 / sum_N1)


class SignalStore:
    """A teacher's signal on disk: `read(starts)` gives the targets of the windows at these places."""

    def __init__(self, path: str | Path):
        self.folder = open_folder(path)
        self.record = SignalRecord.read(self.folder / RECORD)
        settings = self.record.settings
        self.length = settings.sequence_length
        self.starts = lattice(self.record.stream_tokens, self.length, settings.unique_tokens)
        self.shards: dict[int, safe_open] = {}

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
        return partial_signal([self._window(int(row)) for row in rows])

    def _window(self, row: int) -> dict[str, torch.Tensor]:
        number, place = divmod(row, self.record.windows_per_shard)
        if number not in self.shards:
            self.shards[number] = safe_open(self.folder / _shard(number), framework="pt")
        shard, part = self.shards[number], slice(place * self.length, (place + 1) * self.length)
        return {name: shard.get_slice(name)[part] for name in shard.keys()}  # noqa: SIM118
