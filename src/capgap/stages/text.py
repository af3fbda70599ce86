"""
Read a further text on which models are measured; all of its documents are held out.

IN   an installed package, local files, or a data set of the hub
OUT  a folder with test.parquet (columns name, text, or messages for conversations) and corpus.json
"""

from __future__ import annotations

import re
from pathlib import Path

from capgap.config import FilesText, HeldOutText, HubText, PackageText
from capgap.data.sources import documents, origin
from capgap.data.text_store import MESSAGES
from capgap.errors import CapgapError
from capgap.records.artifacts import publish_folder
from capgap.records.paths import CORPUS_RECORD, TEXT_SPLIT
from capgap.records.run_records import CorpusRecord
from capgap.stages.base import StageParser, out_folder, run_stage
from capgap.stages.corpus import write_texts


def run(source: PackageText | FilesText | HubText, name: str, out: Path) -> CorpusRecord:
    """Write the documents; returns their record.

    name: of the text in evaluate.texts, for messages. Raises CapgapError if there is no text.
    """
    chat = getattr(source, "messages_column", None) is not None
    with publish_folder(out) as folder:
        place = folder / f"{TEXT_SPLIT}.parquet"
        try:
            count, size = write_texts(place, documents(source), MESSAGES if chat else "text")
        except CapgapError as error:  # sources speak of the corpus
            key = re.sub(r"^corpus\b", f"evaluate.texts.{name}", str(error))
            raise CapgapError(key) from None
        if not count:
            raise CapgapError(f"evaluate.texts.{name}: no document with text in {origin(source)}")
        record = CorpusRecord(
            documents={TEXT_SPLIT: count},
            bytes={TEXT_SPLIT: size},
            shares_asked={},
            documents_cut=0,
            duplicates={},
        )
        (folder / CORPUS_RECORD).write_text(record.to_json(), encoding="utf-8")
    return record


def main(argv: list[str] | None = None) -> None:
    """Command line of the stage."""
    parser = StageParser("capgap.stages.text", __doc__, HeldOutText)
    parser.add_argument("--text", required=True, help="name of the text")
    parser.add_argument("--out", required=True, type=out_folder, help="folder to write")
    args, source = parser.parse(argv)
    record = run(source, args.text, args.out)
    print(f"{record.documents[TEXT_SPLIT]} documents, {record.bytes[TEXT_SPLIT]:,} bytes")


if __name__ == "__main__":
    run_stage(main)
