"""
Read a corpus and split it by document.

IN   an installed package, local files, or a data set of the hub
OUT  a folder with train.parquet, validation.parquet, test.parquet (columns name, text, or messages
     for conversations) and corpus.json: sizes, shares, what was cut, and duplicates across splits
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow.parquet

from capgap.config import Corpus, CorpusSplit, HubCorpus
from capgap.data import processes as cores
from capgap.data.duplicates import find_duplicates
from capgap.data.sources import BORDERS, border, documents, hub_texts, origin
from capgap.data.splits import Assignment, assign, place
from capgap.data.text_store import MESSAGES, TextWriter
from capgap.errors import CapgapError
from capgap.records.artifacts import publish_folder
from capgap.records.paths import CORPUS_RECORD, SPLITS
from capgap.records.run_records import CorpusRecord
from capgap.stages.base import StageParser, out_folder, run_stage

MISSED = 1.5  # times more or less than a share with which it counts as missed


def run(corpus: CorpusSplit, out: Path, processes: int = 1) -> CorpusRecord:
    """Write the splits; returns their record. The number of processes does not change the result."""
    chat = getattr(corpus, "messages_column", None) is not None
    column = MESSAGES if chat else "text"
    separate = corpus.test if isinstance(corpus, HubCorpus) else None
    asked = {"validation": corpus.validation_share}
    if separate is None:
        asked["test"] = corpus.test_share
    with publish_folder(out) as folder:
        spool = _Spool(folder / "spool.parquet", column)
        spool.fill(documents(corpus))
        assignment = assign(
            np.frombuffer(spool.places, np.uint64),
            np.frombuffer(spool.sizes, np.int64),
            list(asked.values()),
            (lambda *_: None) if chat else spool.cut,
        )
        held = ["train", *asked]
        counts, sizes = _write(spool, assignment, folder, held, column)
        spool.path.unlink()
        if separate:
            texts = ((f"{separate.dataset}:{i:09d}", t) for i, t in enumerate(hub_texts(separate)))
            counts["test"], sizes["test"] = write_texts(folder / "test.parquet", texts)
        if not all(counts.values()):
            raise CapgapError(
                f"corpus: only {len(spool.sizes)} document(s) with text in {origin(corpus)}, so "
                f"{' and '.join(s for s in SPLITS if not counts[s])} would be empty; at least 3 are "
                "needed, one each for training, validation and test, or a long one with paragraphs"
            )
        record = CorpusRecord(
            documents=counts,
            bytes=sizes,
            shares_asked=asked,
            documents_cut=len(assignment.pieces),
            duplicates=find_duplicates(folder, processes),
        )
        (folder / CORPUS_RECORD).write_text(record.to_json(), encoding="utf-8")
    return record


class _Spool:
    """All documents in one file on disk, with the sizes and places in memory that decide splits."""

    def __init__(self, path: Path, column: str):
        self.path, self.column = path, column
        self.sizes, self.places, self.first_rows = array("q"), array("Q"), array("q", [0])

    def fill(self, found: Iterator[tuple[str, str]]) -> None:
        """Write documents."""
        with TextWriter(self.path, self.column) as file:
            for name, text in found:
                size = len(text.encode())
                self.sizes.append(size)
                self.places.append(place(name))
                file.append(name, text, size)
                if not file.rows:
                    self.first_rows.append(len(self.sizes))

    def groups(self) -> Iterator[tuple[int, pyarrow.Table]]:
        """Row groups in order, with the number of their first document."""
        with pyarrow.parquet.ParquetFile(self.path) as file:
            for group in range(file.num_row_groups):
                yield self.first_rows[group], file.read_row_group(group, use_threads=False)

    @lru_cache(maxsize=1)  # noqa: B019 - a document may be asked for twice, one after the other
    def _text(self, document: int) -> bytes:
        group = int(np.searchsorted(self.first_rows, document, side="right")) - 1
        with pyarrow.parquet.ParquetFile(self.path) as file:
            texts = file.read_row_group(group, columns=[self.column], use_threads=False)[0]
        return texts[document - self.first_rows[group]].as_py().encode()

    def cut(self, document: int, start: int, least: int, wanted: int, most: int) -> int | None:
        """Byte at which to cut a document, at the end of a paragraph or else a line; see `border`."""
        return border(self._text(document), start, least, wanted, most, BORDERS[:2])


def _write(
    spool: _Spool, assignment: Assignment, folder: Path, splits: list[str], column: str
) -> tuple[dict[str, int], dict[str, int]]:
    """Write the splits; returns documents and bytes of each."""
    counts, sizes = dict.fromkeys(splits, 0), dict.fromkeys(splits, 0)
    files = {split: TextWriter(folder / f"{split}.parquet", column) for split in splits}

    def append(split: str, name: str, text: str, size: int) -> None:
        files[split].append(name, text, size)
        counts[split] += 1
        sizes[split] += size

    for first, table in spool.groups():
        for i, (name, text) in enumerate(zip(*table.columns, strict=True), first):
            name, text = name.as_py(), text.as_py()
            if i not in assignment.pieces:
                append(splits[assignment.splits[i]], name, text, spool.sizes[i])
                continue
            data = text.encode()
            for number, (start, stop, split) in enumerate(assignment.pieces[i], 1):
                append(splits[split], f"{name}#{number}", data[start:stop].decode(), stop - start)
    for file in files.values():
        file.__exit__(None)
    return counts, sizes


def write_texts(
    path: Path, texts: Iterator[tuple[str, str]], column: str = "text"
) -> tuple[int, int]:
    """Write documents as one split; returns their number and bytes."""
    count = total = 0
    with TextWriter(path, column) as file:
        for name, text in texts:
            if text.strip():
                size = len(text.encode())
                file.append(name, text, size)
                count, total = count + 1, total + size
    return count, total


def notes(record: CorpusRecord) -> list[str]:
    """Warnings about a corpus: shares missed, documents cut, duplicates."""
    found, total = [], sum(record.bytes[s] for s in ("train", *record.shares_asked))
    for split, asked in record.shares_asked.items():
        got = record.bytes[split] / total
        if not asked / MISSED <= got <= asked * MISSED:
            found.append(
                f"warning: {split} holds {got:.2%} of the text instead of {asked:.2%}, because "
                "documents cannot be cut finer; add documents, or change the share"
            )
    if record.documents_cut:
        found.append(
            f"{record.documents_cut} document(s) longer than the share of a split were cut at the "
            "border of a paragraph; their pieces are numbered with #"
        )
    for split, twins in record.duplicates.items():
        if twins.exact or twins.near:
            first = twins.examples[0]
            found.append(
                f"warning: of the {record.documents[split]} document(s) in {split}, {twins.exact} occur "
                f"word for word in another split and {twins.near} nearly so (for example {first[0]}, "
                f"like {first[1]}); the loss on them measures memorisation, so remove all copies but one"
            )
    return found


def main(argv: list[str] | None = None) -> None:
    """Command line of the stage."""
    parser = StageParser("capgap.stages.corpus", __doc__, Corpus)
    parser.add_argument("--out", required=True, type=out_folder, help="folder to write")
    parser.add_processes()
    args, corpus = parser.parse(argv)
    record = run(corpus, args.out, args.processes or cores.available())
    for note in notes(record):
        print(note)
    print("documents: " + ", ".join(f"{split} {n}" for split, n in record.documents.items()))


if __name__ == "__main__":
    run_stage(main)
