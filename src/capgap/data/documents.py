"""
Documents: read from a package, local files or the hub, and share them out over the splits.

A document is a name and its text. It belongs to exactly one split, decided by a hash of its name,
so that held-out text never shares a document with training text.
"""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Callable, Iterator
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet

from capgap.config import FilesCorpus, HubCorpus, HubText, PackageCorpus
from capgap.data.packages import files_in_package, package_folder
from capgap.data.places import check_contained, named_place
from capgap.errors import CapgapError
from capgap.records.artifacts import open_folder

if TYPE_CHECKING:  # the library takes seconds to import, and most stages only read a split
    from datasets import Dataset

SUFFIXES = (".txt", ".jsonl", ".parquet")
BATCH_CHARACTERS = 1_000_000


def load_documents(corpus: PackageCorpus | FilesCorpus | HubCorpus) -> Dataset:
    """All documents of a corpus: columns `name` and `text`, sorted by name, none empty."""
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()  # a log file is no place for redrawn bars
    match corpus:
        case PackageCorpus():
            root = package_folder(corpus.package)
            files = files_in_package(corpus.package, corpus.pattern)
            documents = _read_files(files, root, "text")
            origin = f"package {corpus.package}, pattern {corpus.pattern}"
        case FilesCorpus():
            paths = [Path(p) for p in sorted(glob.glob(corpus.pattern, recursive=True))]
            root = named_place(_fixed_part(corpus.pattern), "corpus.pattern")
            for path in paths:
                check_contained(path, root, "corpus.pattern")
            documents = _read_files(paths, root, corpus.text_column)
            origin = f"files {corpus.pattern}"
        case HubCorpus():
            documents = [(f"{i:012d}", text) for i, text in enumerate(hub_texts(corpus))]
            origin = f"data set {corpus.dataset}, split {corpus.split}"
    documents = sorted((name, text) for name, text in documents if text.strip())
    if len(documents) < 3:
        raise CapgapError(
            f"corpus: {origin} has {len(documents)} document(s) with text; at least 3 are needed, "
            "one each for training, validation and test; check the pattern, or cut the text into "
            "several files"
        )
    names, texts = zip(*documents, strict=True)
    return Dataset.from_dict({"name": names, "text": texts})


def _fixed_part(pattern: str) -> Path:
    """The folder that all files of a pattern are in. Names count from it: they decide the split,
    which must not depend on where a user keeps the files."""
    return Path(*takewhile(lambda part: not glob.has_magic(part), Path(pattern).parts[:-1]))


def hub_texts(text: HubText) -> list[str]:
    """Rows of a data set of the hub, or all of them as one document where they are lines."""
    from huggingface_hub import is_offline_mode

    from capgap.data.hub import download_files

    where = f"data set {text.dataset}"
    if Path(text.dataset).exists():  # the library would read that folder instead
        raise CapgapError(
            f"corpus.dataset: {text.dataset} is an id of the hub and also a folder here; rename the "
            "folder, or use source: files"
        )
    pinned = {"name": text.name, "revision": text.revision}
    if not is_offline_mode():  # else the library finds what it once read
        download_files(text.dataset, text.revision, ["README.md"])  # names the files
        download_files(text.dataset, text.revision, _hub_files(where, text.dataset, **pinned))
    rows = _load(where, text.dataset, split=text.split, **pinned)
    rows = _column(rows, text.text_column, where)
    return ["".join(rows)] if text.joined else rows


def _hub_files(where: str, dataset: str, name: str | None, revision: str) -> list[str]:
    """Paths of the files that make up one configuration of a data set of the hub."""
    from datasets import load_dataset_builder

    builder = _read(load_dataset_builder, where, dataset, name=name, revision=revision)
    addresses = [file for files in builder.config.data_files.values() for file in files]
    paths = [str(address).partition(f"@{revision}/")[2] for address in addresses]
    if "" in paths:
        raise CapgapError(
            f"corpus: {where} keeps {addresses[paths.index('')]} outside of its repository, where no "
            "commit pins it; download it and use source: files"
        )
    return paths


def _read_files(paths: list[Path], root: Path, text_column: str) -> list[tuple[str, str]]:
    documents = []
    for path in paths:
        name = path.relative_to(root).as_posix()
        if path.suffix == ".txt":
            documents.append((name, read_text(path)))
            continue
        if path.suffix not in SUFFIXES:
            raise CapgapError(
                f"corpus: {path} is none of {', '.join(SUFFIXES)}; narrow the pattern to these"
            )
        kind = "json" if path.suffix == ".jsonl" else "parquet"
        if kind == "json":
            read_text(path)
        data = _load(f"file {path}", kind, data_files=str(path), split="train")
        texts = _column(data, text_column, f"file {path}")
        documents += [(f"{name}:{i:09d}", text) for i, text in enumerate(texts)]
    return documents


def read_text(path: Path) -> str:
    """The text of a UTF-8 file; CapgapError where it is missing or something else."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise CapgapError(f"{path}: no such file; check the path") from None
    except UnicodeDecodeError as error:
        raise CapgapError(
            f"corpus: {path} is not UTF-8 text (byte {error.start}); "
            "convert it, for example with iconv, or leave it out"
        ) from None


def _load(where: str, *args, **options) -> Dataset:
    """A data set as the datasets library reads it; CapgapError naming `where` if it cannot."""
    from datasets import load_dataset

    return _read(load_dataset, where, *args, **options)


def _read(function: Callable, where: str, *args, **options):
    from datasets import exceptions

    try:
        return function(*args, **options)
    except (exceptions.DatasetsError, OSError, ValueError) as error:
        cause = str(error.__cause__ or error).strip().splitlines()[0]
        raise CapgapError(
            f"corpus: {where} cannot be read ({cause}); check that it is whole and, for one of the "
            "hub, that its name is right and the network is there"
        ) from None


def _column(data: Dataset, column: str, where: str) -> list[str]:
    if column not in data.column_names:
        raise CapgapError(
            f"corpus.text_column: {where} has no column {column!r}, "
            f"only {', '.join(data.column_names)}; name one of them"
        )
    texts = data[column][:]
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise CapgapError(
                f"corpus.text_column: {where} holds {text!r} in column {column!r}, row {row + 1}, "
                "where a text is wanted; name another column or leave the row out"
            )
    return texts


def split_texts(corpus: Path, split: str) -> list[str]:
    """Texts of one split of a corpus folder; CapgapError where there is none."""
    return [text for batch in text_batches(corpus, split) for text in batch]


def text_batches(corpus: Path, split: str) -> Iterator[list[str]]:
    """Texts of one split in order, a few at a time: an encoded token takes 150 bytes for a while.

    Not more than a MB of text or one document. Raises CapgapError where there is no such split.
    """
    path, batch, size = open_folder(corpus) / f"{split}.parquet", [], 0
    try:
        for rows in pyarrow.parquet.ParquetFile(path).iter_batches(64, columns=["text"]):
            for text in rows["text"].to_pylist():
                batch.append(text)
                size += len(text)
                if size >= BATCH_CHARACTERS:
                    yield batch
                    batch, size = [], 0
    except FileNotFoundError:
        raise CapgapError(f"{path}: no such file; name a folder that capgap corpus wrote") from None
    except (pyarrow.ArrowInvalid, KeyError) as error:
        raise CapgapError(
            f"{path} is not a split of a corpus ({error}); make the folder with capgap corpus"
        ) from None
    if batch:
        yield batch


def assign_splits(names: list[str], sizes: list[int], shares: dict[str, float]) -> list[str]:
    """Split of every document: held-out splits get whole documents until their share is reached.

    sizes: bytes of each document. shares: share of all bytes by held-out split, filled in order.
    Documents come in the order of a hash of their names, so the choice looks random and adding a
    document moves few others. Every split gets at least one document; the rest is `train`.
    """
    order = sorted(range(len(names)), key=lambda i: hashlib.sha256(names[i].encode()).digest())
    splits = ["train"] * len(names)
    at, total = 0, sum(sizes)
    for filled, (split, share) in enumerate(shares.items()):
        taken, must_leave = 0, len(shares) - filled  # one for each later split, one to train on
        while at < len(order) - must_leave and (taken == 0 or taken < share * total):
            splits[order[at]] = split
            taken += sizes[order[at]]
            at += 1
    return splits
