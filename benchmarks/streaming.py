"""
What does it cost to run a model that is larger than the memory?

A random Llama of about 3 B parameters in bfloat16 (6 GB on disk) is evaluated, scored, cut to a small
student, and its targets are cached: first without a limit, then under a hard limit on anonymous memory
(RLIMIT_DATA, which counts private memory that may be written, whether used or not). Each run is a
process of its own. Printed: seconds of each by the clock and of CPU, their ratios, highest anonymous
memory, and whether the results are equal. On cores that are shared with other work wall time
means little. Linux only.

    python benchmarks/streaming.py
    python benchmarks/streaming.py --layers 4 --sequences 2   # quick
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.numpy import load_file
from safetensors.torch import save_file

from capgap.config import Cut, Evaluate, Score, TargetsStage
from capgap.config.shapes import LlamaShape
from capgap.engine.counting import count_params
from capgap.engine.models import LINEAGE, llama_config, load_shape
from capgap.engine.resuming import RunPaths
from capgap.pruning.solver import Target
from capgap.records.artifacts import publish_folder
from capgap.records.run_records import Lineage, TokenStreams
from capgap.stages import cache_teacher, evaluate, prune, score

LENGTH = 512
STEPS = ("evaluate", "score", "prune", "cache_teacher")


def large(layers: int) -> LlamaShape:
    """The shape of the large model."""
    return LlamaShape(layers, 3072, 24, 8, 128, 8192, vocab=32000, tied=False)


def write_inputs(root: Path, shape: LlamaShape, sequences: int) -> None:
    """A random model in bfloat16, written tensor by tensor into shards, and random token streams."""
    config = llama_config(shape, max_positions=2048, bos_id=1, eos_id=2)
    with publish_folder(root / "model") as folder:
        config.save_pretrained(folder)
        (folder / "config.json").write_text(
            json.dumps({**config.to_dict(), "architectures": ["LlamaForCausalLM"]})
        )
        model, files, torch_random = load_shape(folder), {}, torch.Generator().manual_seed(0)
        parts: dict[str, dict[str, torch.Tensor]] = {}
        for name, parameter in model.named_parameters():
            values = torch.empty(parameter.shape, dtype=torch.bfloat16)
            if parameter.ndim == 1:
                values.fill_(1)
            else:
                values.normal_(0, 0.02, generator=torch_random)
            file = f"layer-{name.split('.')[2]}" if ".layers." in name else "ends"
            files[name] = f"{file}.safetensors"
            parts.setdefault(files[name], {})[name] = values
            for done in [f for f in parts if f not in (files[name], "ends.safetensors")]:
                save_file(parts.pop(done), folder / done, metadata={"format": "pt"})
        for file, tensors in parts.items():
            save_file(tensors, folder / file, metadata={"format": "pt"})
        index = {"metadata": {}, "weight_map": files}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        lineage = Lineage(kind="teacher", name="large", params=count_params(model))
        (folder / LINEAGE).write_text(lineage.to_json())
    tokens = sequences * LENGTH + 2
    with publish_folder(root / "tokens") as folder:
        random = np.random.default_rng(0)
        splits = ("train", "validation", "test")
        for split in splits:
            ids = random.integers(3, shape.vocab, tokens, dtype=np.uint16)
            np.save(folder / f"{split}.npy", ids)
        meta = TokenStreams(
            vocab_size=shape.vocab,
            tokenizer_sha256="0" * 64,
            documents=dict.fromkeys(splits, 1),
            tokens=dict.fromkeys(splits, tokens),
            bytes=dict.fromkeys(splits, 4 * tokens),
        )
        (folder / "meta.json").write_text(meta.to_json())


def step(name: str, root: Path, out: Path, sequences: int) -> None:
    """One stage, as its command runs it."""
    model, tokens = root / "model", root / "tokens"
    match name:
        case "evaluate":
            settings = Evaluate(sequence_length=LENGTH, batch_tokens=2 * LENGTH)
            (out / "metrics.json").write_text(evaluate.run(settings, model, tokens).to_json())
        case "score":
            settings = Score(calibration_sequences=sequences, sequence_length=LENGTH)
            score.run(settings, model, tokens, out / "scores")
        case "prune":
            settings = Cut(calibration_sequences=sequences, sequence_length=LENGTH)
            target = Target("params", 100_000_000)
            prune.run(settings, model, out / "scores", target, out / "student")
        case "cache_teacher":
            settings = TargetsStage(
                kind="top_k",
                entries=16,
                unique_tokens=sequences * LENGTH,
                sequence_length=LENGTH,
                batch_tokens=2 * LENGTH,
            )
            place = RunPaths(out / "targets", out / "scratch", 600.0)
            cache_teacher.run(settings, model, tokens, place)


def peak_of(process: subprocess.Popen, found: list[int]) -> None:
    """Keep the highest anonymous memory of a process, bytes."""
    while process.poll() is None:
        try:
            lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        except OSError:
            return
        rss = [int(line.split()[1]) for line in lines if line.startswith("RssAnon")]
        found[0] = max([found[0], *(1024 * kb for kb in rss)])
        time.sleep(0.05)


class Run(NamedTuple):
    """What a step took in a process of its own."""

    seconds: float
    cpu_s: float
    peak: int  # anonymous memory, bytes


def run(name: str, root: Path, out: Path, sequences: int, limit: int | None) -> Run:
    """Run a step in a process of its own."""
    words = [sys.executable, __file__, "--step", name, "--root", root, "--out", out]
    words += ["--sequences", sequences, *(["--limit-bytes", limit] if limit else [])]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    started, found, before = time.monotonic(), [0], cpu_of_children()
    with subprocess.Popen(list(map(str, words)), env=environment) as process:
        watch = threading.Thread(target=peak_of, args=(process, found))
        watch.start()
        status = process.wait()
        watch.join()
    if status:
        sys.exit(f"{name} failed with status {status}")
    return Run(time.monotonic() - started, cpu_of_children() - before, found[0])


def cpu_of_children() -> float:
    """CPU seconds of all processes that this one has waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def equality(name: str, whole: Path, limited: Path) -> str:
    """How the results of a step compare."""
    match name:
        case "evaluate":
            one, other = (json.loads((p / "metrics.json").read_text()) for p in (whole, limited))
            loss = one["test"]["loss_nats_per_token"], other["test"]["loss_nats_per_token"]
            return f"{'equal' if one == other else 'NOT equal'}: test loss {loss[0]} and {loss[1]}"
        case "score":
            one, other = (load_file(p / "scores/importance.safetensors") for p in (whole, limited))
            error = max(float(abs(one[k] - other[k]).max() / abs(one[k]).max()) for k in one)
            return f"largest relative difference {error:.1e}"
    part = {"prune": "student", "cache_teacher": "targets"}[name]
    files = sorted(p.name for p in (whole / part).glob("*.safetensors"))
    same = all((whole / part / f).read_bytes() == (limited / part / f).read_bytes() for f in files)
    return f"{len(files)} file(s) {'equal byte for byte' if same else 'NOT equal'}"


def compared(whole: Run, limited: Run) -> str:
    """Time under the limit and without, by the clock and of CPU."""
    return (
        f"{limited.seconds:.0f} s under the limit and {whole.seconds:.0f} s without, ratio "
        f"{limited.seconds / whole.seconds:.2f}; CPU {limited.cpu_s:.0f} s and {whole.cpu_s:.0f} s, "
        f"ratio {limited.cpu_s / whole.cpu_s:.2f}"
    )


def main() -> None:
    """Run every step twice and print how they compare."""
    parser = argparse.ArgumentParser(
        description=__doc__.strip(), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--sequences", type=int, default=4, help=f"of {LENGTH} tokens")
    parser.add_argument("--limit-gb", type=float, default=2.5, help="of anonymous memory")
    parser.add_argument("--only", nargs="+", default=STEPS, choices=STEPS, help="prune needs score")
    parser.add_argument("--folder", type=Path, help="where to write (default: a temporary folder)")
    for hidden in ("--step", "--root", "--out", "--limit-bytes"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step:
        if args.limit_bytes:
            resource.setrlimit(resource.RLIMIT_DATA, (int(args.limit_bytes),) * 2)
        torch.set_num_threads(1)
        step(args.step, Path(args.root), Path(args.out), args.sequences)
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as temporary:
        root = Path(temporary)
        write_inputs(root, large(args.layers), args.sequences)
        size = sum(p.stat().st_size for p in (root / "model").glob("*.safetensors"))
        print(f"model {size / 1e9:.2f} GB on disk; limit {args.limit_gb} GB of anonymous memory")
        outs = {limit: root / f"out-{limit}" for limit in (None, int(args.limit_gb * 1e9))}
        figures: dict[int | None, list[Run]] = {limit: [] for limit in outs}
        for name in args.only:
            for limit, out in outs.items():
                out.mkdir(exist_ok=True)
                figures[limit].append(run(name, root, out, args.sequences, limit))
            whole, limited = (runs[-1] for runs in figures.values())
            print(
                f"{name}: {compared(whole, limited)}; peak {limited.peak / 1e9:.2f} and "
                f"{whole.peak / 1e9:.2f} GB; {equality(name, *outs.values())}",
                flush=True,
            )
        whole, limited = (Run(*map(sum, zip(*runs, strict=True))) for runs in figures.values())
        print(f"all: {compared(whole, limited)}")


if __name__ == "__main__":
    main()
