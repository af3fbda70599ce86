"""
Token streams on disk and the batches cut from them.

A stream is one flat array of token ids, memory-mapped: documents one after another, each closed
by the end-of-text token. Training sees windows of it in an order that is a function of the seed
and the step alone, so a resumed run sees the same data as an uninterrupted one.

If `unique_tokens` is set, windows lie at fixed places that are the same for every seed, so that a
teacher's targets on them can be cached.
"""

# B sequences, T tokens, N windows of an epoch

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from capgap.errors import CapgapError
from capgap.records.artifacts import open_folder
from capgap.records.checksums import read_manifest
from capgap.records.paths import MANIFEST, TOKENS_RECORD
from capgap.records.reading import digest
from capgap.records.run_records import TokenStreams

IGNORED = -100  # label of a token that does not count in a loss, as in transformers


def mask_file(split: str) -> str:
    """Name of the file beside a stream that holds which of its tokens belong to completions."""
    return f"{split}.mask.npy"


class Streams:
    """The token streams of a corpus: `streams["train"]` is a read-only array of token ids."""

    def __init__(self, path: str | Path):
        self.folder = open_folder(path)
        self.meta = TokenStreams.read(self.folder / TOKENS_RECORD)

    def __getitem__(self, split: str) -> np.ndarray:
        return self._load(self.folder / f"{split}.npy")

    def mask(self, split: str, loss_on: str) -> np.ndarray | None:
        """Which tokens of a split count in a loss on `completions`; None for a loss on `all`.

        Raises CapgapError for streams of text, which have no completions.
        """
        if loss_on == "all":
            return None
        if self.meta.completion_tokens is None:
            raise CapgapError(
                f"loss_on is completions, but {self.folder} holds text without completions; pack "
                "conversations (corpus.messages_column), or set loss_on to all"
            )
        return self._load(self.folder / mask_file(split))

    def _load(self, path: Path) -> np.ndarray:
        try:
            return np.load(path, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError:
            raise CapgapError(f"{path}: no such file; make the folder with capgap pack") from None
        except (ValueError, EOFError) as error:
            cause = "not an array of numbers" if "pickle" in str(error) else error
            raise CapgapError(f"{path} is damaged ({cause}); make it again: capgap pack") from None

    def digest(self, split: str) -> str:
        """SHA-256 of a stream's file, 64 hexadecimal digits, from the manifest."""
        name = f"{split}.npy"
        if (self.folder / MANIFEST).is_file():
            return read_manifest(self.folder / MANIFEST)[name].sha256
        return digest(self.folder / name)


class Batch(NamedTuple):
    """Sequences to train on."""

    inputs: torch.Tensor  # B x T, int64
    labels: torch.Tensor  # B x T, the next tokens
    starts: torch.Tensor  # B, places in the stream


def check_long_enough(stream: np.ndarray, sequence_length: int, split: str) -> None:
    """Raise CapgapError if a stream does not hold a single window with its next tokens."""
    if len(stream) < sequence_length + 2:
        raise CapgapError(
            f"the {split} split has {len(stream)} tokens, too few for one sequence of "
            f"{sequence_length}; use a larger corpus or a shorter sequence_length"
        )


def training_batch(
    stream: np.ndarray,
    *,
    sequence_length: int,
    batch_size: int,
    seed: int,
    step: int,
    unique_tokens: int | None = None,
    bos_id: int | None = None,
    mask: np.ndarray | None = None,
) -> Batch:
    """Sequences of one training step. bos_id: see `begin`.

    mask: tokens of the stream that count; labels of others are IGNORED.

    Each epoch visits the windows in a new order. They are those of `lattice`, or, if `unique_tokens` is
    not set, the whole stream, cut at a new offset each epoch.
    """
    if unique_tokens is None:
        windows = max(1, (len(stream) - 1) // sequence_length - 1)
    else:
        windows = len(lattice(len(stream), sequence_length, unique_tokens))
    index = np.arange(step * batch_size, (step + 1) * batch_size)
    starts = np.empty(batch_size, dtype=np.int64)
    for epoch in np.unique(index // windows):
        offset, order = _epoch(seed, int(epoch), windows, sequence_length, len(stream))
        here = index // windows == epoch
        places = order[index[here] % windows]
        if unique_tokens is None:
            starts[here] = offset + places * sequence_length
        else:
            starts[here] = lattice(len(stream), sequence_length, unique_tokens)[places]
    rows = np.stack([stream[start : start + sequence_length + 1] for start in starts])
    tokens = begin(torch.from_numpy(rows.astype(np.int64)), bos_id)
    labels = tokens[:, 1:]
    if mask is not None:
        counts = np.stack([mask[start + 1 : start + sequence_length + 1] for start in starts])
        labels = labels.where(torch.from_numpy(counts), IGNORED)
    return Batch(tokens[:, :-1], labels, torch.from_numpy(starts))


def begin(tokens_BT: torch.Tensor, bos_id: int | None) -> torch.Tensor:
    """Replace the first token of every window by `bos_id`, in place, unless that is None.

    The first token is never predicted, so the number of predicted tokens stays, and a model that was
    trained with this token before every text finds it there.
    """
    if bos_id is not None:
        tokens_BT[:, 0] = bos_id
    return tokens_BT


@lru_cache(maxsize=2)
def _epoch(
    seed: int, epoch: int, windows: int, sequence_length: int, length: int
) -> tuple[int, np.ndarray]:
    random = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    slack = length - 1 - windows * sequence_length
    return int(random.integers(min(slack, sequence_length) + 1)), random.permutation(windows)


@lru_cache(maxsize=2)
def lattice(length: int, sequence_length: int, unique_tokens: int) -> np.ndarray:
    """Starts, ascending, of `unique_tokens` tokens' worth of windows in a stream of `length` tokens.

    They are spread over the stream at random places that depend only on the two lengths, and more
    tokens add windows to those of fewer. Raises CapgapError if the stream is too short.
    """
    every, count = (length - 1) // sequence_length, unique_tokens // sequence_length
    if not 0 < count <= every:
        raise CapgapError(
            f"unique_tokens: {unique_tokens:,} is not between one sequence of {sequence_length} and "
            f"the {every * sequence_length:,} tokens that the training stream has in whole "
            "sequences; change it"
        )
    order = np.random.Generator(np.random.Philox(key=[0, every])).permutation(every)
    return np.sort(order[:count]) * sequence_length


def calibration_batch(
    stream: np.ndarray,
    *,
    sequence_length: int,
    count: int,
    seed: int,
    bos_id: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`count` sequences for measuring importance: inputs and labels (both B x T, int64)."""
    batch = training_batch(
        stream,
        sequence_length=sequence_length,
        batch_size=count,
        seed=seed,
        step=0,
        bos_id=bos_id,
    )
    return batch.inputs, batch.labels


def evaluation_batches(tokens: int, sequence_length: int, batch_size: int) -> int:
    """How many batches `evaluation_windows` yields of a stream of so many tokens."""
    whole, rest = divmod(tokens - 1, sequence_length)
    return -(-whole // batch_size) + (rest > 0)


def evaluation_windows(
    stream: np.ndarray,
    sequence_length: int,
    batch_size: int,
    bos_id: int | None = None,
    mask: np.ndarray | None = None,
):
    """Yield (inputs, labels) that predict every token of the stream but the first exactly once.

    bos_id: see `begin`. The last batches may be smaller, and the last window shorter. mask: tokens
    that count; labels of others are IGNORED.
    """

    def window(start: int, stop: int, count: int):
        tokens = torch.from_numpy(np.asarray(stream[start:stop], dtype=np.int64))
        labels = tokens[1:]
        if mask is not None:
            labels = labels.where(torch.from_numpy(np.array(mask[start + 1 : stop])), IGNORED)
        inputs = tokens[:-1].clone().reshape(count, -1)  # labels of one window begin the next
        return begin(inputs, bos_id), labels.reshape(count, -1)

    whole = (len(stream) - 1) // sequence_length
    for first in range(0, whole, batch_size):
        count = min(batch_size, whole - first)
        start = first * sequence_length
        yield window(start, start + count * sequence_length + 1, count)
    if len(stream) - whole * sequence_length > 1:
        yield window(whole * sequence_length, len(stream), 1)
