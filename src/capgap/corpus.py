"""
Read a corpus and split it by document.

IN   an installed package, local files, or a data set of the hub
OUT  a folder with train.parquet, validation.parquet, test.parquet (columns name, text)
"""

from __future__ import annotations

from pathlib import Path

from capgap.artifacts import publish_folder
from capgap.config import Corpus, CorpusSplit
from capgap.stage import StageParser, run_stage
from capgap.text import assign_splits, load_documents


def run(corpus: CorpusSplit, out: Path) -> dict[str, int]:
    """Write the splits; documents by split."""
    documents = load_documents(corpus)
    sizes = [len(text.encode()) for text in documents["text"]]
    shares = {"validation": corpus.validation_share, "test": corpus.test_share}
    splits = assign_splits(documents["name"][:], sizes, shares)
    counts = {}
    with publish_folder(out) as folder:
        for split in ("train", *shares):
            rows = [i for i, s in enumerate(splits) if s == split]
            documents.select(rows).to_parquet(folder / f"{split}.parquet")
            counts[split] = len(rows)
    return counts


def main(argv: list[str] | None = None) -> None:
    """Command line of the stage."""
    parser = StageParser("capgap.corpus", __doc__, Corpus)
    parser.add_argument("--out", required=True, type=Path, help="folder to write")
    args, corpus = parser.parse(argv)
    counts = run(corpus, args.out)
    print("documents: " + ", ".join(f"{split} {count}" for split, count in counts.items()))


if __name__ == "__main__":
    run_stage(main)
