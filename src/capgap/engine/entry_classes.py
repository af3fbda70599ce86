"""
Classes of entries in which two vocabularies can be compared.

At a common boundary both models predict what follows the same text, each in its own entries. The
entry of one that the text goes on with occurs together with some entry of the other, which is a part
of it, its beginning, or the same. An entry and the one that it occurs with most often are put into one
class, and so are all entries that are linked in this way. "The text goes on with an entry of this class" is
then the same event for both models, up to the rare pairs whose classes differ (`split_share`), and the
probability of a class is the sum of those of its entries. With one tokenizer every entry is a class; if
the entries and merges of one vocabulary are among those of the other, every entry of the smaller one
is, and no pair is split.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from capgap.engine.aligned_text import BLOCK, LOOKED_AT, AlignedText
from capgap.errors import CapgapError

NO_CLASS = -1


class EntryClasses(NamedTuple):
    """The class of every entry of two vocabularies."""

    student: np.ndarray  # (V,) int64; NO_CLASS for an entry that never follows a common boundary
    teacher: np.ndarray
    count: int
    taught_share: float  # of the student's tokens that follow a common boundary
    split_share: float  # of these, pairs whose entries are of different classes


def entry_classes(
    text: AlignedText, student: list[bytes | None], teacher: list[bytes | None]
) -> EntryClasses:
    """Classes of the entries of an aligned text, found from its first tokens.

    student, teacher: bytes of the entries, by which those that the text does not have are put in a
    class. Raises CapgapError if there is no common boundary.
    """
    pairs, seen = _pairs(text, len(teacher))
    if not len(pairs):
        raise CapgapError(
            f"{text.names[1]} and {text.names[0]} have no token boundary in common; take a teacher "
            "whose tokenizer is closer to the student's"
        )
    keys, counts = np.unique(pairs, return_counts=True)
    s, t = np.divmod(keys, len(teacher))
    links = [_partners(s, t, counts), _partners(t, s, counts)[::-1]]
    links.append(_of_equal_bytes(student, teacher, np.unique(s), np.unique(t)))
    rows, columns = np.concatenate(links, axis=1)
    size = len(student) + len(teacher)
    graph = coo_matrix((np.ones(len(rows)), (rows, columns + len(student))), (size, size))
    _, component = connected_components(graph, directed=False)
    linked = np.zeros(size, bool)
    linked[rows] = linked[columns + len(student)] = True
    names, classes = np.unique(component[linked], return_inverse=True)
    found = np.full(size, NO_CLASS, np.int64)
    found[linked] = classes
    split = found[s] != found[t + len(student)]
    return EntryClasses(
        found[: len(student)],
        found[len(student) :],
        len(names),
        float(counts.sum() / seen),
        float(counts[split].sum() / counts.sum()),
    )


def _pairs(text: AlignedText, entries: int) -> tuple[np.ndarray, int]:
    """Entries that follow the common boundaries, student x entries + teacher, and tokens looked at."""
    mine, theirs = text.student, text.teacher
    end, found = min(len(mine.tokens), LOOKED_AT), []
    for start in range(0, end, BLOCK):
        stop = min(start + BLOCK, end)
        at = mine.places(start, stop)
        first, last = theirs.at(int(at[0])), theirs.at(int(at[-2]))
        other = theirs.places(first, last + 1)
        real, others = np.flatnonzero(np.diff(at) > 0), np.flatnonzero(np.diff(other) > 0)
        _, i, j = np.intersect1d(at[real], other[others], assume_unique=True, return_indices=True)
        student = np.asarray(mine.tokens[start:stop], np.int64)[real[i]]
        teacher = np.asarray(theirs.tokens[first : last + 1], np.int64)[others[j]]
        found.append(student * entries + teacher)
    return np.concatenate(found), end


def _partners(entries: np.ndarray, partners: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Every entry with the partner that it occurs with most often, the lowest of equals (2 x n)."""
    order = np.lexsort((partners, -counts, entries))
    entries, partners = entries[order], partners[order]
    first = np.concatenate([[True], entries[1:] != entries[:-1]])
    return np.stack([entries[first], partners[first]])


def _of_equal_bytes(
    student: list[bytes | None], teacher: list[bytes | None], seen: np.ndarray, met: np.ndarray
) -> np.ndarray:
    """Entries of the same bytes of which at least one occurs at no common boundary (2 x n)."""
    seen_S, met_T = set(seen.tolist()), set(met.tolist())
    place = {entry: at for at, entry in enumerate(teacher) if entry}
    pairs = [(at, place[entry]) for at, entry in enumerate(student) if entry and entry in place]
    rare = [pair for pair in pairs if pair[0] not in seen_S or pair[1] not in met_T]
    return np.array(rare, np.int64).reshape(-1, 2).T
