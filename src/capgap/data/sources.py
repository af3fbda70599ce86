"""
Read documents from files, compressed or not, and from data sets of the hub.

Reading streams one column of a table, or a few MB of a file at a time, and a text longer than
`LONGEST_BYTES` is split into several documents, so memory does not grow with the corpus.
"""

from __future__ import annotations

import codecs
import glob
import io
import json
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from itertools import takewhile
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import pyarrow
import pyarrow.parquet

from capgap.config import FilesText, HubText, PackageText
from capgap.data.packages import files_in_package, package_folder
from capgap.data.places import check_contained, named_place
from capgap.errors import CapgapError, shown

if TYPE_CHECKING:  # the library takes seconds to import, and only data sets of the hub need it
    from datasets import Dataset

TEXT, LINES, TABLE = (".txt", ".text", ".md"), (".jsonl", ".ndjson"), (".parquet",)
PACKED = {".gz": "gzip", ".zst": "zstd"}
READABLE = f"{', '.join((*TEXT, *LINES))} (also compressed: {', '.join(PACKED)}) or {TABLE[0]}"
LONGEST_BYTES = 2**21  # of one document: its tokens take up to 150 bytes each while it is encoded
BLOCK_BYTES = 2**20
BORDERS = (rb"\n[ \t]*\n\s*", rb"\n", rb"\s")  # between paragraphs, lines, words


def documents(corpus: PackageText | FilesText | HubText) -> Iterator[tuple[str, str]]:
    """Name and text of every document with text, by name. A conversation's text is its JSON."""
    match corpus:
        case PackageText():
            root = package_folder(corpus.package)
            files = files_in_package(corpus.package, corpus.pattern)
            if not files:
                raise CapgapError(
                    f"corpus.pattern: {corpus.pattern} matches no file of the package "
                    f"{corpus.package}; its files lie in {root}"
                )
            found = _file_documents(files, root, corpus.pattern, "text")
        case FilesText():
            paths, root = corpus_files(corpus.pattern)
            if not paths:
                holds = "holds no text" if os.path.isdir(corpus.pattern) else "matches no file"
                raise CapgapError(
                    f"corpus.pattern: {corpus.pattern} {holds}; files end in {READABLE}"
                )
            found = _file_documents(
                paths, root, corpus.pattern, corpus.text_column, corpus.messages_column
            )
        case HubText():
            found = ((f"{i:012d}", text) for i, text in enumerate(hub_texts(corpus)))
    chat = getattr(corpus, "messages_column", None) is not None  # conversations are not split
    for name, text in found:
        if text.strip():
            yield from [(name, text)] if chat else _shortened(name, text)


def origin(corpus: PackageText | FilesText | HubText) -> str:
    """A corpus in words, for messages."""
    match corpus:
        case PackageText():
            return f"package {corpus.package}, pattern {corpus.pattern}"
        case FilesText():
            return f"files {corpus.pattern}"
        case HubText():
            return f"data set {corpus.dataset}, split {corpus.split}"


def corpus_files(pattern: str) -> tuple[list[Path], Path]:
    """The files that a pattern names, and the folder that their names count from.

    Names decide the split, which must not depend on the place of the files. A folder stands for the
    readable files in it and below. Raises CapgapError for a link to a missing file, and for links
    that lead out of that folder, see `named_place`.
    """
    if os.path.isdir(pattern):
        root = named_place(pattern, "corpus.pattern")
        paths = [Path(folder) / name for folder, _, names in os.walk(root) for name in names]
        paths = [path for path in paths if _kind(path)[0]]
    else:
        paths = [Path(path) for path in glob.glob(pattern, recursive=True)]
        paths = [path for path in paths if not path.is_dir()]
        parts = Path(pattern).parts[:-1]
        fixed = Path(*takewhile(lambda part: not glob.has_magic(part), parts))
        root = named_place(fixed, "corpus.pattern")
    for path in paths:
        check_contained(path, root, "corpus.pattern")
    broken = [path for path in paths if not path.exists()]
    if broken:
        raise CapgapError(
            f"corpus: {_some(broken)} {'is a link to a file that is' if len(broken) == 1 else 'are links to files that are'} "
            "not there; restore the file, or remove the link"
        )
    return paths, root


def _some(paths: list[Path]) -> str:
    """The first of many paths and their number."""
    listed = ", ".join(map(str, sorted(paths)[:3]))
    return listed + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")


def _kind(path: Path, pattern: str = "") -> tuple[str | None, str | None]:
    """How a file is read, by its ending in any case: (.txt, .jsonl, .parquet or None, compression).

    Another ending that the pattern spells out, like *.py, is plain text.
    """
    *_, first, last = ["", "", *(suffix.lower() for suffix in path.suffixes)]
    packed = PACKED.get(last)
    ending = first if packed else last
    for endings in (TEXT, LINES) if packed else (TEXT, LINES, TABLE):
        if ending in endings:
            return endings[0], packed
    asked = Path(pattern.lower()).suffixes[-2 if packed else -1 :]
    return (TEXT[0] if ending and asked[:1] == [ending] else None), packed


def _file_documents(
    paths: list[Path],
    root: Path,
    pattern: str,
    text_column: str,
    messages_column: str | None = None,
) -> Iterator[tuple[str, str]]:
    odd = [path for path in paths if _kind(path, pattern)[0] is None]
    if odd:
        raise CapgapError(
            f"corpus: {_some(odd)} cannot be read: files end in {READABLE}; narrow the pattern, "
            "or end it with another ending, like *.py, to read such files as plain text"
        )
    named = sorted((path.relative_to(root).as_posix(), path) for path in paths)
    for name, path in named:
        kind, packed = _kind(path, pattern)
        try:
            if kind == TEXT[0]:
                if not messages_column:
                    yield from _text_file(name, path, packed)
                    continue
                raise CapgapError(
                    f"corpus.messages_column: {path} is plain text, which holds no conversations; "
                    "narrow the pattern to .jsonl or .parquet"
                )
            column = messages_column or text_column
            key = "messages_column" if messages_column else "text_column"
            rows = (_json_rows if kind == LINES[0] else _table_rows)(path, packed, column, key)
            for i, value in rows:
                where = f"{path}, row {i + 1}"
                text = (
                    conversation(value, where) if messages_column else _text(value, column, where)
                )
                yield f"{name}:{i:09d}", text
        except UnicodeDecodeError as error:
            raise CapgapError(
                f"corpus: {path} is not UTF-8 text ({error.reason} at byte {error.start}); "
                "convert it, for example with iconv, or leave it out"
            ) from None
        except (EOFError, zlib.error, pyarrow.ArrowException) as error:
            raise _unreadable(path, error) from None
        except OSError as error:
            if error.errno:  # of this machine, like missing permissions
                raise
            raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> CapgapError:
    cause = shown(str(error).strip().splitlines()[0])
    return CapgapError(
        f"corpus: file {path} cannot be read ({cause}); it is damaged or cut short, so fetch it "
        "again, or leave it out"
    )


def _open(path: Path, packed: str | None) -> IO[bytes]:
    if packed is None:
        return path.open("rb")
    return pyarrow.input_stream(str(path), compression=packed)


def _blocks(path: Path, packed: str | None) -> Iterator[str]:
    """The text of a file a MB at a time, without byte order mark, each line ended by a line feed."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    newlines, done = io.IncrementalNewlineDecoder(None, translate=True), 0
    with _open(path, packed) as file:
        while True:
            block = file.read(BLOCK_BYTES)
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                pending = len(error.object) - len(block)
                error.start += done - pending
                raise
            yield newlines.decode(text, final=not block)
            done += len(block)
            if not block:
                return


def _text_file(name: str, path: Path, packed: str | None) -> Iterator[tuple[str, str]]:
    """A file as one document, or as several of at most LONGEST_BYTES."""
    pending, size, number, long = [], 0, 0, False
    for block in _blocks(path, packed):
        pending.append(block)
        size += len(block.encode())
        if size > LONGEST_BYTES:
            long = True
            *whole, rest = _pieces("".join(pending))
            for piece in whole:
                yield f"{name}:{number:09d}", piece
                number += 1
            pending, size = [rest], len(rest.encode())
    yield (f"{name}:{number:09d}" if long else name), "".join(pending)


def _shortened(name: str, text: str) -> Iterator[tuple[str, str]]:
    """A document, or several if it is longer than LONGEST_BYTES."""
    if len(text) <= LONGEST_BYTES // 4 or len(text.encode()) <= LONGEST_BYTES:
        yield name, text
        return
    for number, piece in enumerate(_pieces(text)):
        yield f"{name}:{number:09d}", piece


def _pieces(text: str) -> Iterator[str]:
    """A text cut into pieces of at most LONGEST_BYTES, after a paragraph if there is one to end."""
    data, start = text.encode(), 0
    while len(data) - start > LONGEST_BYTES:
        stop = border(data, start, LONGEST_BYTES // 2, LONGEST_BYTES, LONGEST_BYTES)
        if stop is None:  # not a space in a MB; a character must stay whole
            stop = start + LONGEST_BYTES
            while data[stop] & 0xC0 == 0x80:
                stop -= 1
        yield data[start:stop].decode()
        start = stop
    yield data[start:].decode()


def border(
    data: bytes, start: int, least: int, wanted: int, most: int, kinds: Iterable[bytes] = BORDERS
) -> int | None:
    """Byte at which to cut UTF-8 text after `start`: after a paragraph, else a line, else a word.

    The first kind with a border between `least` and `most` bytes after `start` is used, and its
    border nearest to `wanted`. None if there is no border of any kind.
    """
    for kind in kinds:
        ends = [
            found.end() - start
            for found in re.compile(kind).finditer(data, start + max(0, least - 8), start + most)
        ]
        ends = [end for end in ends if least <= end <= most and start + end < len(data)]
        if ends:
            return start + min(ends, key=lambda end: (abs(end - wanted), end))
    return None


def _json_rows(path: Path, packed: str | None, column: str, key: str) -> Iterator[tuple[int, Any]]:
    """Number and value of one column of JSON lines; other columns may hold anything.

    key: setting that names the column.
    """
    with _open(path, packed) as file:
        for number, line in enumerate(_lines(file)):
            text = line.decode("utf-8-sig" if number == 0 else "utf-8")
            if not text.strip():
                continue
            try:
                row = json.loads(text)
            except (ValueError, RecursionError) as error:
                cause = (
                    error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply"
                )
                raise CapgapError(
                    f"corpus: {path}, line {number + 1} is not valid JSON ({cause}): "
                    f"{shown(text)}; correct the line or leave it out"
                ) from None
            if not isinstance(row, dict):
                raise CapgapError(
                    f"corpus: {path}, line {number + 1} is {shown(text)}, not an object with columns; "
                    'each line is one, like {"text": "..."}'
                )
            if column not in row:
                raise _no_column(f"{path}, line {number + 1}", column, list(row), key)
            yield number, row[column]


def _lines(file: IO[bytes]) -> Iterator[bytes]:
    """Lines of a binary file that may have no readline of its own."""
    rest = b""
    while block := file.read(BLOCK_BYTES):
        *lines, last = block.split(b"\n")
        if lines:
            yield rest + lines[0]
            yield from lines[1:]
            rest = last
        else:
            rest += last
    yield rest


def _table_rows(path: Path, packed: None, column: str, key: str) -> Iterator[tuple[int, Any]]:
    """Number and value of one column of a Parquet file. key: setting that names the column."""
    with pyarrow.parquet.ParquetFile(path) as file:
        names = file.schema_arrow.names
        if column not in names:
            raise _no_column(f"file {path}", column, names, key)
        number = 0
        for batch in file.iter_batches(64, columns=[column], use_threads=False):
            for value in batch[column].to_pylist():
                yield number, value
                number += 1


def _no_column(where: str, column: str, names: list[str], key: str) -> CapgapError:
    return CapgapError(
        f"corpus.{key}: {where} has no column {column!r}, only "
        f"{shown(', '.join(names), 200)}; name one of them"
    )


def _text(value: Any, column: str, where: str) -> str:
    if not isinstance(value, str):
        kind = "nothing (null)" if value is None else f"{type(value).__name__} {shown(value)}"
        raise CapgapError(
            f"corpus.text_column: {where} holds {kind} in column {column!r}, and a text is needed; "
            "name another column or leave the row out"
        )
    return _encodable(value, where)


def _encodable(text: str, where: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise CapgapError(
            f"corpus: {where} holds half of a surrogate pair ({error.object[error.start]!r} at "
            f"character {error.start}), which is no text; correct or leave out the row"
        ) from None
    return text


def conversation(value: Any, where: str) -> str:
    """A conversation as canonical JSON: a list of messages with a role and a content at least."""
    good = (
        isinstance(value, list)
        and value
        and all(
            isinstance(message, dict) and isinstance(message.get("role"), str) for message in value
        )
    )
    if not good:
        raise CapgapError(
            f"corpus.messages_column: {where} holds {shown(value)}, which is no conversation; one is a "
            'list of messages like {"role": "user", "content": "..."}'
        )
    messages = [{k: v for k, v in message.items() if v is not None} for message in value]
    return _encodable(json.dumps(messages, ensure_ascii=False, sort_keys=True), where)


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, compressed or not; CapgapError if it is missing or something else."""
    try:
        return "".join(_blocks(path, _kind(path)[1]))
    except FileNotFoundError:
        raise CapgapError(f"{path}: no such file; check the path") from None
    except UnicodeDecodeError as error:
        raise CapgapError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); "
            "convert it, for example with iconv, or leave it out"
        ) from None


# --- data sets of the hub -------------------------------------------------------------------------


def hub_texts(text: HubText) -> Iterator[str]:
    """Rows of a data set of the hub, or all of them as one text if they are lines of it."""
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
    column = text.messages_column or text.text_column
    if column not in rows.column_names:
        key = "messages_column" if text.messages_column else "text_column"
        raise _no_column(where, column, rows.column_names, key)
    values = (value for batch in rows.select_columns([column]).iter(64) for value in batch[column])
    read = conversation if text.messages_column else lambda v, at: _text(v, column, at)
    texts = (read(value, f"{where}, row {i + 1}") for i, value in enumerate(values))
    return iter(["".join(texts)]) if text.joined else texts


def _hub_files(where: str, dataset: str, name: str | None, revision: str) -> list[str]:
    """Paths of the files that make up one configuration of a data set of the hub."""
    from datasets import load_dataset_builder

    builder = _read(load_dataset_builder, where, dataset, name=name, revision=revision)
    addresses = [file for files in builder.config.data_files.values() for file in files]
    paths = [str(address).partition(f"@{revision}/")[2] for address in addresses]
    if "" in paths:
        raise CapgapError(
            f"corpus: {where} keeps {addresses[paths.index('')]} outside of its repository, so no "
            "commit pins it; download it and use source: files"
        )
    return paths


def _load(where: str, *args, **options) -> Dataset:
    """A data set as the datasets library reads it; CapgapError naming `where` if it cannot."""
    from datasets import disable_progress_bars, load_dataset

    disable_progress_bars()  # a log file is no place for redrawn bars
    return _read(load_dataset, where, *args, **options)


def _read(function: Callable, where: str, *args, **options):
    from datasets import exceptions

    try:
        return function(*args, **options)
    except RuntimeError as error:
        if "scripts are no longer supported" not in str(error):
            raise
        raise CapgapError(
            f"corpus: {where} is a Python script that loads data, which is not run; pin a commit of "
            "its branch refs/convert/parquet, which holds plain files, or download the data and use "
            "source: files"
        ) from None
    except (exceptions.DatasetsError, OSError, ValueError) as error:
        cause = shown(str(error.__cause__ or error).strip().splitlines()[0], 300)
        raise CapgapError(
            f"corpus: {where} cannot be read ({cause}); check that it is whole and, for one of the "
            "hub, that its name is right and the network works"
        ) from None
