"""
Turn the splits of a corpus into flat token streams, one memory-mapped array a split.

IN   corpus folder, tokenizer folder
OUT  a folder with train.npy, validation.npy, test.npy and meta.json
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from capgap.data.boundaries import boundaries, vocabulary_size
from capgap.data.documents import text_batches
from capgap.data.token_streams import META, SPLITS
from capgap.engine.models import load_tokenizer, tokenizer_digest
from capgap.records.artifacts import folder_of, open_folder, publish_folder
from capgap.records.run_records import TokenStreams
from capgap.stages.base import StageParser, out_folder, run_stage


def run(corpus: Path, tokenizer_folder: Path, out: Path) -> TokenStreams:
    """Write the streams: documents in order, each as the tokenizer begins and ends a text."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    tokenizer = load_tokenizer(open_folder(tokenizer_folder))
    around, vocab, largest = boundaries(tokenizer, tokenizer_folder), vocabulary_size(tokenizer), 0
    dtype = np.uint16 if vocab <= 2**16 else np.uint32
    counts: dict[str, dict[str, int]] = {"documents": {}, "tokens": {}, "bytes": {}}
    with publish_folder(out) as folder:
        for split in SPLITS:
            pieces, documents, text_bytes = [], 0, 0
            for texts in text_batches(corpus, split):
                encoded = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
                pieces += [
                    np.array([*around.before, *ids, *around.after], dtype) for ids in encoded
                ]
                documents += len(texts)
                text_bytes += sum(len(text.encode()) for text in texts)
            stream = np.concatenate(pieces)
            np.save(folder / f"{split}.npy", stream, allow_pickle=False)
            largest = max(largest, int(stream.max()))
            counts["documents"][split] = documents
            counts["tokens"][split] = len(stream)
            counts["bytes"][split] = text_bytes
        meta = TokenStreams(
            vocab_size=vocab,
            largest_id=largest,
            bos_id=around.bos_id,
            tokenizer_sha256=tokenizer_digest(folder_of(tokenizer_folder)),
            **counts,
        )
        (folder / META).write_text(meta.to_json(), encoding="utf-8")
    return meta


def main(argv: list[str] | None = None) -> None:
    """Command line of the stage."""
    parser = StageParser("capgap.stages.pack", __doc__)
    parser.add_argument("--corpus", required=True, type=Path, help="corpus folder")
    parser.add_argument("--tokenizer", required=True, type=Path, help="tokenizer folder")
    parser.add_argument("--out", required=True, type=out_folder, help="folder to write")
    args, _ = parser.parse(argv)
    meta = run(args.corpus, args.tokenizer, args.out)
    for split in SPLITS:
        print(f"{split}: {meta.documents[split]} documents, {meta.tokens[split]:,} tokens")


if __name__ == "__main__":
    run_stage(main)
