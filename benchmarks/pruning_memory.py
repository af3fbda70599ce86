"""
How much memory does pruning take?

Cuts a model to a share of its parameters as `capgap prune` does, in this process, and prints the
peak of resident memory, pages of the mapped weight file included, above what the libraries take, as
a multiple of the model's weights; with --score-tokens the same for scoring. By default the model is
a random Llama of 1.1 B parameters (TinyLlama's shape), 4.4 GB in float32. Linux only.

    python benchmarks/pruning_memory.py --share 0.5
    python benchmarks/pruning_memory.py --share 0.9 --score-tokens 1024
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaForCausalLM

from capgap.config import Depth
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


def random_model(folder: Path) -> None:
    """Save a model of SHAPE with random weights, in a child process: its memory does not count."""
    child = multiprocessing.get_context("spawn").Process(target=_save_random, args=(folder,))
    child.start()
    child.join()
    assert child.exitcode == 0, child.exitcode


def _save_random(folder: Path) -> None:
    torch.manual_seed(0)
    config = llama_config(SHAPE, max_positions=2048, bos_id=1, eos_id=2)
    LlamaForCausalLM(config).save_pretrained(folder)


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
    args = parser.parse_args()
    torch.set_num_threads(1)
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
                prune.run, Depth(), folder, place / "scores", target, place / "out"
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
