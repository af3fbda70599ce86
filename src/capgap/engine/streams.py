"""
Token streams on disk and the batches cut from them.

A stream is one flat array of token ids, memory-mapped: documents one after another, each closed
by the end-of-text token. Training sees windows of it in an order that is a function of the seed
and the step alone, so a resumed run sees the same data as an uninterrupted one.
"""

# B sequences, T tokens, N windows of an epoch

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from capgap.artifacts import open_folder
from capgap.errors import CapgapError
from capgap.records import TokenStreams

SPLITS = ("train", "validation", "test")
META = "meta.json"


class Streams:
    """The token streams of a corpus: `streams["train"]` is a read-only array of token ids."""

    def __init__(self, path: str | Path):
        self.folder = open_folder(path)
        self.meta = TokenStreams.read(self.folder / META)

    def __getitem__(self, split: str) -> np.ndarray:
        path = self.folder / f"{split}.npy"
        try:
            return np.load(path, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError:
            raise CapgapError(f"{path}: no such file; make the folder with capgap pack") from None
        except (ValueError, EOFError) as error:
            raise CapgapError(f"{path} is damaged ({error}); make it again: capgap pack") from None


def check_long_enough(stream: np.ndarray, sequence_length: int, split: str) -> None:
    """Raise CapgapError where a stream does not hold a single window with its next tokens."""
    if len(stream) < sequence_length + 2:
        raise CapgapError(
            f"the {split} split has {len(stream)} tokens, too few for one sequence of "
            f"{sequence_length}; use a larger corpus or a shorter sequence_length"
        )


def training_batch(
    stream: np.ndarray, *, sequence_length: int, batch_size: int, seed: int, step: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and next-token labels (both B x T, int64) of one training step.

    Each epoch cuts the stream into windows at a new offset and visits them in a new order.
    """
    windows = (len(stream) - 1) // sequence_length - 1
    windows = max(windows, 1)
    index = np.arange(step * batch_size, (step + 1) * batch_size)
    starts = np.empty(batch_size, dtype=np.int64)
    for epoch in np.unique(index // windows):
        offset, order = _epoch(seed, int(epoch), windows, sequence_length, len(stream))
        here = index // windows == epoch
        starts[here] = offset + order[index[here] % windows] * sequence_length
    rows = np.stack([stream[start : start + sequence_length + 1] for start in starts])
    tokens = torch.from_numpy(rows.astype(np.int64))
    return tokens[:, :-1], tokens[:, 1:]


@lru_cache(maxsize=2)
def _epoch(
    seed: int, epoch: int, windows: int, sequence_length: int, length: int
) -> tuple[int, np.ndarray]:
    random = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    slack = length - 1 - windows * sequence_length
    return int(random.integers(min(slack, sequence_length) + 1)), random.permutation(windows)


def calibration_batch(stream: np.ndarray, *, sequence_length: int, count: int, seed: int):
    """`count` sequences for measuring importance: inputs and labels (both B x T, int64)."""
    return training_batch(
        stream, sequence_length=sequence_length, batch_size=count, seed=seed, step=0
    )


def evaluation_windows(stream: np.ndarray, sequence_length: int, batch_size: int):
    """Yield (inputs, labels) that predict every token of the stream but the first exactly once.

    The last batches may be smaller, and the last window shorter.
    """
    whole = (len(stream) - 1) // sequence_length
    for first in range(0, whole, batch_size):
        count = min(batch_size, whole - first)
        start = first * sequence_length
        flat = torch.from_numpy(
            np.asarray(stream[start : start + count * sequence_length + 1], dtype=np.int64)
        )
        yield (
            flat[:-1].reshape(count, sequence_length),
            flat[1:].reshape(count, sequence_length),
        )
    rest = np.asarray(stream[whole * sequence_length :], dtype=np.int64)
    if len(rest) > 1:
        flat = torch.from_numpy(rest)
        yield flat[:-1].unsqueeze(0), flat[1:].unsqueeze(0)
