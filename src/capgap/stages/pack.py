"""
Turn the splits of a corpus into flat token streams, one memory-mapped array for each split.

IN   corpus folder, tokenizer folder
OUT  a folder with train.npy, validation.npy, test.npy and meta.json; for conversations also
     train.mask.npy and so on, which mark the tokens of completions
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from capgap.data import processes as cores
from capgap.data.boundaries import boundaries
from capgap.data.chat import ChatEncoder
from capgap.data.encoding import Encoder
from capgap.data.text_store import is_chat, text_batches
from capgap.data.token_streams import mask_file
from capgap.engine.models import load_tokenizer, tokenizer_digest
from capgap.records.artifacts import folder_of, open_folder, publish_folder
from capgap.records.paths import SPLITS, TOKENS_RECORD
from capgap.records.run_records import TokenStreams
from capgap.stages.base import StageParser, out_folder, run_stage

HEADER_BYTES = 128  # of a .npy file that holds a flat array


class Packed(NamedTuple):
    """Some documents as tokens."""

    ids: np.ndarray
    documents: int
    text_bytes: int
    mask: np.ndarray | None = None  # of conversations: whether a token belongs to a completion
    completion_bytes: int = 0


class _Packer:
    """Packs batches of documents."""

    def __init__(self, encoder: Encoder, chat: bool):
        self.encoder = encoder
        self.chat = ChatEncoder(encoder) if chat else None

    def __call__(self, batch: tuple[list[str], list[str]]) -> Packed:
        names, texts = batch
        if self.chat:
            ids, masks, sizes, completions = zip(*map(self.chat.encode, *batch), strict=True)
            return Packed(
                np.concatenate(ids), len(names), sum(sizes), np.concatenate(masks), sum(completions)
            )
        ids = np.concatenate(self.encoder.documents(texts))
        return Packed(ids, len(texts), sum(len(text.encode()) for text in texts))


def run(
    corpus: Path,
    tokenizer_folder: Path,
    out: Path,
    processes: int = 1,
    splits: Sequence[str] = SPLITS,
) -> TokenStreams:
    """Write the streams: documents in order, with the tokenizer's ids at their begin and end.

    splits: those of the corpus; of a further text there is one. The result does not depend on the number of processes.
    """
    tokenizer = load_tokenizer(open_folder(tokenizer_folder))
    encoder = Encoder(tokenizer, boundaries(tokenizer, tokenizer_folder))
    largest = 0
    keys = ("documents", "tokens", "bytes", "completion_tokens", "completion_bytes")
    counts: dict[str, dict[str, int]] = {key: {} for key in keys}
    with publish_folder(out) as folder:
        for split in splits:
            counted = dict.fromkeys(counts, 0)
            chat = is_chat(corpus, split)
            with ExitStack() as files:
                stream = files.enter_context(StreamWriter(folder / f"{split}.npy", encoder.dtype))
                mask = None
                if chat:
                    writer = StreamWriter(folder / mask_file(split), np.bool_)
                    mask = files.enter_context(writer)
                batches = text_batches(corpus, split)
                for packed in cores.ordered_map(_Packer(encoder, chat), batches, processes):
                    stream.append(packed.ids)
                    largest = max(largest, int(packed.ids.max(initial=0)))
                    counted["documents"] += packed.documents
                    counted["tokens"] += len(packed.ids)
                    counted["bytes"] += packed.text_bytes
                    if mask is not None:
                        mask.append(packed.mask)
                        counted["completion_tokens"] += int(packed.mask.sum())
                        counted["completion_bytes"] += packed.completion_bytes
            for key, value in counted.items():
                if chat or not key.startswith("completion"):
                    counts[key][split] = value
        meta = TokenStreams(
            vocab_size=encoder.entries,
            largest_id=largest,
            bos_id=encoder.around.bos_id,
            tokenizer_sha256=tokenizer_digest(folder_of(tokenizer_folder)),
            **{key: value for key, value in counts.items() if value},
        )
        (folder / TOKENS_RECORD).write_text(meta.to_json(), encoding="utf-8")
    return meta


class StreamWriter:
    """Writes a flat .npy file piece by piece; the bytes are those of numpy.save."""

    def __init__(self, path: Path, dtype: type[np.integer]):
        self.path, self.dtype, self.length = path, np.dtype(dtype), 0

    def __enter__(self) -> StreamWriter:
        self.file: IO[bytes] = self.path.open("wb")
        self.file.write(b"\0" * HEADER_BYTES)
        return self

    def append(self, values: np.ndarray) -> None:
        """Add values of the stream's type."""
        assert values.dtype == self.dtype, values.dtype
        self.file.write(values.tobytes())
        self.length += len(values)

    def __exit__(self, kind, *error) -> None:
        with self.file:
            if kind is None:
                self.file.seek(0)
                header = np.lib.format.header_data_from_array_1_0(np.empty(0, self.dtype))
                np.lib.format.write_array_header_1_0(self.file, {**header, "shape": (self.length,)})
                assert self.file.tell() == HEADER_BYTES


def main(argv: list[str] | None = None) -> None:
    """Command line of the stage."""
    parser = StageParser("capgap.stages.pack", __doc__)
    parser.add_argument("--corpus", required=True, type=Path, help="corpus folder")
    parser.add_argument("--tokenizer", required=True, type=Path, help="tokenizer folder")
    parser.add_argument("--out", required=True, type=out_folder, help="folder to write")
    parser.add_argument(
        "--splits", nargs="+", choices=SPLITS, default=SPLITS, help="splits to pack (default: all)"
    )
    parser.add_processes()
    args, _ = parser.parse(argv)
    processes = args.processes or cores.available()
    meta = run(args.corpus, args.tokenizer, args.out, processes, args.splits)
    for split in args.splits:
        print(f"{split}: {meta.documents[split]} documents, {meta.tokens[split]:,} tokens")


if __name__ == "__main__":
    run_stage(main)
