"""
One step of distillation against its peers: tokens per CPU second, side by side in one run.

    make bench
    .venv/bin/python benchmarks/distill_step.py --out distill_step.json

capgap's loop, TRL's GKDTrainer (on plain packed text, lmbda 0, beta 0: forward KL alone) and a Hugging
Face Trainer whose compute_loss is 0.5 CE + 0.5 forward KL; AdamW, random weights, float32 unless the
name states otherwise. Every one runs in a fresh process on the same text. CPU seconds are between the
starts of consecutive steps, so they hold batches, forward and backward passes, clipping and the
optimizer, and no start-up; the first steps warm up. All are run in turn, in several rounds: speeds
are medians, and a ratio is the median of those of the rounds. Model FLOPs utilisation is the FLOPs
of the step as it is run over CPU seconds, against this machine's own rate in one large matrix
product, by the faster of its libraries. Large tensors lie in huge pages for all; the peers multiply
and attend as PyTorch does by itself, and if they are tuned as capgap does (engine/onednn_matmul.py,
engine/attention.py). Cached targets were made before, once for all students; what that took is not
counted.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median

WARM = 2  # steps
# student, teacher: layers, hidden, heads, heads of keys, neurons
PAIRS = {
    "smollm2": {
        "vocab": 49_152,
        "length": 256,
        "batch": 512,
        "steps": 3,
        "student": (30, 384, 6, 3, 896),
        "teacher": (30, 576, 9, 3, 1536),
    },
    "default": {
        "vocab": 1024,
        "length": 64,
        "batch": 1024,
        "steps": 100,
        "student": (4, 24, 3, 3, 26),
        "teacher": (4, 32, 4, 4, 64),
    },
}


def models(pair: dict):
    """Student and teacher with random weights."""
    from capgap.config.shapes import LlamaShape
    from capgap.engine.models import llama_config, new_model

    made = []
    for name in ("student", "teacher"):
        layers, hidden, heads, kv_heads, neurons = pair[name]
        shape = LlamaShape(
            layers, hidden, heads, kv_heads, hidden // heads, neurons, pair["vocab"], True
        )
        made.append(
            new_model(llama_config(shape, max_positions=2048, bos_id=0, eos_id=0), len(made))
        )
    return made[0], made[1].eval()


def stream(pair: dict):
    """Random tokens."""
    import numpy as np

    count = pair["batch"] * (WARM + pair["steps"] + 4)
    return np.random.default_rng(0).integers(0, pair["vocab"], count).astype(np.uint16)


def write_streams(pair: dict, folder: Path) -> None:
    """The text as `capgap pack` writes it."""
    import numpy as np

    from capgap.records.artifacts import publish_folder
    from capgap.records.paths import SPLITS, TOKENS_RECORD
    from capgap.records.run_records import TokenStreams

    tokens = stream(pair)
    with publish_folder(folder) as temporary:
        for split in SPLITS:
            np.save(temporary / f"{split}.npy", tokens)
        counts = {key: dict.fromkeys(SPLITS, len(tokens)) for key in ("tokens", "bytes")}
        meta = TokenStreams(
            vocab_size=pair["vocab"],
            tokenizer_sha256="of no tokenizer",
            documents=dict.fromkeys(SPLITS, 1),
            **counts,
        )
        (temporary / TOKENS_RECORD).write_text(meta.to_json())


def cached_targets(teacher, settings, folder: Path):
    """What `capgap cache-teacher` keeps of the teacher."""
    from capgap.engine.resuming import RunPaths
    from capgap.engine.teacher_targets import TargetStore
    from capgap.stages import cache_teacher

    teacher.save_pretrained(folder / "teacher")
    place = RunPaths(folder / "targets", folder / "scratch", 60)
    cache_teacher.run(settings.targets_stage(), folder / "teacher", folder / "tokens", place)
    return TargetStore(folder / "targets")


def ours(pair: dict, folder: Path, **settings) -> list[float]:
    """CPU clock at the start of every step of our loop."""
    from capgap.config import Distill
    from capgap.data.token_streams import Streams
    from capgap.engine import training
    from capgap.engine.objectives import Distillation
    from capgap.engine.parallel import ONE_PROCESS
    from capgap.engine.run_plan import plan_run

    student, teacher = models(pair)
    chosen = Distill(
        sequence_length=pair["length"],
        batch_tokens=pair["batch"],
        validations=1,
        validation_tokens=2 * pair["length"],
        **settings,
    )
    write_streams(pair, folder / "tokens")
    if chosen.teacher_targets != "online":
        teacher = cached_targets(teacher, chosen, folder)
    distillation, clock = Distillation(teacher, chosen, pair["vocab"]).on(ONE_PROCESS), []

    def objective(*arguments):
        clock.append(time.process_time())
        return distillation(*arguments)

    training.train(
        student,
        Streams(folder / "tokens"),
        plan_run(chosen, pair["batch"] * (WARM + pair["steps"] + 1)),
        objective,
        scratch=folder,
        checkpoint_seconds=1e9,
        say=lambda line: None,
    )
    return clock


def rows(pair: dict) -> list[dict]:
    """The same text as examples for a Trainer."""
    flat, length = stream(pair), pair["length"]
    return [
        {"input_ids": flat[at : at + length + 1].tolist()}
        for at in range(0, len(flat) - length - 1, length)
    ]


def clocked(clock: list[float]):
    """A callback that reads the CPU clock at the start of every step."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def on_step_begin(self, *_, **__):
            clock.append(time.process_time())

    return Clock()


def trainer_options(pair: dict, folder: Path) -> dict:
    """The settings that both Trainers share."""
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": pair["batch"] // pair["length"],
        "max_steps": WARM + pair["steps"] + 1,
        "learning_rate": 3e-3,
        "weight_decay": 0.1,
        "adam_beta2": 0.95,
        "max_grad_norm": 1.0,
        "lr_scheduler_type": "cosine",
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": False,
        "remove_unused_columns": False,
        "disable_tqdm": True,
    }


def hf_trainer(pair: dict, folder: Path, rounded: bool = False, **options) -> list[float]:
    """A Trainer with a dense CE + KL loss, as recipes have it; rounded: see `gkd`."""
    import torch
    import torch.nn.functional as F
    from transformers import Trainer, TrainingArguments

    student, teacher = models(pair)
    teacher = teacher.bfloat16() if rounded else teacher

    class Distilling(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            ids = inputs["input_ids"]
            logits = model(input_ids=ids[:, :-1]).logits.flatten(0, 1)
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=self.args.bf16):
                teacher_logits = teacher(input_ids=ids[:, :-1]).logits.flatten(0, 1)
            kl = F.kl_div(
                F.log_softmax(logits, -1),
                F.log_softmax(teacher_logits.float(), -1),
                log_target=True,
                reduction="batchmean",
            )
            return 0.5 * F.cross_entropy(logits, ids[:, 1:].flatten()) + 0.5 * kl

    clock: list[float] = []
    Distilling(
        student,
        TrainingArguments(**trainer_options(pair, folder) | options),
        train_dataset=rows(pair),
        data_collator=lambda items: {"input_ids": torch.tensor([i["input_ids"] for i in items])},
        callbacks=[clocked(clock)],
    ).train()
    return clock


def ours_kept(pair: dict, folder: Path) -> list[float]:
    """Our loop with the teacher's targets read from disk."""
    unique = pair["batch"] * (WARM + pair["steps"] + 1)
    return ours(pair, folder, teacher_targets="sampled", unique_tokens=unique)


def tuned(run: Callable[..., list[float]], pair: dict, folder: Path) -> list[float]:
    """A peer whose matmuls and attention are computed as those of capgap."""
    from capgap.engine.onednn_matmul import use_onednn

    with use_onednn():
        return run(pair, folder)


def gkd(pair: dict, folder: Path, bf16: bool = False, rounded: bool = False) -> list[float]:
    """TRL's GKDTrainer on packed text; rounded: with the teacher's weights in bfloat16."""
    import torch
    from datasets import Dataset
    from tokenizers import Tokenizer
    from tokenizers import models as kinds
    from transformers import PreTrainedTokenizerFast
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    student, teacher = models(pair)
    words = {f"w{i}": i for i in range(pair["vocab"])}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(kinds.WordLevel(words, unk_token="w1")),
        eos_token="w0",
        pad_token="w0",
    )

    def collate(items):
        ids = torch.tensor([i["input_ids"] for i in items])[:, : pair["length"] + 1]
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "labels": ids,
            "prompts": ids[:, :1],
            "prompt_attention_mask": torch.ones_like(ids[:, :1]),
        }

    clock: list[float] = []
    options = trainer_options(pair, folder) | {
        "bf16": bf16,
        "lmbda": 0.0,
        "beta": 0.0,
        "dataset_kwargs": {"skip_prepare_dataset": True},
        "max_length": pair["length"] + 1,
    }
    GKDTrainer(
        model=student,
        teacher_model=teacher.bfloat16() if rounded else teacher,
        args=GKDConfig(**options),
        train_dataset=Dataset.from_list(rows(pair)),
        processing_class=tokenizer,
        data_collator=collate,
        callbacks=[clocked(clock)],
    ).train()
    return clock


ROUNDED = {"teacher_precision": "bfloat16"}
TUNED = "float32, tuned"
# name: (what runs it, its precision)
RUNS: dict[str, tuple[Callable[..., list[float]], str]] = {
    "capgap": (ours, "float32"),
    "capgap, compiled": (partial(ours, compile=True), "float32"),
    "capgap, cached targets": (ours_kept, "float32"),
    "TRL GKDTrainer": (gkd, "float32"),
    "HF Trainer, CE + KL": (hf_trainer, "float32"),
    "HF Trainer, compiled": (partial(hf_trainer, torch_compile=True), "float32"),
    "TRL GKDTrainer, tuned": (partial(tuned, gkd), TUNED),
    "HF Trainer, CE + KL, tuned": (partial(tuned, hf_trainer), TUNED),
    "capgap, teacher in bfloat16": (partial(ours, **ROUNDED), "of the teacher"),
    "TRL GKDTrainer, teacher in bfloat16": (partial(gkd, rounded=True), "of the teacher"),
    "HF Trainer, teacher in bfloat16": (partial(hf_trainer, rounded=True), "of the teacher"),
    "capgap, bfloat16": (partial(ours, precision="bfloat16"), "bfloat16"),
    "HF Trainer, bfloat16": (partial(hf_trainer, bf16=True), "bfloat16"),
    "TRL GKDTrainer, bfloat16": (partial(gkd, bf16=True), "bfloat16"),
    "TRL GKDTrainer, bfloat16 and the teacher": (partial(gkd, bf16=True, rounded=True), "bfloat16"),
}


def flops_per_token(pair: dict) -> dict[str, int]:
    """Forward and backward of the student, with and without the teacher's forward; with attention."""
    from capgap.config.shapes import training_flops
    from capgap.engine.counting import forward_flops

    student, teacher = (forward_flops(model, pair["length"]) for model in models(pair))
    return {"online": training_flops(1, student, teacher), "kept": training_flops(1, student, 0)}


def matmul_rate() -> float:
    """FLOPs per CPU second of one large matrix product here."""
    import torch

    from capgap.engine.onednn_matmul import use_onednn

    size, seconds = 2048, []
    a, b = torch.randn(size, size), torch.randn(size, size)
    with use_onednn():
        for _ in range(6):
            start = time.process_time()
            a @ b
            seconds.append(time.process_time() - start)
    return 2 * size**3 / min(seconds)


PARTS = {
    "attention": ("WholeAttention", "scaled_dot_product"),
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::linear", "aten::matmul"),
    "optimizer": ("_fused_adamw", "Optimizer.step", "_foreach", "clip_grad"),
}


def part_of(event) -> str:
    """Which part of a step an event of the profile belongs to: its own or that of a caller."""
    names = []
    while event is not None:
        names.append(event.name)
        event = event.cpu_parent
    in_loss = any("_Fused" in name and "adam" not in name for name in names)
    if in_loss:
        return "loss, products" if "aten::mm" in names[0] or "addmm" in names[0] else "loss, rest"
    for part, words in PARTS.items():
        if any(word in name for word in words for name in names):
            return part
    return "rest"


def profile(pair: dict, folder: Path) -> dict[str, float]:
    """Shares of our step's CPU time."""
    import torch

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        ours({**pair, "steps": min(pair["steps"], 10)}, folder)
    seconds: Counter = Counter()
    for event in seen.events():
        seconds[part_of(event)] += event.self_cpu_time_total
    total = sum(seconds.values())
    return {part: value / total for part, value in seconds.most_common()}


def measure(name: str, pair: dict) -> dict:
    """Run one implementation in this process."""
    with tempfile.TemporaryDirectory() as folder:
        if name == "profile":
            return {"shares": profile(pair, Path(folder))}
        if name == "rate":
            return {"flops_per_cpu_s": matmul_rate(), "flops_per_token": flops_per_token(pair)}
        clock = RUNS[name][0](pair, Path(folder))[WARM:]
    steps = [after - before for before, after in pairwise(clock)]
    assert len(steps) >= pair["steps"], (name, len(steps))
    return {
        "tokens_per_cpu_s": pair["batch"] / median(steps),
        "slowest": pair["batch"] / max(steps),
        "fastest": pair["batch"] / min(steps),
    }


def in_fresh_process(name: str, pair: str) -> dict:
    """The same in a process of its own, on one thread."""
    environment = {
        "OMP_NUM_THREADS": "1",
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
        "THP_MEM_ALLOC_ENABLE": "1",  # as our jobs have it; for the peers as well
        "HF_HUB_OFFLINE": "1",
        **os.environ,
    }
    command = [sys.executable, __file__, "--one", name, "--pairs", pair]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(f"{name}, {pair}: failed\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def table(pair: str, rounds: list[dict[str, dict]]) -> str:
    """Markdown, with the ratios that the comparison is about."""
    rate = median(found["rate"]["flops_per_cpu_s"] for found in rounds)
    flops = rounds[0]["rate"]["flops_per_token"]
    names = [n for n in RUNS if n in rounds[0]]
    speeds = {n: [found[n]["tokens_per_cpu_s"] for found in rounds] for n in names}
    best = {}  # of the peers of a precision or of float32, whichever is faster, in each round
    for precision in dict.fromkeys(RUNS[n][1] for n in names):
        allowed = (precision, "float32")
        peers = [v for n, v in speeds.items() if RUNS[n][1] in allowed and "capgap" not in n]
        best[precision] = [max(values) for values in zip(*peers, strict=True)]
    lines = [
        f"\n{pair}: {flops['online'] / 1e6:,.1f} MFLOP a token, one large matrix product "
        f"{rate / 1e9:.0f} GFLOP per CPU s; {len(rounds)} rounds\n",
        "| implementation | tokens per CPU s | of the best peer | in the rounds | FLOPs utilisation |",
        "|---|---|---|---|---|",
    ]
    for name, values in speeds.items():
        ratios = [v / p for v, p in zip(values, best[RUNS[name][1]], strict=True)]
        used = median(values) * flops["kept" if "kept" in name else "online"] / rate
        lines.append(
            f"| {name} | {median(values):,.0f} | {median(ratios):.2f} "
            f"| {min(ratios):.2f}-{max(ratios):.2f} "
            f"| {f'{used:.0%}' if 'float32' in RUNS[name][1] else '-'} |"
        )
    if TUNED in best and "capgap" in speeds:
        ratios = [v / p for v, p in zip(speeds["capgap"], best[TUNED], strict=True)]
        lines.append(
            f"\ncapgap beside the best peer, tuned or not: {median(ratios):.2f} "
            f"({min(ratios):.2f}-{max(ratios):.2f})"
        )
    needed = 1.5 * median(best["float32"]) * flops["online"] / rate
    lines.append(
        f"\n1.5 times the best peer in float32 with the teacher online: {needed:.0%} of the rate of "
        "one large matrix product"
    )
    if "profile" in rounds[0]:
        shares = rounds[0]["profile"]["shares"].items()
        lines.append("profile of our step: " + ", ".join(f"{k} {v:.0%}" for k, v in shares))
    return "\n".join(lines)


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [*RUNS, "rate", "profile"]
    parser.add_argument("--one", choices=names, help="measure this one here, and print JSON")
    parser.add_argument("--pairs", nargs="+", default=list(PAIRS), choices=list(PAIRS))
    parser.add_argument(
        "--only",
        nargs="+",
        default=[*RUNS, "profile"],
        choices=[*RUNS, "profile"],
        help="with a peer in float32",
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="also write what was found as JSON")
    args = parser.parse_args()
    if not any(RUNS[n][1] == "float32" for n in args.only if n in RUNS and "capgap" not in n):
        parser.error("--only needs a peer in float32")
    if args.one:
        print(json.dumps(measure(args.one, PAIRS[args.pairs[0]])))
        return
    found: dict[str, list[dict]] = {pair: [] for pair in args.pairs}
    for pair in args.pairs:
        for number in range(args.rounds):
            once = [n for n in args.only if n != "profile" or number == 0]
            found[pair].append({name: in_fresh_process(name, pair) for name in [*once, "rate"]})
        if args.out:
            args.out.write_text(json.dumps(found, indent=1) + "\n")
        print(table(pair, found[pair]), flush=True)


if __name__ == "__main__":
    main()
