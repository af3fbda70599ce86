"""
Make a random init of a student size: the shape that pruning gives, with random weights.

The control arm without inherited weights. It differs from a pruned init in nothing but the
weights.

IN   a teacher's model folder (for the shape), tokenizer folder (the teacher's, if not given)
OUT  model folder that AutoModelForCausalLM loads
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from capgap.config import Depth
from capgap.config.counts import format_count
from capgap.config.run_grid import RANDOM
from capgap.data.boundaries import vocabulary_size
from capgap.engine.counting import count_params
from capgap.engine.models import load_model, load_tokenizer, save_model, tokenizer_digest
from capgap.errors import CapgapError
from capgap.pruning.solver import Sizes, Solution, Target, meet
from capgap.pruning.surgery import check_layers_alike, pruned_config, sizes_of
from capgap.records.artifacts import open_folder, publish_folder
from capgap.records.run_records import Lineage
from capgap.stages.base import StageParser, count_argument, out_folder, run_stage, seed_argument


def run(
    settings: Depth,
    like: Path,
    params: int,
    seed: int,
    out: Path,
    *,
    name: str | None = None,
    tokenizer: Path | None = None,
) -> tuple[Sizes, Solution]:
    """Publish a randomly initialised model with the shape of `like` pruned to `params`.

    params: without embeddings. tokenizer: folder; one that is not that of `like` decides the
    vocabulary. The same seed gives the same bits. Returns the sizes of `like` and what the shape keeps
    of them.
    """
    torch.set_num_threads(1)
    tokenizer = open_folder(tokenizer or like)
    if not (tokenizer / "tokenizer.json").is_file():
        raise CapgapError(f"{tokenizer}: no tokenizer.json; name a tokenizer folder (--tokenizer)")
    model = load_model(like, dtype=None)
    words, entries = load_tokenizer(tokenizer), None
    if (like / "tokenizer.json").is_file() and tokenizer_digest(like) != tokenizer_digest(
        tokenizer
    ):
        entries = vocabulary_size(words)
    elif len(words) > model.config.vocab_size:
        raise CapgapError(
            f"{tokenizer}: has {len(words)} entries, {like} has a vocabulary of "
            f"{model.config.vocab_size}; name the tokenizer of that model"
        )
    sizes = sizes_of(model)
    solution = meet(sizes, Target("params", params), settings)
    if solution.layers < sizes.layers:
        check_layers_alike(model)
    config = pruned_config(model, solution.widths, np.arange(solution.layers), entries)
    if entries:
        for ids in (config, model.generation_config):
            ids.bos_token_id, ids.eos_token_id = words.bos_token_id, words.eos_token_id
            ids.pad_token_id = None
    torch.manual_seed(seed)
    student = type(model)(config)
    student.generation_config = model.generation_config
    lineage = Lineage(
        kind="init",
        name=name or format_count(params),
        init=RANDOM,
        seed=seed,
        params=count_params(student),
    )
    assert lineage.params.non_embedding == solution.params_non_embedding, (lineage, solution)
    with publish_folder(out) as temporary:
        save_model(student, temporary, lineage, tokenizer)
    return sizes, solution


def main(argv: list[str] | None = None) -> None:
    """Command line of the stage."""
    parser = StageParser("capgap.stages.random_init", __doc__, Depth)
    parser.add_argument(
        "--tokenizer", nargs="?", type=Path, help="tokenizer folder (default: the one of --like)"
    )
    parser.add_argument(
        "--params",
        required=True,
        type=count_argument,
        help="parameters without embeddings and output head, like 60k",
    )
    parser.add_argument(
        "--like", required=True, type=Path, help="model folder of the teacher that lends the shape"
    )
    parser.add_argument("--name", help="name of the student size (default: --params)")
    parser.add_argument(
        "--seed", type=seed_argument, default=0, help="seed of the weights (default 0)"
    )
    parser.add_argument("--out", required=True, type=out_folder, help="model folder to write")
    args, settings = parser.parse(argv)
    sizes, solution = run(
        settings,
        args.like,
        args.params,
        args.seed,
        args.out,
        name=args.name,
        tokenizer=args.tokenizer,
    )
    print(solution.describe(sizes))


if __name__ == "__main__":
    run_stage(main)
