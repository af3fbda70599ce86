"""
Cosine against a constant rate with a fall at the end (wsd): loss at each budget, and CPU time.

With cosine every budget is a run of its own; with wsd the budgets of one student share a trunk. Run
in the folder of a study whose teachers and inits are made:

    python benchmarks/schedules.py --pairs 13k:t41k 20k:t64k --budgets 250k 500k 1M --seeds 1 2

Prints a table as markdown: validation loss by budget, mean over seeds, the difference with its
standard error over seeds and pairs, and the CPU seconds of all budgets together.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import pandas as pd

from capgap.config import Distill
from capgap.config.counts import format_count, parse_count
from capgap.config.run_grid import pruned_from
from capgap.config.study_file import load_study
from capgap.engine.resuming import RunPaths
from capgap.records import paths
from capgap.stages import distill


def settings_of(study_file: Path, warmup_tokens: int, decay_share: float) -> dict[str, Distill]:
    """The study's recipe with either schedule; everything else is the same."""
    own = load_study(study_file).distill.model_dump()
    shared = {key: own[key] for key in own if key not in ("schedule", "warmup_tokens")}
    return {
        "cosine": Distill(**shared, schedule="cosine"),
        "wsd": Distill(
            **shared | {"decay_share": decay_share}, schedule="wsd", warmup_tokens=warmup_tokens
        ),
    }


def train(study: str, settings: Distill, student: str, teacher: str, seed: int, budgets: list[int]):
    """Yield (tokens, validation loss in nats per token, CPU seconds), smallest budget first."""
    root = {"study": study, "student": student, "init": pruned_from(teacher), "teacher": teacher}
    init = Path(paths.INIT_MODEL.format(**root))
    model = Path(paths.TEACHER_MODEL.format(**root))
    streams = Path(paths.TOKENS.format(**root))
    trunk = None
    with tempfile.TemporaryDirectory() as folder:
        for tokens in budgets:
            out = Path(folder, str(tokens))
            before = time.process_time()
            record = distill.run(
                settings,
                init,
                model,
                streams,
                tokens=tokens,
                seed=seed,
                run_paths=RunPaths(out, Path(folder, "scratch"), 1e9),
                trunk=trunk,
            )
            seconds = time.process_time() - before
            trunk = out / "trunk" if settings.schedule == "wsd" else None
            yield tokens, record.last_val_loss_nats_per_token, seconds


def main() -> None:
    """Train, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--study", type=Path, default=Path("config.yaml"))
    parser.add_argument("--pairs", nargs="+", default=["13k:t41k", "20k:t64k"])
    parser.add_argument("--budgets", nargs="+", default=["250k", "500k", "1M"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--warmup-tokens", default="25k")
    parser.add_argument("--decay-share", type=float, default=0.2)
    args = parser.parse_args()
    recipes = settings_of(args.study, parse_count(args.warmup_tokens), args.decay_share)
    budgets, study = sorted(map(parse_count, args.budgets)), load_study(args.study).study
    rows = []
    for pair in args.pairs:
        for seed in args.seeds:
            for name, settings in recipes.items():
                for tokens, loss, cpu_s in train(study, settings, *pair.split(":"), seed, budgets):
                    rows.append((pair, seed, name, tokens, loss, cpu_s))
                    print(
                        f"# {pair} seed {seed} {name} {tokens} {loss:.4f} {cpu_s:.1f}", flush=True
                    )
    table = pd.DataFrame(rows, columns=["pair", "seed", "schedule", "tokens", "loss", "cpu_s"])
    print("| student from teacher | tokens | cosine | wsd | wsd - cosine |")
    print("|---|---|---|---|---|")
    wide = table.pivot(index=["pair", "tokens", "seed"], columns="schedule", values="loss")
    difference = wide["wsd"] - wide["cosine"]
    for (pair, tokens), group in wide.groupby(["pair", "tokens"]):
        cosine, wsd = group["cosine"].mean(), group["wsd"].mean()
        student, teacher = pair.split(":")
        print(
            f"| {student} from {teacher} | {format_count(tokens)} | {cosine:.4f} | {wsd:.4f} "
            f"| {wsd - cosine:+.4f} |"
        )
    error = difference.std(ddof=1) / len(difference) ** 0.5
    print(
        f"\nwsd - cosine: {difference.mean():+.4f} +- {error:.4f} nats over {len(difference)} runs"
    )
    cost = table.groupby("schedule")["cpu_s"].sum()
    print(
        f"CPU seconds of all budgets: cosine {cost['cosine']:.0f}, wsd {cost['wsd']:.0f}, "
        f"{1 - cost['wsd'] / cost['cosine']:.0%} saved"
    )


if __name__ == "__main__":
    main()
