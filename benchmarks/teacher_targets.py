"""
Cached targets of a teacher against the teacher itself: loss of the students, CPU time, disk.

Every run sees the same windows of text in the same order for every kind of targets, so that
differences are of the targets alone. In the folder of a study whose teachers and inits are made:

    python benchmarks/teacher_targets.py --pairs 13k:t41k 20k:t126k --tokens 500k --seeds 1 2 3
    python benchmarks/teacher_targets.py --study configs/smollm2.yaml --pairs 24M:smollm2-135m \
        --tokens 8k --seeds 0 1 2

CPU seconds are those of whole processes, start-up with them: of all runs with one kind of targets,
and of making it once a teacher. Loss is that of the whole validation split, not timed. The interval
is of the mean over seeds of the mean difference over pairs (95 %, t). The kind `rounding` is online
with another chunk of the loss: what rounding alone does to a run; `bfloat16` is online with the
teacher in bfloat16. Rows go to OUT/rows.jsonl as they are made, and a row that is there is not made
again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
from scipy import stats

from capgap.config import Study
from capgap.config.counts import parse_count
from capgap.config.run_grid import pruned_from
from capgap.config.study_file import load_study
from capgap.data.token_streams import Streams
from capgap.engine.evaluation import mean_loss
from capgap.engine.models import load_model
from capgap.records import paths
from capgap.workflow import rule_params

BAR = 0.005  # nats per token
ONLINE = {
    "online": {},
    "rounding": {"loss_chunk_tokens": 100},
    "bfloat16": {"teacher_precision": "bfloat16"},
}  # settings of the kinds that keep nothing


def cpu_seconds(stage: str, settings, *words) -> float:
    """Run a stage in a process of its own; CPU seconds of all its threads."""
    command = [
        sys.executable,
        "-m",
        f"capgap.stages.{stage}",
        "--spec",
        rule_params.spec(stage, settings),
    ]
    process = subprocess.Popen([*command, *map(str, words)], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"capgap {stage} failed: {words}")
    return usage.ru_utime + usage.ru_stime


def measure(study: Study, kinds, pairs, tokens: int, seeds, out: Path):
    """Yield (key, maker of the row) of every targets and every run."""
    streams = Path(paths.TOKENS.format(study=study.study)).parent
    common = study.distill.model_dump() | {"unique_tokens": tokens, "target_entries": None}
    recipes = {
        kind: study.distill.model_validate(
            common
            | {"teacher_targets": "online" if kind in ONLINE else kind}
            | ONLINE.get(kind, {})
        )
        for kind in kinds
    }
    held_out = Streams(streams)["validation"]

    def targets(kind, settings, teacher):
        folder = out / "targets" / kind / teacher
        model = paths.TEACHER_MODEL.format(study=study.study, teacher=teacher)
        cpu_s = cpu_seconds(
            *("targets", settings.targets_stage(), "--teacher", model),
            *("--token-streams", streams, "--out", folder),
        )
        size = sum(path.stat().st_size for path in folder.glob("shard-*"))
        record = json.loads((folder / "targets.json").read_text())
        return {"cpu_s": cpu_s, "bytes_per_token": size / record["tokens"]}

    def run(kind, settings, student, teacher, seed):
        folder = out / "runs" / kind / f"{student}-{teacher}-{seed}"
        names = {"study": study.study, "teacher": teacher, "student": student}
        init = paths.INIT_MODEL.format(**names, init=pruned_from(teacher))
        online = settings.teacher_targets == "online"
        kept = [] if online else ["--targets", out / "targets" / kind / teacher]
        cpu_s = cpu_seconds(
            *(
                "distill",
                settings,
                "--init",
                init,
                "--teacher",
                paths.TEACHER_MODEL.format(**names),
            ),
            *(*kept, "--token-streams", streams, "--tokens", tokens, "--seed", seed),
            *("--scratch", out / "scratch", "--out", folder),
        )
        length = study.evaluate.sequence_length
        loss = mean_loss(
            load_model(folder / "model"),
            held_out,
            sequence_length=length,
            batch_tokens=study.evaluate.batch_tokens,
            split="validation",
        )
        return {"cpu_s": cpu_s, "loss": loss}

    for kind in kinds:
        if (settings := recipes[kind]).teacher_targets != "online":
            for teacher in dict.fromkeys(teacher for _, teacher in pairs):
                yield (
                    (kind, "", teacher, -1),
                    lambda k=kind, s=settings, t=teacher: targets(k, s, t),
                )
    for seed in seeds:
        for student, teacher in pairs:
            for kind in kinds:
                key = (kind, student, teacher, seed)
                yield key, lambda k=key: run(k[0], recipes[k[0]], *k[1:])


def report(rows: pd.DataFrame) -> str:
    """Markdown: cost of each kind, and its difference from online with an interval."""
    lines = [
        "| targets | bytes a token | CPU s, targets | CPU s, runs | share of online | loss | less online |",
        "|---|---|---|---|---|---|---|",
    ]
    runs = rows[rows.seed >= 0]
    losses = runs.pivot(index=["seed", "student", "teacher"], columns="kind", values="loss")
    online = runs[runs.kind == "online"].cpu_s.sum()
    for kind in dict.fromkeys(runs.kind):
        made = rows[(rows.kind == kind) & (rows.seed < 0)]
        taught = runs[runs.kind == kind].cpu_s.sum()
        cells = [kind, "-", "-"]
        if len(made):
            cells[1:] = [f"{made.bytes_per_token.mean():.0f}", f"{made.cpu_s.sum():.0f}"]
        cells += [f"{taught:.0f}", f"{(taught + made.cpu_s.sum()) / online:.2f}"]
        cells += [f"{losses[kind].mean():.4f}", "-"]
        if kind != "online":
            each = (losses[kind] - losses.online).groupby("seed").mean()
            half = stats.t.ppf(0.975, len(each) - 1) * each.sem()
            cells[-1] = f"{each.mean():+.4f} [{each.mean() - half:+.4f}, {each.mean() + half:+.4f}]"
        lines.append("| " + " | ".join(cells) + " |")
    worst = {
        kind: (losses[kind] - losses.online).groupby(["student", "teacher"]).mean()
        for kind in losses.columns
        if kind != "online"
    }
    lines.append("")
    for kind, means in worst.items():
        student, teacher = means.abs().idxmax()
        lines.append(
            f"{kind}: largest mean difference of a pair {means[student, teacher]:+.4f} "
            f"({student} from {teacher}); {(means.abs() <= BAR).sum()} of {len(means)} pairs within {BAR}"
        )
    return "\n".join(lines)


def main() -> None:
    """Make what is missing, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--study", type=Path, default=Path("config.yaml"))
    parser.add_argument("--pairs", nargs="+", required=True, help="student:teacher")
    parser.add_argument("--tokens", required=True)
    parser.add_argument("--seeds", nargs="+", type=int, required=True)
    parser.add_argument("--kinds", nargs="+", default=["online", "top_k", "sampled"])
    parser.add_argument("--out", type=Path, required=True, help="folder for targets and students")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    pairs = [tuple(pair.split(":")) for pair in args.pairs]
    study, log = load_study(args.study), args.out / "rows.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    known = {(r["kind"], r["student"], r["teacher"], r["seed"]) for r in rows}
    work = measure(study, args.kinds, pairs, parse_count(args.tokens), args.seeds, args.out)
    for key, make in work:
        if key not in known:
            rows.append(
                dict(zip(("kind", "student", "teacher", "seed"), key, strict=True)) | make()
            )
            with log.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
            print(f"# {rows[-1]}", file=sys.stderr, flush=True)
    print(report(pd.DataFrame(rows)))


if __name__ == "__main__":
    main()
