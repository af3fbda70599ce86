"""
Make the init of a given student: a model that exists already, with the tokenizer of the study.

Its weights stay as they are. If its tokenizer has the same pieces under other ids, or more of them, the
rows of the vocabulary are put in the study's order (pruning/vocabulary_mapping.py); one that cuts text
otherwise is refused.

IN   model folder, tokenizer folder of the study
OUT  model folder that AutoModelForCausalLM loads
"""

from __future__ import annotations

from pathlib import Path

import torch

from capgap.config.counts import format_count
from capgap.config.run_grid import given_init
from capgap.engine.counting import count_params
from capgap.engine.models import load_model, read_lineage, save_model
from capgap.errors import CapgapError
from capgap.pruning.vocabulary_mapping import with_tokenizer
from capgap.records.artifacts import open_folder, publish_folder
from capgap.records.run_records import Lineage
from capgap.stages.base import StageParser, out_folder, run_stage


def run(model_folder: Path, tokenizer: Path, name: str, size: str | None, out: Path) -> Lineage:
    """Publish the init that the given student called `name` is.

    size: its name by parameters without embeddings, which must be those of the model; None takes them.
    Raises CapgapError if it is not, or if the tokenizers make different pieces of a text.
    """
    torch.set_num_threads(1)
    folder, tokenizer = open_folder(model_folder), open_folder(tokenizer)
    model = load_model(folder)
    seed = read_lineage(folder, model).seed
    model = with_tokenizer(model, folder, tokenizer)
    params = count_params(model)
    own = format_count(params.non_embedding)
    if size not in (None, own):
        raise CapgapError(
            f"{model_folder}: this student has {params.non_embedding:,} parameters without embeddings, the "
            f"study counts on {size}; correct params_non_embedding of students.{name}"
        )
    lineage = Lineage(kind="init", name=own, init=given_init(name), seed=seed, params=params)
    with publish_folder(out) as temporary:
        save_model(model, temporary, lineage, tokenizer)
    return lineage


def main(argv: list[str] | None = None) -> None:
    """Command line of the stage."""
    parser = StageParser("capgap.stages.given", __doc__)
    parser.add_argument("--model", required=True, type=Path, help="folder of the given student")
    parser.add_argument(
        "--tokenizer", required=True, type=Path, help="tokenizer folder of the study"
    )
    parser.add_argument("--name", required=True, help="name of the given student")
    parser.add_argument("--size", help="its size as the study names it (default: its parameters)")
    parser.add_argument("--out", required=True, type=out_folder, help="model folder to write")
    args, _ = parser.parse(argv)
    params = run(args.model, args.tokenizer, args.name, args.size, args.out).params
    print(f"{params.non_embedding:,} parameters without embeddings, {params.total:,} with them")


if __name__ == "__main__":
    run_stage(main)
