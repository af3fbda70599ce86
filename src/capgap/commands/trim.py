"""
Trim the vocabulary of a model and its tokenizer to what a text uses.

IN   model folder with its tokenizer; a text file, or the training split of a corpus folder
OUT  model folder that AutoModelForCausalLM loads, with the trimmed tokenizer
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from capgap.data.sources import read_text
from capgap.data.text_store import split_texts
from capgap.engine.counting import count_params
from capgap.engine.models import TOKENIZER_FILES, load_model, read_lineage, save_model
from capgap.errors import CapgapError
from capgap.pruning.vocabulary import trim
from capgap.records.artifacts import open_folder, publish_folder
from capgap.records.run_records import ParamGroups
from capgap.stages.base import StageParser, count_argument, out_folder


def run(model_folder: Path, texts: Iterable[str], entries: int | None, out: Path) -> ParamGroups:
    """Publish the model with at most `entries` entries of its vocabulary; None keeps all used."""
    folder = open_folder(model_folder)
    if not (folder / "tokenizer.json").is_file():
        raise CapgapError(f"{folder}: no tokenizer.json, so its vocabulary cannot be trimmed")
    model = load_model(folder, dtype=None)
    lineage = read_lineage(folder, model)
    with publish_folder(out) as target, tempfile.TemporaryDirectory() as words:
        for name in TOKENIZER_FILES:
            if (folder / name).is_file():
                shutil.copyfile(folder / name, Path(words) / name)
        model = trim(model, Path(words), texts, entries)
        params = count_params(model)
        save_model(model, target, lineage.model_copy(update={"params": params}), Path(words))
    return params


def main(argv: list[str] | None = None) -> None:
    """Command line of the stage."""
    parser = StageParser("capgap.commands.trim", __doc__)
    parser.add_argument("model", type=Path, help="model folder")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--text", type=Path, help="UTF-8 text file")
    source.add_argument("--corpus", type=Path, help="corpus folder")
    parser.add_argument(
        "--entries", type=count_argument, help="entries to keep at most (default: all used ones)"
    )
    parser.add_argument("--out", required=True, type=out_folder, help="model folder to write")
    args, _ = parser.parse(argv)
    texts = [read_text(args.text)] if args.text else split_texts(args.corpus, "train")
    params = run(args.model, texts, args.entries, args.out)
    print(f"{params.embedding:,} embedding parameters, {params.total:,} in all")
