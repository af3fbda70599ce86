"""
How much does the text that pruning was calibrated on move a distilled student?

One teacher of the default study is cut to one student size with several calibration seeds, with and
without refit, and each init is distilled on the same tokens in the same order. The draws
of a row differ in the calibration text alone. Needs the results of the default study
(`make`), of which it reads tokens and the teacher.

    python benchmarks/calibration_draws.py --results results/sotu --out scratch/calibration-draws

About 20 CPU seconds a cell with the defaults. Every finished cell lies in --out as JSON; a second run
continues where the first stopped.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import torch
from scipy import stats

from capgap.config import Depth
from capgap.config.counts import parse_count
from capgap.config.study_file import load_study
from capgap.data.token_streams import Streams, calibration_batch
from capgap.engine.evaluation import mean_loss
from capgap.engine.models import load_model
from capgap.engine.objectives import Distillation
from capgap.engine.run_plan import plan_run
from capgap.engine.training import train
from capgap.pruning.importance import MICRO_BATCH_TOKENS, measure
from capgap.pruning.refit import refit
from capgap.pruning.selection import select
from capgap.pruning.solver import Target, meet
from capgap.pruning.surgery import cut, sizes_of
from capgap.records.artifacts import write_text

REFITS = ("none", "least_squares")


def one_cell(args: argparse.Namespace, study, streams: Streams, draw: int, how: str) -> dict:
    """Losses on the validation split before and after distillation, nats per token."""
    folder, prune = args.results / "replica-1" / "teachers" / args.teacher / "model", study.prune
    inputs, labels = calibration_batch(
        streams["train"],
        sequence_length=prune.sequence_length,
        count=args.calibration_sequences or prune.calibration_sequences,
        seed=draw,
    )
    importance = measure(load_model(folder), inputs, labels, prune.criterion)
    teacher = load_model(folder)
    sizes = sizes_of(teacher)
    solution = meet(sizes, Target("params", args.student), Depth())
    kept = select(importance, solution, Depth())
    student = cut(load_model(folder), kept)
    if how == "least_squares":
        rows = max(1, MICRO_BATCH_TOKENS // prune.sequence_length)
        refit(student, load_model(folder), kept, inputs, rows=rows, folder=args.out)
    loss = partial(
        mean_loss,
        stream=streams["validation"],
        sequence_length=study.evaluate.sequence_length,
        batch_tokens=4096,
        split="validation",
    )
    start = loss(student)
    scratch = args.out / "scratch" / f"{draw}-{how}"
    student.requires_grad_(True)
    train(
        student,
        streams,
        plan_run(study.distill, args.tokens, seed=1),
        Distillation(teacher.requires_grad_(False), study.distill, streams.meta.vocab_size),
        scratch=scratch,
        checkpoint_seconds=math.inf,
        say=lambda line: None,
    )
    shutil.rmtree(scratch, ignore_errors=True)
    return {"draw": draw, "refit": how, "start": start, "end": loss(student)}


def table(cells: list[dict], args: argparse.Namespace) -> str:
    """Markdown: mean and standard deviation over draws, and the ratio of the latter."""
    lines = [
        f"{args.teacher} cut to {args.student:,} parameters, {args.tokens:,} tokens of distillation; "
        "validation loss, nats per token.",
        "",
        "| refit | draws | start: mean | sd | end: mean | sd |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    ends = {}
    for how in REFITS:
        rows = [c for c in cells if c["refit"] == how]
        if len(rows) < 2:
            continue
        start, end = (np.array([c[key] for c in rows]) for key in ("start", "end"))
        ends[how] = end
        lines.append(
            f"| {how} | {len(rows)} | {start.mean():.3f} | {start.std(ddof=1):.3f} "
            f"| {end.mean():.4f} | {end.std(ddof=1):.4f} |"
        )
    if len(ends) == 2:
        plain, refitted = ends["none"], ends["least_squares"]
        ratio = refitted.std(ddof=1) / plain.std(ddof=1)
        low, high = stats.f.ppf([0.025, 0.975], len(refitted) - 1, len(plain) - 1)
        lines += [
            "",
            f"Standard deviation of the end, refitted over plain: {ratio:.2f} "
            f"[{ratio / math.sqrt(high):.2f}, {ratio / math.sqrt(low):.2f}] (95 %, F distribution). "
            f"Mean of the end, refitted less plain: {refitted.mean() - plain.mean():+.4f}.",
        ]
    return "\n".join(lines)


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__.strip(), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, required=True, help="folder of the default study")
    parser.add_argument("--out", type=Path, required=True, help="folder for what it makes")
    parser.add_argument("--teacher", default="t145k")
    parser.add_argument("--student", type=parse_count, default=23_000, help="parameters to keep")
    parser.add_argument("--tokens", type=parse_count, default=300_000, help="of distillation")
    parser.add_argument("--draws", type=int, default=8, help="calibration seeds")
    parser.add_argument("--calibration-sequences", type=int, help="default: as the study")
    args = parser.parse_args()
    torch.set_num_threads(1)
    study = load_study(Path(__file__).parent.parent / "config.yaml")
    streams = Streams(args.results / "tokens")
    sequences = args.calibration_sequences or study.prune.calibration_sequences
    folder = args.out / f"{args.teacher}-{args.student}-{args.tokens}-{sequences}"
    for draw in range(args.draws):
        for how in REFITS:
            path = folder / f"{draw}-{how}.json"
            if not path.is_file():
                cell = one_cell(args, study, streams, draw, how)
                write_text(path, json.dumps(cell) + "\n")
                print(json.dumps(cell), flush=True)
    cells = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    print(table(cells, args))


if __name__ == "__main__":
    main()
