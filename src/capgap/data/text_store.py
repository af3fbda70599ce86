"""
Documents on disk: Parquet files with the columns name and text, in row groups of a few MB.

The text of a conversation is its messages as JSON, in a column of that name.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet

from capgap.errors import CapgapError
from capgap.records.artifacts import open_folder

BATCH_BYTES = 1_000_000
GROUP_ROWS, GROUP_BYTES = 1000, 2**24
CHUNKS = {"min_chunk_size": 2**18, "max_chunk_size": 2**20, "norm_level": 0}
MESSAGES = "messages"


class TextWriter:
    """Writes one Parquet file row by row, holding no more than a row group."""

    def __init__(self, path: Path, column: str = "text"):
        self.column, self.rows, self.bytes = column, [], 0
        self.schema = pyarrow.schema([("name", "string"), (column, "string")]).with_metadata(
            {"huggingface": json.dumps(_features(column))}  # as the datasets library writes it
        )
        self.file = pyarrow.parquet.ParquetWriter(
            path, self.schema, use_content_defined_chunking=CHUNKS, write_page_index=True
        )

    def append(self, name: str, text: str, text_bytes: int) -> None:
        """Add a document."""
        self.rows.append((name, text))
        self.bytes += text_bytes
        if len(self.rows) >= GROUP_ROWS or self.bytes >= GROUP_BYTES:
            self.flush()

    def flush(self) -> None:
        """Close the row group."""
        names, texts = zip(*self.rows, strict=True) if self.rows else ((), ())
        table = pyarrow.table({"name": names, self.column: texts}, schema=self.schema)
        self.file.write_table(table)
        self.rows, self.bytes = [], 0

    def __enter__(self) -> TextWriter:
        return self

    def __exit__(self, kind, *error) -> None:
        if kind is None and self.rows:
            self.flush()
        self.file.add_key_value_metadata({"content_defined_chunking": json.dumps(CHUNKS)})
        self.file.close()


def _features(column: str) -> dict:
    value = {"dtype": "string", "_type": "Value"}
    return {"info": {"features": {"name": value, column: value}}}


def is_chat(corpus: Path, split: str) -> bool:
    """Whether the documents of a split are conversations."""
    with _open(open_folder(corpus) / f"{split}.parquet") as file:
        return MESSAGES in file.schema_arrow.names


def text_batches(corpus: Path, split: str) -> Iterator[tuple[list[str], list[str]]]:
    """Names and texts of one split in order, a few at a time: a MB of text, or one document.

    Raises CapgapError if there is no such split.
    """
    names, texts, size = [], [], 0
    with _open(open_folder(corpus) / f"{split}.parquet") as file:
        column = file.schema_arrow.names[1]
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, use_threads=False)
            for name, text in zip(table["name"], table[column], strict=True):
                names.append(name.as_py())
                texts.append(text.as_py())
                size += len(texts[-1])
                if size >= BATCH_BYTES:
                    yield names, texts
                    names, texts, size = [], [], 0
    if names:
        yield names, texts


def split_texts(corpus: Path, split: str) -> Iterator[str]:
    """Texts of one split, one by one; of conversations, the contents of their messages."""
    chat = is_chat(corpus, split)
    for _, texts in text_batches(corpus, split):
        yield from map(spoken, texts) if chat else texts


def spoken(messages: str) -> str:
    """The contents of a conversation's messages as one text."""
    contents = (message.get("content") for message in json.loads(messages))
    return "\n".join(content for content in contents if isinstance(content, str))


def _open(path: Path) -> pyarrow.parquet.ParquetFile:
    try:
        file = pyarrow.parquet.ParquetFile(path)
    except FileNotFoundError:
        raise CapgapError(f"{path}: no such file; name a folder that capgap corpus wrote") from None
    except pyarrow.ArrowInvalid as error:
        raise CapgapError(
            f"{path} is not a split of a corpus ({error}); make the folder with capgap corpus"
        ) from None
    if file.schema_arrow.names[1:] not in (["text"], [MESSAGES]):
        file.close()
        raise CapgapError(
            f"{path} is not a split of a corpus: its columns are {file.schema_arrow.names}, not name "
            "and text; make the folder with capgap corpus"
        )
    return file
