"""
One text as the tokens of two tokenizers, aligned by bytes.

A place of the text is a number of bytes from the start of its first document; the token that closes a
document counts as one byte, and other special tokens as none. A token boundary that both streams have
at one place is common. Some tokenizers put a space before every document; if one of the two does, that
byte is not counted.
"""

# B windows, T student tokens of a window, L teacher tokens of the longest one

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from capgap.data.token_streams import Streams, begin
from capgap.engine.continuations import NO_NODE, ROOT, Continuations, continuations
from capgap.engine.entry_bytes import entry_bytes, written_by
from capgap.engine.models import load_tokenizer
from capgap.errors import CapgapError

STEP = 1024  # tokens between places that are kept
BLOCK = 2**20  # tokens that are looked at together
LOOKED_AT = (
    20 * BLOCK
)  # tokens of the student, from the start of the text, that a job looks at first


class ByteStream:
    """A stream of tokens and the places of the text at which they begin.

    tokens: ids. lengths: bytes of every entry, 0 for special tokens. end: id that closes a document.
    """

    def __init__(self, tokens: np.ndarray, lengths: np.ndarray, end: int):
        self.tokens, self.lengths = tokens, lengths.astype(np.int64)
        self.lengths[end] = 1
        self.shortened = np.empty(0, np.int64)  # tokens whose first byte does not count
        anchors, ends, closed, total = [], [], [], 0
        for start in range(0, len(tokens), BLOCK):
            block = np.asarray(tokens[start : start + BLOCK])
            at = np.flatnonzero(block == end)
            places = total + np.cumsum(self.lengths[block]) - self.lengths[block]
            ends.append(start + at)
            closed.append(places[at] + 1)
            anchors.append(places[::STEP])
            total = int(places[-1] + self.lengths[block[-1]])
        self.anchors = np.concatenate(anchors)  # places of tokens 0, STEP, 2 STEP, ...
        self.ends = np.concatenate(ends)  # indices of the tokens that close documents
        self.document_bytes = np.diff(np.concatenate([[0], *closed]))  # with that token's one

    def places(self, start: int, stop: int) -> np.ndarray:
        """Places at which the tokens from `start` to before `stop` begin, and the last of them ends."""
        first = start // STEP
        lengths = self._counted(first * STEP, stop)
        found = np.concatenate([[0], np.cumsum(lengths)]) + self.anchors[first]
        return found[start - first * STEP :]

    def at(self, place: int) -> int:
        """The last token that begins at this place or before it."""
        block = int(np.searchsorted(self.anchors, place, "right")) - 1
        start = block * STEP
        here = self.places(start, min(start + STEP, len(self.tokens)))[:-1]
        return start + int(np.searchsorted(here, place, "right")) - 1

    def shorten(self, documents: np.ndarray) -> None:
        """Do not count the first byte of these documents, given by their numbers."""
        firsts = np.concatenate([[0], self.ends[:-1] + 1])[documents]
        while (bare := self.lengths[self.tokens[firsts]] == 0).any():
            firsts[bare] += 1
        self.shortened = firsts
        self.anchors -= np.searchsorted(firsts, np.arange(len(self.anchors)) * STEP)

    def _counted(self, start: int, stop: int) -> np.ndarray:
        lengths = self.lengths[self.tokens[start:stop]]
        low, high = np.searchsorted(self.shortened, [start, stop])
        lengths[self.shortened[low:high] - start] -= 1
        return lengths


class Window(NamedTuple):
    """What a teacher reads for one window of the student, and where they meet."""

    first: int  # of the teacher's tokens that it reads
    count: int  # of these tokens
    rows: np.ndarray  # (T,) which of these predicts what each token of the student does; -1: none
    nodes: (
        np.ndarray
    )  # (T,) where in the teacher's entry (`Continuations`) it begins; NO_NODE: none


class Windows(NamedTuple):
    """Teacher's tokens of the text of some windows of the student, and where they meet."""

    inputs: torch.Tensor  # B x L, int64, padded at the end
    rows: (
        torch.Tensor
    )  # (B T), the teacher's output, of (B L), for each of the student's; -1 for none
    nodes: torch.Tensor  # (B T), where in the teacher's entry the student's token begins


class AlignedText:
    """The training text in the student's tokens and in the teacher's.

    inside: the teacher's entries in the student's tokens, so that it also teaches inside its entries.
    names: of the two folders of token streams, for messages. positions: tokens that the teacher can
    read at once; None for no limit. Raises CapgapError if the streams are not of one text.
    """

    def __init__(
        self,
        student: ByteStream,
        teacher: ByteStream,
        *,
        inside: Continuations | None = None,
        names: tuple[object, object] = ("student", "teacher"),
        bos_id: int | None = None,
        positions: int | None = None,
    ):
        self.student, self.teacher, self.inside = student, teacher, inside
        self.names, self.bos_id, self.positions = names, bos_id, positions
        self._check_same_text()

    def _check_same_text(self) -> None:
        """Raise CapgapError unless all documents have the same bytes, but for a space before them."""
        mine, theirs = (stream.document_bytes for stream in (self.student, self.teacher))
        what = None
        if len(mine) != len(theirs):
            what = f"{len(theirs):,} documents and {len(mine):,}"
        elif (apart := np.flatnonzero(np.abs(mine - theirs) > 1)).size:
            at = int(apart[0])
            what = f"{theirs[at] - 1:,} bytes and {mine[at] - 1:,} in document {at + 1:,}"
        if what:
            raise CapgapError(
                f"{self.names[1]} and {self.names[0]} do not hold the same text ({what}), or one of the "
                "tokenizers changes it; pack one corpus with both tokenizers (capgap pack), or take a "
                "teacher whose tokenizer keeps all bytes"
            )
        for stream, more in ((self.student, mine > theirs), (self.teacher, theirs > mine)):
            if more.any():
                stream.shorten(np.flatnonzero(more))

    def window(self, start: int, length: int) -> Window:
        """What a teacher reads for the student's window of `length` tokens at `start`.

        The teacher begins with the token that begins at the window's first byte or before it.
        """
        window = self._meet(start, length)
        self._check_positions(window.count, length)
        return window

    def _meet(self, start: int, length: int) -> Window:
        places = self.student.places(start, start + length + 2)
        mine, real = places[: length + 1], np.diff(places)[: length + 1] > 0
        first = self.teacher.at(int(mine[0])) - int(mine[1] == mine[0])
        first = max(first, 0)
        last = max(self.teacher.at(int(mine[-1])), first + 1)
        theirs = self.teacher.places(first, last + 1)
        index = np.searchsorted(theirs[:-1], mine, "right") - 1  # the entry around each token
        begins = theirs[index] == mine
        nodes = np.where(begins, ROOT, NO_NODE)
        if self.inside:
            nodes = self._inside(start, first + index, begins, nodes)
        real &= (np.diff(theirs)[index] > 0) & (index > 0)
        nodes = np.where(real, nodes, NO_NODE)[1:]
        return Window(first, last - first, np.where(nodes == NO_NODE, -1, index[1:] - 1), nodes)

    def _inside(
        self, start: int, around: np.ndarray, begins: np.ndarray, nodes: np.ndarray
    ) -> np.ndarray:
        """The same nodes with those of tokens that begin inside a teacher's entry and are taught there.

        around: the teacher's tokens in which the student's begin, from token `start`. Excluded are
        tokens of an entry of which the first byte is not counted, and those with which the text goes
        on otherwise than the entry, because a token also holds what follows the entry.
        """
        tree, length = self.inside, len(around)
        tokens = np.asarray(self.student.tokens[start : start + length], np.int64)
        within = np.append(False, np.diff(around) == 0) & ~begins
        whole = ~np.isin(around, self.teacher.shortened)
        whole &= ~np.isin(start + np.arange(length), self.student.shortened)
        walked = tree.walk(begins & whole, np.append(NO_NODE, tokens[:-1]), within)
        at = np.flatnonzero(walked > ROOT)
        follows = tree.step(walked[at], tokens[at])
        entry = tree.place[np.asarray(self.teacher.tokens[around[at]], np.int64)]
        same = (tree.low[follows] <= entry) & (entry < tree.high[follows])
        at = at[(follows != NO_NODE) & same]
        nodes[at] = walked[at]
        return nodes

    def check_windows(self, length: int) -> None:
        """Raise CapgapError for windows of the student that the teacher cannot read at once.

        Those of the first LOOKED_AT tokens are checked; `window` refuses any other.
        """
        end = min(len(self.student.tokens), LOOKED_AT)
        for start in range(0, end if self.positions else 0, BLOCK):
            mine = self.student.places(start, min(start + BLOCK + length, end))
            first, last = (self.teacher.at(int(mine[at])) for at in (0, -2))
            index = np.searchsorted(self.teacher.places(first, last + 1)[:-1], mine[:-1], "right")
            if len(index) > length:
                self._check_positions(int((index[length:] - index[:-length]).max()), length)

    def _check_positions(self, count: int, length: int) -> None:
        if self.positions and count > self.positions:
            raise CapgapError(
                f"distill.sequence_length: {length} tokens of the student are up to {count} of the "
                f"teacher, which has {self.positions} positions; lower it"
            )

    def windows(self, starts_B: np.ndarray, length: int) -> Windows:
        """The same for a batch of windows."""
        found = [self.window(int(start), length) for start in starts_B]
        longest = max(window.count for window in found)
        inputs = np.zeros((len(found), longest), np.int64)
        rows = np.full((len(found), length), -1, np.int64)
        for number, (first, count, index, _) in enumerate(found):
            inputs[number, :count] = self.teacher.tokens[first : first + count]
            rows[number] = np.where(index < 0, -1, index + number * longest)
        tokens = begin(torch.from_numpy(inputs), self.bos_id)
        nodes = np.concatenate([window.nodes for window in found])
        return Windows(tokens, torch.from_numpy(rows).reshape(-1), torch.from_numpy(nodes))

    def taught_inside(self) -> float:
        """The share of the student's tokens, of the first of the text, taught inside a teacher's entry."""
        length = min(len(self.student.tokens), BLOCK) - 2
        if self.inside is None or length < 1:
            return 0.0
        return float((self._meet(0, length).nodes > ROOT).mean())


def aligned_text(
    student: Path,
    streams: Streams,
    teacher: Path,
    taught: Streams,
    *,
    rows: tuple[int, int],
    positions: int | None = None,
) -> AlignedText:
    """The training text of two folders of streams, each in the tokens of a model's folder.

    rows: entries of the student and of the teacher for which the heads have a row.
    Raises CapgapError for conversations, for a tokenizer whose pieces do not spell the text, or if the
    streams are not of one text.
    """
    sides, made = [], []
    for folder, packed in ((student, streams), (teacher, taught)):
        if packed.meta.completion_tokens is not None:
            raise CapgapError(
                f"{packed.folder} holds conversations, which each tokenizer writes with a template of "
                "its own; a teacher with another tokenizer teaches text only: pack text, or take a "
                "teacher with the student's tokenizer"
            )
        made.append(load_tokenizer(folder))
        lengths = [len(entry or b"") for entry in entry_bytes(made[-1], folder)]
        sides.append(ByteStream(packed["train"], np.array(lengths), made[-1].eos_token_id))
    vocab, entries = rows[0], entry_bytes(made[1], teacher)[: rows[1]]
    paths = [
        path if path and max(path) < vocab else None
        for path in written_by(made[0], student, entries)
    ]
    return AlignedText(
        *sides,
        inside=continuations(paths, vocab),
        names=(streams.folder, taught.folder),
        bos_id=taught.meta.bos_id,
        positions=positions,
    )
