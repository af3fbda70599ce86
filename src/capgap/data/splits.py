"""
Assign documents to splits by a hash of their names, as whole documents if they fit.

A document that would fill a held-out split beyond `MOST` times its share is cut at the end of a
paragraph, so that shares are met for a corpus of a few long texts, too.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

MOST = 1.5  # largest split, in multiples of its target
ENOUGH = 0.9  # share of the target at which no further document is cut
LEAST = 0.5  # smallest piece, as a share of what the target lacks

Cut = Callable[[int, int, int, int, int], int | None]  # document, start, least, wanted, most


@dataclass
class Assignment:
    """Split of every document, as an index into the names of splits; 0 is the training split."""

    splits: np.ndarray  # int8
    pieces: dict[int, list[tuple[int, int, int]]] = field(default_factory=dict)
    # documents that were cut: (start, stop, split) of their pieces, in bytes, in order


def place(name: str) -> int:
    """A document's position in the order of assignment.

    It is a hash of the name, so that the order is random and adding a document moves few others.
    """
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8])


def assign(places: np.ndarray, sizes: np.ndarray, shares: list[float], cut: Cut) -> Assignment:
    """Assign documents to the training split and the held-out ones.

    places: see `place`. sizes: bytes of each document. shares: of all bytes, for the held-out splits 1, 2, ..., which
    are filled in this order. cut: finds where a document can be cut, in bytes from its start, or
    None. No split is empty unless there are too few documents.
    """
    splits, total = np.zeros(len(sizes), np.int8), int(sizes.sum())
    order = np.argsort(places, kind="stable")
    queue = deque((int(i), 0) for i in order)  # document, and the byte at which its rest starts
    cuts: dict[int, list[tuple[int, int, int]]] = {}
    for split, share in enumerate(shares, 1):
        target, taken = share * total, 0
        later, skipped = len(shares) - split + 1, []  # later splits, and one to train on

        def take(document: int, start: int, stop: int, split: int = split) -> None:
            if start == 0 and stop == sizes[document]:
                splits[document] = split
                return
            pieces = cuts.setdefault(document, [])
            if pieces and pieces[-1][1:] == (start, split):
                start = pieces.pop()[0]
            pieces.append((start, stop, split))

        while queue and taken < target:
            document, start = queue.popleft()
            size, missing = int(sizes[document]) - start, target - taken
            whole = len(queue) + len(skipped) >= later
            if whole and taken + size <= MOST * target:
                take(document, start, start + size)
                taken += size
                continue
            if taken >= ENOUGH * target:
                skipped.append((document, start))
                break
            most = min(int(MOST * target) - taken, size - 1)
            stop = cut(document, start, int(LEAST * missing), int(missing), most)
            if stop is None:
                skipped.append((document, start))
                continue
            take(document, start, stop)
            taken += stop - start
            queue.append((document, stop))  # last of all, should nothing else be left
        queue.extendleft(reversed(skipped))
        if taken == 0 and len(queue) > later:
            document, start = queue.popleft()
            take(document, start, int(sizes[document]))
    for document, pieces in cuts.items():
        if pieces[-1][1] < sizes[document]:
            pieces.append((pieces[-1][1], int(sizes[document]), 0))
    return Assignment(splits, cuts)
