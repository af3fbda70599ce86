"""
How much memory does pruning take?

Cuts a model to a share of its parameters as `capgap prune` does, in this process, and prints the
peak of resident memory, pages of the mapped weight file included, above what the libraries take, as
a multiple of the model's weights; with --score-tokens the same for scoring. By default the model is
a random Llama of 1.1 B parameters (TinyLlama's shape), 4.4 GB in float32. Linux only.

    python benchmarks/pruning_memory.py --share 0.5
    python benchmarks/pruning_memory.py --share 0.9 --score-tokens 1024
    python benchmarks/pruning_memory.py --share 0.25 --refit-tokens 2048 --limit-gb 24

With --refit-tokens it runs `capgap prune --refit least_squares`, scoring included, on the model in bfloat16 as a
process of its own, whose address space is limited, and prints that process's time and peak memory.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from capgap.config import Cut
from capgap.config.shapes import LlamaShape
from capgap.engine.models import llama_config, load_model, load_shape
from capgap.pruning.importance import Importance, measure
from capgap.pruning.solver import Target
from capgap.pruning.store import weights_digest, write_importance
from capgap.pruning.surgery import sizes_of
from capgap.records.artifacts import publish_folder
from capgap.stages import prune

SHAPE = LlamaShape(22, 2048, 32, 4, 64, 5632, vocab=32000, tied=False)


def memory(key: str) -> int:
    """VmRSS or VmHWM, present and highest memory of this process, mapped files included, bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return 1024 * int(fields[key].split()[0])


def measured(job: Callable, *args, **options) -> tuple[int, float]:
    """Highest memory of a job above the present, bytes, and its CPU seconds."""
    Path("/proc/self/clear_refs").write_text("5")  # the highest is the present
    before, started = memory("VmRSS"), time.process_time()
    job(*args, **options)
    return memory("VmHWM") - before, time.process_time() - started


def random_model(folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Save a model of SHAPE with random weights, in a child process: its memory does not count."""
    child = multiprocessing.get_context("spawn").Process(target=_save_random, args=(folder, dtype))
    child.start()
    child.join()
    assert child.exitcode == 0, child.exitcode


def _save_random(folder: Path, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    config = llama_config(SHAPE, max_positions=2048, bos_id=1, eos_id=2)
    LlamaForCausalLM(config).save_pretrained(folder)


def command(
    folder: Path, params: int, tokens: int, length: int, limit: int
) -> tuple[int, float, float]:
    """Peak memory of `capgap prune --refit least_squares` (bytes), its CPU seconds and its seconds.

    folder: of the model; the tokenizer and a text of random words are written into it. tokens: of calibration, in
    sequences of `length`. limit: of the process's address space, bytes.
    """
    names = [f"w{i}" for i in range(SHAPE.vocab)]
    tokenizer = Tokenizer(
        models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="w0")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="w2").save_pretrained(folder)
    text = folder / "text.txt"
    text.write_text(" ".join(np.random.default_rng(0).choice(names[3:], 4 * tokens)))
    words = [sys.executable, "-m", "capgap.cli", "prune", folder, "--params", params]
    words += ["--refit", "least_squares", "--text", text, "--out", folder.with_name("refitted")]
    words += ["--calibration-sequences", tokens // length, "--sequence-length", length]
    started = time.monotonic()
    child = subprocess.Popen(
        list(map(str, words)),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
    _, status, used = os.wait4(child.pid, 0)
    assert status == 0, status
    return 1024 * used.ru_maxrss, used.ru_utime + used.ru_stime, time.monotonic() - started


def score_random(folder: Path, tokens: int, sequence_length: int) -> None:
    """Score a model by mask gradients on random tokens, in one micro-batch."""
    model = load_model(folder)
    shape = (tokens // sequence_length, sequence_length + 1)
    ids = torch.randint(model.config.vocab_size, shape)
    measure(model, ids[:, :-1], ids[:, 1:], micro_batch_tokens=tokens)


def main() -> None:
    """Prune, and score where asked, once, and print the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__.strip(), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--share", type=float, default=0.5, help="of the parameters to keep")
    parser.add_argument("--model", type=Path, help="model folder (default: a random 1.1B Llama)")
    parser.add_argument(
        "--score-tokens", type=int, help="tokens to score at a time (default: no scoring)"
    )
    parser.add_argument("--sequence-length", type=int, default=512, help="of scoring, tokens")
    parser.add_argument("--refit-tokens", type=int, help="measure the command with a refit instead")
    parser.add_argument(
        "--limit-gb", type=float, default=24.0, help="of its address space, 10^9 bytes"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.refit_tokens:
        with tempfile.TemporaryDirectory() as temporary:
            folder = args.model or Path(temporary) / "model"
            if args.model is None:
                random_model(folder, torch.bfloat16)
            sizes = sizes_of(load_shape(folder))
            params = round(args.share * sizes.params(sizes.full))
            limit, length = round(args.limit_gb * 1e9), args.sequence_length
            peak, cpu_s, seconds = command(folder, params, args.refit_tokens, length, limit)
        print(
            f"{sizes.total(sizes.full):,} parameters, {args.refit_tokens:,} tokens: peak {peak / 1e9:.2f} GB of "
            f"{args.limit_gb:g} GB, {cpu_s:,.0f} CPU seconds, {seconds:,.0f} seconds"
        )
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.model or Path(temporary) / "model"
        if args.model is None:
            random_model(folder)
        sizes = sizes_of(load_shape(folder))
        random = np.random.default_rng(0)
        groups, neurons, hidden = sizes.full
        shapes = [(sizes.layers, groups), (sizes.layers, neurons), (hidden,), (sizes.layers,)]
        scores = Importance(*(random.random(shape, dtype=np.float32) for shape in shapes))
        with publish_folder(Path(temporary) / "scores") as target:
            write_importance(target, scores, weights_digest(folder))
        target = Target("params", round(args.share * sizes.params(sizes.full)))
        place = Path(temporary)
        figures = {
            f"pruning to {args.share:.0%}": measured(
                prune.run, Cut(), folder, place / "scores", target, place / "out"
            )
        }
        if args.score_tokens:
            figures[f"scoring, {args.score_tokens:,} tokens at a time"] = measured(
                score_random, folder, args.score_tokens, args.sequence_length
            )
        weights = 4 * sizes.total(sizes.full)
    print(
        f"weights in float32 {weights / 1e9:.2f} GB; peak of resident memory above the libraries:"
    )
    for name, (peak, seconds) in figures.items():
        print(f"{name}: {peak / weights:.2f} times the weights, {seconds:.0f} CPU seconds")


if __name__ == "__main__":
    main()
