"""
The distillation loss against its peers: CPU seconds and peak memory, side by side in one run.

    make bench
    .venv/bin/python benchmarks/distill_loss.py --out distill_loss.json

Hidden states of student and teacher and both output heads go in, the gradients of the student's
hidden states and head come out; 0.5 CE + 0.5 of the teacher's term, float32. Every implementation
runs in a fresh process. Its first call warms up and is not measured; CPU seconds are the median of
the calls that follow, in which threads count each. Peak memory is that of the second call, above
what the process held before it; large blocks go back to the system when freed
(MALLOC_MMAP_THRESHOLD_), so that nothing hides in the heap. Large tensors of capgap lie in huge pages
and its matmuls use oneDNN if that is faster, as it sets up by itself; peers run as they come, and the
fastest tuned in the same two ways as well. With several rounds figures are medians over them, and a
ratio is the median of those of the rounds. All losses must agree up to the teacher's entropy, and all
gradients outright, or the run fails.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

SHAPES = {"32000": (32_000, 1024), "151936": (151_936, 512)}  # vocabulary, tokens
STUDENT_HIDDEN, TEACHER_HIDDEN = 256, 384
BETA = 0.5  # of Jensen-Shannon


def capgap(objective: str, beta: float | None = None) -> Callable:
    """Ours."""
    from capgap.engine.losses import ModelOutput, mixture_loss

    def loss(hs, ws, ht, wt, labels):
        targets = ModelOutput(ht, wt)
        return mixture_loss(
            hs, ws, labels, targets, objective=objective, beta=beta, scale=1 / len(labels)
        )[0]

    return loss


def capgap_cached(kind: str) -> Callable:
    """Ours with the teacher's targets read from disk, so without the teacher's head."""
    from capgap.config import Distill
    from capgap.engine import teacher_targets
    from capgap.engine.losses import ModelOutput, PartialTargets, mixture_loss

    cache: list[PartialTargets] = []

    def loss(hs, ws, ht, wt, labels):
        import torch

        if not cache:
            settings = Distill(teacher_targets=kind, unique_tokens=len(labels)).targets_stage()
            draws = torch.rand(len(labels), dtype=torch.float64)
            pieces = teacher_targets.reduce_to_targets(ModelOutput(ht, wt), draws, settings)
            cache.append(teacher_targets.partial_targets(teacher_targets.join(pieces)))
        return mixture_loss(hs, ws, labels, cache[0], scale=1 / len(labels))[0]

    return loss


def minima() -> Callable:
    """MiniMA's formula restated: dense cross-entropy against soft targets (arXiv 2311.07052)."""
    import torch.nn.functional as F

    def loss(hs, ws, ht, wt, labels):
        logits, teacher_logits = hs @ ws.T, ht @ wt.T
        soft = -(F.softmax(teacher_logits, -1) * F.log_softmax(logits, -1)).sum(-1).mean()
        return 0.5 * F.cross_entropy(logits, labels) + 0.5 * soft

    return loss


def trl_dense(beta: float) -> Callable:
    """TRL's GKDTrainer, its loss function on dense logits."""
    import torch.nn.functional as F
    from trl.experimental.gkd import GKDTrainer

    def loss(hs, ws, ht, wt, labels):
        logits, teacher_logits = hs @ ws.T, ht @ wt.T
        soft = GKDTrainer.generalized_jsd_loss(
            logits[None], teacher_logits[None], labels[None], beta=beta
        )
        return 0.5 * F.cross_entropy(logits, labels) + 0.5 * soft

    return loss


def trl_chunked(beta: float) -> Callable:
    """TRL's chunked divergence, without a data term: it has none."""
    import torch
    from trl.trainer.distillation_trainer import _chunked_divergence_loss

    def loss(hs, ws, ht, wt, labels):
        mask = torch.ones(1, len(labels), dtype=torch.bool)
        return _chunked_divergence_loss(hs[None], ht[None], ws, wt, mask, beta)[0]

    return loss


def liger(beta: float, chunk: int, compiled: bool) -> Callable:
    """Liger's fused linear distillation loss; its beta is the student's share."""
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    module = LigerFusedLinearJSDLoss(
        weight_hard_loss=0.5,
        weight_soft_loss=0.5,
        beta=beta,
        compiled=compiled,
        chunk_size=chunk,
    )
    return lambda hs, ws, ht, wt, labels: module(hs, ws, ht, wt, labels, None, None)


# name: (maker, objective, whether it is one of ours)
RUNS: dict[str, tuple[Callable[[], Callable], str]] = {
    "capgap soft_ce": (lambda: capgap("soft_ce"), "forward"),
    "capgap forward_kl": (lambda: capgap("forward_kl"), "forward"),
    "MiniMA, dense": (minima, "forward"),
    "TRL GKD, dense": (lambda: trl_dense(0.0), "forward"),
    "TRL chunked, no data term": (lambda: trl_chunked(0.0), "forward"),
    "Liger, chunk 256": (lambda: liger(0.0, 256, False), "forward"),
    "Liger, chunk 128": (lambda: liger(0.0, 128, False), "forward"),
    "Liger, compiled, chunk 256": (lambda: liger(0.0, 256, True), "forward"),
    "Liger, compiled, chunk 128": (lambda: liger(0.0, 128, True), "forward"),
    "Liger, compiled, chunk 256, tuned": (lambda: liger(0.0, 256, True), "forward"),
    "capgap reverse_kl": (lambda: capgap("reverse_kl"), "reverse"),
    "TRL GKD, dense, reverse": (lambda: trl_dense(1.0), "reverse"),
    "capgap jensen_shannon": (lambda: capgap("jensen_shannon", BETA), "js"),
    "TRL GKD, dense, JS": (lambda: trl_dense(BETA), "js"),
    "Liger, JS, chunk 256": (lambda: liger(BETA, 256, False), "js"),
    "Liger, compiled, JS, chunk 256": (lambda: liger(BETA, 256, True), "js"),
    "Liger, compiled, JS, chunk 256, tuned": (lambda: liger(BETA, 256, True), "js"),
    "capgap cached top_k": (lambda: capgap_cached("top_k"), "cached"),
    "capgap cached sampled": (lambda: capgap_cached("sampled"), "cached"),
}


def measure(name: str, vocab: int, tokens: int, repeats: int) -> dict:
    """Run one implementation in this process."""
    import torch

    from capgap.engine.onednn_matmul import use_onednn

    torch.manual_seed(0)
    hs, ws = torch.randn(tokens, STUDENT_HIDDEN), torch.randn(vocab, STUDENT_HIDDEN) / 16
    ht, wt = torch.randn(tokens, TEACHER_HIDDEN), torch.randn(vocab, TEACHER_HIDDEN) / 12
    labels = torch.randint(0, vocab, (tokens,))
    hs.requires_grad_(), ws.requires_grad_()
    loss_function = RUNS[name][0]()

    def call() -> float:
        hs.grad = ws.grad = None
        loss = loss_function(hs, ws, ht, wt, labels)
        loss.backward()
        return loss.item()

    if "tuned" in name:
        call = use_onednn()(call)
    call()
    hs.grad = ws.grad = None
    gc.collect()
    base = reset_peak()
    loss = call()
    peak = read_status("VmHWM") - base
    norms = [hs.grad.norm().item(), ws.grad.norm().item()]
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        call()
        seconds.append(time.process_time() - start)
    return {
        "name": name,
        "vocab": vocab,
        "tokens": tokens,
        "objective": RUNS[name][1],
        "cpu_s": median(seconds),
        "cpu_s_min": min(seconds),
        "cpu_s_max": max(seconds),
        "peak_mb": peak / 1024,
        "loss": loss,
        "gradient_norms": norms,
    }


def read_status(key: str) -> int:
    """A value of /proc/self/status, kB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1])


def reset_peak() -> int:
    """Set the peak resident set back to the present one, which is returned, kB."""
    Path("/proc/self/clear_refs").write_text("5")
    return read_status("VmRSS")


def matmul_floor(vocab: int, tokens: int) -> float:
    """CPU seconds of the four matrix products alone, at the speed of one large product here."""
    import torch

    from capgap.engine.onednn_matmul import use_onednn

    size = 2048
    a, b = torch.randn(size, size), torch.randn(size, size)
    seconds = []
    with use_onednn():
        a @ b
        for _ in range(5):
            start = time.process_time()
            a @ b
            seconds.append(time.process_time() - start)
    rate = 2 * size**3 / median(seconds)
    return 2 * tokens * vocab * (3 * STUDENT_HIDDEN + TEACHER_HIDDEN) / rate


def run_all(shapes: list[str], names: list[str], repeats: int) -> list[dict]:
    """Every implementation at every shape, each in a fresh process."""
    environment = {
        "OMP_NUM_THREADS": "1",
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
        **os.environ,
        "MALLOC_MMAP_THRESHOLD_": "65536",
    }
    rows = []
    for shape in shapes:
        for name in names:
            command = [sys.executable, __file__, "--one", name, "--vocab", shape]
            command += ["--repeats", str(repeats)]
            pages = "1" if "capgap" in name or "tuned" in name else "0"
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                env=environment | {"THP_MEM_ALLOC_ENABLE": pages},
            )
            if done.returncode:
                sys.exit(f"{name}, V {shape}: failed\n{done.stderr[-2000:]}")
            rows.append(json.loads(done.stdout.splitlines()[-1]))
            print(f"{shape:>7} {name}: {rows[-1]['cpu_s']:.2f} s", file=sys.stderr, flush=True)
    return rows


def check_agreement(rows: list[dict]) -> None:
    """Fail where two implementations of one objective do not give one gradient."""
    for row in rows:
        reference = next(
            r for r in rows if (r["objective"], r["vocab"]) == (row["objective"], row["vocab"])
        )
        if row["objective"] == "cached" or "no data term" in row["name"]:
            continue
        pairs = zip(row["gradient_norms"], reference["gradient_norms"], strict=True)
        if any(abs(a / b - 1) > 1e-4 for a, b in pairs):
            sys.exit(
                f"{row['name']} and {reference['name']} give different gradients at "
                f"V {row['vocab']}: {row['gradient_norms']} {reference['gradient_norms']}"
            )


def table(rounds: list[list[dict]]) -> str:
    """Markdown, with the ratios that the comparison is about."""
    lines = []
    for vocab, tokens in dict.fromkeys((r["vocab"], r["tokens"]) for r in rounds[0]):
        floor = matmul_floor(vocab, tokens)
        lines += [
            f"\nV = {vocab:,}, {tokens} tokens; four matrix products alone: {floor:.2f} CPU s; "
            f"{len(rounds)} round(s)\n",
            "| implementation | CPU s | range | peak MB |",
            "|---|---|---|---|",
        ]
        here = [{r["name"]: r for r in rows if r["vocab"] == vocab} for rows in rounds]
        for name in here[0]:
            runs = [rows[name] for rows in here]
            lines.append(
                f"| {name} | {median(r['cpu_s'] for r in runs):.2f} "
                f"| {min(r['cpu_s_min'] for r in runs):.2f}-{max(r['cpu_s_max'] for r in runs):.2f} "
                f"| {median(r['peak_mb'] for r in runs):.0f} |"
            )
        for objective in dict.fromkeys(r["objective"] for r in here[0].values()):
            names = [n for n, r in here[0].items() if r["objective"] == objective]
            ours = [n for n in names if n.startswith("capgap")]
            peers = [n for n in names if n not in ours]
            for kind in ("as they come", "tuned"):
                group = [n for n in peers if ("tuned" in n) == (kind == "tuned")]
                if ours and group:
                    lines.append(comparison(here, ours[0], group, kind))
    return "\n".join(lines)


def comparison(here: list[dict[str, dict]], own: str, peers: list[str], kind: str) -> str:
    """What ours takes of the fastest and of the leanest peer, in a sentence."""
    fastest = min(peers, key=lambda n: median(rows[n]["cpu_s"] for rows in here))
    leanest = min(peers, key=lambda n: median(rows[n]["peak_mb"] for rows in here))
    time_ratios = [rows[own]["cpu_s"] / rows[fastest]["cpu_s"] for rows in here]

    def memory(peer: str) -> float:
        return median(rows[own]["peak_mb"] / rows[peer]["peak_mb"] for rows in here)

    return (
        f"\n{own} takes {median(time_ratios):.2f} ({min(time_ratios):.2f}-{max(time_ratios):.2f}) of "
        f"the CPU time and {memory(fastest):.2f} of the memory of the fastest peer ({fastest}; peers "
        f"{kind}), and {memory(leanest):.2f} of the memory of the leanest ({leanest})"
    )


def main() -> None:
    """Measure, check that all agree, and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--one", choices=RUNS, help="measure this one here, and print JSON")
    parser.add_argument("--vocab", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--only", nargs="+", default=list(RUNS), choices=list(RUNS))
    parser.add_argument("--repeats", type=int, default=5, help="calls in a process")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--out", type=Path, help="also write the rows as JSON")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one, *SHAPES[args.vocab[0]], args.repeats)))
        return
    rounds = []
    for _ in range(args.rounds):
        rounds.append(run_all(args.vocab, args.only, args.repeats))
        check_agreement(rounds[-1])
        if args.out:
            args.out.write_text(json.dumps(rounds, indent=1) + "\n")
    print(table(rounds))


if __name__ == "__main__":
    main()
