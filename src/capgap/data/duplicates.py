"""
Find documents of one split that also occur in another, as exact copies or near duplicates.

Near duplicates by MinHash (Broder 1997) in its one-permutation form (Li, Owen, Zhang 2012): hashes
of all runs of five words fall into 64 bins, and the smallest of each bin is kept. The probability
that two documents share a bin's value is the Jaccard similarity of their runs of words. Bands of
four bins find candidates (locality-sensitive hashing), and the shared bins decide.
"""

# N documents of a batch, K bins, B bands, W words, S runs of words

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import numpy as np

from capgap.data.processes import ordered_map
from capgap.data.text_store import text_batches
from capgap.records.run_records import Duplicates

RUN_WORDS = 5
BINS, BAND = 64, 4
SIMILAR = 0.8  # Jaccard similarity from which two documents are near duplicates
EMPTY = np.uint32(2**32 - 1)
SHOWN = 5
TRIED = 16  # documents of one band that are compared at once; the others are compared later
HELD_OUT = ("validation", "test")
BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2^64


class Sketch(NamedTuple):
    """The hashes by which documents are compared."""

    exact_N: np.ndarray  # uint64, hash of the text
    bins_NK: np.ndarray  # uint32, EMPTY without a run of words
    bands_NB: np.ndarray  # uint64, 0 for a band of empty bins


def find_duplicates(corpus: Path, processes: int = 1) -> dict[str, Duplicates]:
    """Count the documents of each held-out split with a duplicate in an earlier split, with examples.

    The order of splits is train, validation, test.
    """
    held = {split: list(_sketches(corpus, split, processes)) for split in HELD_OUT}
    tests = {split: _Twins(batches) for split, batches in held.items()}
    for names, sketch in _sketches(corpus, "train", processes):
        for twins in tests.values():
            twins.seek(names, sketch)
    for names, sketch in held["validation"]:
        tests["test"].seek(names, sketch)
    return {split: twins.record() for split, twins in tests.items()}


class _Twins:
    """The documents of a held-out split, and which of them were found in other splits."""

    def __init__(self, batches: list[tuple[list[str], Sketch]]):
        self.names = [name for names, _ in batches for name in names]
        whole = Sketch(*map(np.concatenate, zip(*(s for _, s in batches), strict=True)))
        self.bins_NK = whole.bins_NK
        self.by_text, self.by_band = _Index(whole.exact_N), _Index(whole.bands_NB)
        self.exact: dict[int, str] = {}  # document: the name of its twin
        self.near: dict[int, str] = {}

    def seek(self, names: list[str], other: Sketch) -> None:
        """Record which documents have a duplicate among others."""
        for i, first, last in self.by_text.matches(other.exact_N):
            start = self.by_text.starts[first]
            self.exact |= dict.fromkeys(self.by_text.documents[start:last].tolist(), names[i])
            self.by_text.starts[first] = last  # each is noted once
        for i, first, last in self.by_band.matches(other.bands_NB):
            start = self.by_band.starts[first]
            while start < last and int(self.by_band.documents[start]) in self.near:
                start += 1
            self.by_band.starts[first] = start
            for j in self.by_band.documents[start : min(start + TRIED, last)].tolist():
                if j not in self.near and _similarity(self.bins_NK[j], other.bins_NK[i]) >= SIMILAR:
                    self.near[j] = names[i]

    def record(self) -> Duplicates:
        """The duplicates that were found."""
        near = {j: name for j, name in self.near.items() if j not in self.exact}
        examples = sorted({**near, **self.exact}.items())[:SHOWN]
        return Duplicates(
            exact=len(self.exact),
            near=len(near),
            examples=[(self.names[j], name) for j, name in examples],
        )


class _Index:
    """An index from a value to the documents that have it; about 12 bytes per document and value."""

    def __init__(self, values: np.ndarray):
        documents, flat = _flat(values)
        order = np.argsort(flat, kind="stable")
        self.values, self.documents = flat[order], documents[order].astype(np.int32)
        # the first document of each value that is still to be compared
        self.starts = np.arange(len(flat), dtype=np.int32)

    def matches(self, values: np.ndarray) -> Iterator[tuple[int, int, int]]:
        """Matches of other values: the other's document, and the first and last index here."""
        documents, flat = _flat(values)
        first, last = (np.searchsorted(self.values, flat, side) for side in ("left", "right"))
        for hit in np.flatnonzero(first < last).tolist():
            yield int(documents[hit]), int(first[hit]), int(last[hit])


def _flat(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of document and value as two arrays, without zero values."""
    documents = np.repeat(np.arange(len(values)), values[0].size if len(values) else 1)
    return documents[values.ravel() != 0], values[values != 0]


def _similarity(first_K: np.ndarray, second_K: np.ndarray) -> float:
    """Estimate of the Jaccard similarity of two documents from their bins."""
    filled = (first_K != EMPTY) | (second_K != EMPTY)
    return float((first_K == second_K)[filled].mean()) if filled.any() else 0.0


def _sketches(corpus: Path, split: str, processes: int):
    """Names and sketches of a split, by batches."""
    return ordered_map(_named_sketch, text_batches(corpus, split), processes)


def _named_sketch(batch: tuple[list[str], list[str]]) -> tuple[list[str], Sketch]:
    return batch[0], sketch(batch[1])


def sketch(texts: list[str]) -> Sketch:
    """Sketches of some texts; case, punctuation and spacing only matter for exact copies."""
    exact_N = [int.from_bytes(hashlib.sha256(t.encode()).digest()[:8]) or 1 for t in texts]
    keys_S = _runs_of_words([text.lower().encode() for text in texts])  # document, bin and value
    keys_S.sort()
    first = np.flatnonzero(np.diff(keys_S >> 32, prepend=np.uint64(2**63)))
    bins_NK = np.full((len(texts), BINS), EMPTY, np.uint32)
    bins_NK.reshape(-1)[keys_S[first] >> 32] = keys_S[first].astype(np.uint32)
    groups = bins_NK.reshape(len(texts), BINS // BAND, BAND).astype(np.uint64)
    bands_NB = np.broadcast_to(np.arange(BINS // BAND, dtype=np.uint64), groups.shape[:2])
    for column in range(BAND):
        bands_NB = _mixed(bands_NB ^ groups[..., column])
    bands_NB[(groups == EMPTY).all(2)] = 0
    return Sketch(np.array(exact_N, np.uint64), bins_NK, bands_NB)


def _runs_of_words(texts: list[bytes]) -> np.ndarray:
    """A key for every run of words: document, then six bits that choose a bin, then 32 bits."""
    data = np.frombuffer(b" ".join([b"", *texts, b""]), np.uint8)
    edges = np.diff(_letters()[data].astype(np.int8))  # of words
    starts_W, ends_W = np.flatnonzero(edges == 1) + 1, np.flatnonzero(edges == -1) + 1
    powers, inverses = _powers(1 << (len(data) - 1).bit_length())
    sums = np.cumsum(data * powers[: len(data)], dtype=np.uint64)  # modulo 2^64, as all of this
    words_W = _mixed((sums[ends_W - 1] - sums[starts_W - 1]) * inverses[starts_W])
    text_starts = list(accumulate((len(text) + 1 for text in texts), initial=1))[:-1]
    document_W = np.searchsorted(text_starts, starts_W, side="right").astype(np.uint64) - 1
    last = len(words_W) - RUN_WORDS + 1
    if last < 1:
        return np.empty(0, np.uint64)
    runs_S = np.zeros(last, np.uint64)
    for k in range(RUN_WORDS):
        runs_S = _mixed(runs_S ^ words_W[k : last + k])
    inside = document_W[:last] == document_W[RUN_WORDS - 1 :]
    return (document_W[:last] << 38 | runs_S >> 26)[inside]


@cache
def _letters() -> np.ndarray:
    """Which bytes belong to words: ASCII letters and digits, and all of longer characters."""
    return np.array([byte >= 128 or chr(byte).isalnum() for byte in range(256)])


@cache
def _powers(count: int) -> tuple[np.ndarray, np.ndarray]:
    """BASE to the power of 0, 1, ..., and to that of 0, -1, ..., modulo 2^64."""
    both = []
    for base in (BASE, pow(BASE, -1, 2**64)):
        factors = np.full(count, base, np.uint64)
        factors[0] = 1
        both.append(np.cumprod(factors))
    return both[0], both[1]


def _mixed(values: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64, a hash of 64-bit values."""
    values = (values ^ values >> 30) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ values >> 27) * np.uint64(0x94D049BB133111EB)
    return values ^ values >> 31
