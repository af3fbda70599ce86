"""
Read a corpus and split it by document.

IN   an installed package, local files, or a data set of the hub
OUT  a folder with train.parquet, validation.parquet, test.parquet (columns name, text)
"""

from __future__ import annotations

from pathlib import Path

from datasets import Dataset

from capgap.config import Corpus, CorpusSplit, HubCorpus
from capgap.data.documents import assign_splits, hub_texts, load_documents
from capgap.records.artifacts import publish_folder
from capgap.stages.base import StageParser, out_folder, run_stage


def run(corpus: CorpusSplit, out: Path) -> dict[str, int]:
    """Write the splits; documents by split."""
    documents = load_documents(corpus)
    sizes = [len(text.encode()) for text in documents["text"]]
    shares = {"validation": corpus.validation_share, "test": corpus.test_share}
    separate = corpus.test if isinstance(corpus, HubCorpus) else None
    if separate:
        del shares["test"]
    splits = assign_splits(documents["name"][:], sizes, shares)
    counts = {}
    with publish_folder(out) as folder:
        for split in ("train", *shares):
            rows = [i for i, s in enumerate(splits) if s == split]
            documents.select(rows).to_parquet(folder / f"{split}.parquet")
            counts[split] = len(rows)
        if separate:
            texts = [text for text in hub_texts(separate) if text.strip()]
            names = [f"{separate.dataset}:{i:09d}" for i in range(len(texts))]
            held_out = Dataset.from_dict({"name": names, "text": texts})
            held_out.to_parquet(folder / "test.parquet")
            counts["test"] = len(texts)
    return counts


def main(argv: list[str] | None = None) -> None:
    """Command line of the stage."""
    parser = StageParser("capgap.stages.corpus", __doc__, Corpus)
    parser.add_argument("--out", required=True, type=out_folder, help="folder to write")
    args, corpus = parser.parse(argv)
    counts = run(corpus, args.out)
    print("documents: " + ", ".join(f"{split} {count}" for split, count in counts.items()))


if __name__ == "__main__":
    run_stage(main)
