"""
How much memory does pruning take?

Cuts a model to a share of its parameters as `capgap prune` does, in this process, and prints the
peak of memory above what the libraries take, as a multiple of the model's weights: memory of its
own, which cannot be taken back, and resident memory, which adds the pages of the weight file that
is mapped while it is read and that the kernel drops when others need the room. By default the model
is a random Llama of 1.1 B parameters (TinyLlama's shape), 4.4 GB in float32.

    python benchmarks/pruning_memory.py --share 0.5
    python benchmarks/pruning_memory.py --share 0.5 --model FOLDER
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaForCausalLM

from capgap import prune
from capgap.artifacts import publish_folder
from capgap.config import Depth
from capgap.engine.models import llama_config, load_shape
from capgap.pruning.importance import Importance
from capgap.pruning.solver import Target
from capgap.pruning.store import weights_digest, write_importance
from capgap.pruning.surgery import sizes_of
from capgap.shapes import LlamaShape

SHAPE = LlamaShape(22, 2048, 32, 4, 64, 5632, vocab=32000, tied=False)


class Peak(threading.Thread):
    """Highest memory of this process while it runs, sampled every few milliseconds, in bytes."""

    def __init__(self):
        super().__init__(daemon=True)
        self.own = self.resident = 0
        self.done = threading.Event()

    def run(self) -> None:
        """Sample until done."""
        while not self.done.wait(0.003):
            own, resident = memory()
            self.own, self.resident = max(self.own, own), max(self.resident, resident)


def memory() -> tuple[int, int]:
    """Anonymous and resident memory of this process, bytes (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return tuple(1024 * int(fields[key].split()[0]) for key in ("RssAnon", "VmRSS"))


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


def main() -> None:
    """Prune once and print the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__.strip(), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--share", type=float, default=0.5, help="of the parameters to keep")
    parser.add_argument("--model", type=Path, help="model folder (default: a random 1.1B Llama)")
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
        own, resident = memory()
        peak, started = Peak(), time.process_time()
        peak.start()
        size = round(args.share * sizes.params(sizes.full))
        _, solution = prune.run(
            Depth(),
            folder,
            Path(temporary) / "scores",
            Target("params", size),
            Path(temporary) / "out",
        )
        peak.done.set()
        peak.join()
        weights = 4 * sizes.total(sizes.full)
    print(solution.describe(sizes))
    print(
        f"weights {weights / 1e9:.2f} GB; peak above the libraries, times the weights: "
        f"{(peak.own - own) / weights:.2f} own, {(peak.resident - resident) / weights:.2f} with "
        f"the mapped file; {time.process_time() - started:.0f} CPU seconds"
    )


if __name__ == "__main__":
    main()
