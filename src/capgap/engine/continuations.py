"""
What a teacher predicts inside one of its entries.

A token of the student may begin inside an entry of the teacher: "un" + "ion" against "union". Before the
entry the teacher gave every entry a probability. Those that the student writes with other tokens than the
text has had since then are ruled out, and so are those that end here, because the text's entry continues. Each of
the others continues with one particular token of the student, so the teacher's probability of the student's next
token is the sum over the entries that go on with it, divided by the sum over all that are left. If the
entries and merges of the student's vocabulary are among the teacher's, this is exact, but for entries in a
row that its tokenizer never writes (arXiv 2412.03719 treats such sums for characters).

The tree of all entries as the student writes them is kept by nodes: the tokens so far. Nodes are numbered
level by level, so those that continue one node are neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

ROOT = 0  # the node at the beginning of an entry
NO_NODE = -1


class Continuations(NamedTuple):
    """The tree of a teacher's entries in the student's tokens."""

    entries: np.ndarray  # (U,) the teacher's entries, sorted by the student's tokens for them
    token: np.ndarray  # of each node: the student's token that leads to it; -1 at the root
    low: np.ndarray  # entries[low:high] begin as the node does
    high: np.ndarray
    first: np.ndarray  # nodes first[n] to first[n + 1] - 1 continue node n
    keys: np.ndarray  # of all nodes but the root: parent x vocab + token, ascending
    vocab: int  # the student's entries
    place: np.ndarray  # of each of the teacher's entries in `entries`, -1 for none

    def step(self, nodes: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """The nodes that these tokens lead to; NO_NODE for a token that continues no entry."""
        wanted = nodes * self.vocab + tokens
        at = np.searchsorted(self.keys, wanted)
        found = np.append(self.keys, -1)[at] == wanted
        return np.where(found, at + 1, NO_NODE)

    def walk(self, begins: np.ndarray, tokens: np.ndarray, within: np.ndarray) -> np.ndarray:
        """The node of every token of a text; NO_NODE if the text is written as no entry is.

        begins: whether an entry of the teacher begins with the token. tokens: those before each.
        within: whether it begins inside the entry in which or with which the token before it begins.
        """
        nodes = np.where(begins, ROOT, NO_NODE)
        at = np.flatnonzero(begins)
        while len(at):
            at = at[at + 1 < len(nodes)] + 1
            at = at[within[at]]
            nodes[at] = self.step(nodes[at - 1], tokens[at])
            at = at[nodes[at] != NO_NODE]
        return nodes


def continuations(paths: Sequence[Sequence[int] | None], vocab: int) -> Continuations:
    """The tree of a teacher whose entry i the student writes as paths[i], None if it cannot.

    vocab: the student's entries.
    """
    order = sorted((tuple(path), entry) for entry, path in enumerate(paths) if path)
    token, low, high, first = [NO_NODE], [0], [len(order)], [1]
    parent, depth = [NO_NODE], [0]
    node = 0
    while node < len(token):  # which grows
        at, after = low[node], depth[node]
        while at < high[node] and len(order[at][0]) == after:
            at += 1
        while at < high[node]:
            follows, start = order[at][0][after], at
            while at < high[node] and order[at][0][after] == follows:
                at += 1
            token.append(follows)
            low.append(start)
            high.append(at)
            parent.append(node)
            depth.append(after + 1)
        first.append(len(token))
        node += 1
    arrays = [np.array(values, np.int64) for values in (token, low, high, first)]
    keys = np.array(parent[1:], np.int64) * vocab + arrays[0][1:]
    entries = np.array([entry for _, entry in order], np.int64)
    place = np.full(len(paths), -1)
    place[entries] = np.arange(len(entries))
    return Continuations(entries, *arrays, keys, vocab, place)
