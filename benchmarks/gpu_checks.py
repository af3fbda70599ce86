"""
Parts of `gpu_session.py` that check whether the rest of the engine is right on a GPU: the tests that need
one, sharding, saved states, and a model that is read layer by layer.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from streaming import LENGTH, large, write_inputs

from capgap.config import Distill, Evaluate
from capgap.config.shapes import LlamaShape

REPOSITORY = Path(__file__).resolve().parents[1]
MEDIUM = LlamaShape(12, 1024, 16, 16, 64, 2816, 32000, False)
TINY = LlamaShape(2, 32, 2, 2, 16, 48, 96, False)
Line = dict[str, object]


def device() -> torch.device:
    """The GPU, or the CPU if there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def tests(tiny: bool) -> Iterator[Line]:
    """The tests that need a GPU."""
    words = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/unit"]
    done = subprocess.run(
        [*words, *(["--collect-only"] if tiny else [])],
        cwd=REPOSITORY, capture_output=True, text=True,
    )  # fmt: skip
    tail = done.stdout.strip().splitlines()[-15:]
    if done.returncode:
        raise AssertionError("\n".join(tail))
    yield {"summary": tail[-1]}


def sharded(tiny: bool) -> Iterator[Line]:
    """FSDP2 with one rank over NCCL (gloo on a CPU) gives the hidden states and a gradient of the whole model.

    It checks PyTorch's sharding around our forward pass; that of `DistContext` needs several GPUs.
    """
    import torch.distributed
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    from capgap.engine.forward import decoder_layers, model_output, output_form
    from capgap.engine.models import llama_config, new_model

    at = device()
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29533",
        "RANK": "0",
        "WORLD_SIZE": "1",
    }
    torch.distributed.init_process_group("nccl" if at.type == "cuda" else "gloo")
    shape = TINY if tiny else MEDIUM
    with at:
        model = new_model(llama_config(shape, max_positions=8192, bos_id=0, eos_id=0), 0)
    output_form(model)
    ids = torch.randint(0, shape.vocab, (2, 16), device=at)

    def states_and_gradient():
        hidden = model_output(model, ids, precision="bfloat16").hidden.float()
        hidden.sum().backward()
        weight = decoder_layers(model)[0].mlp.up_proj.weight
        gradient = weight.grad.full_tensor() if hasattr(weight.grad, "full_tensor") else weight.grad
        found = hidden.detach(), gradient.detach().float().clone()
        model.zero_grad()
        return found

    whole = states_and_gradient()
    mesh = init_device_mesh(at.type, (1,))
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    for layer in decoder_layers(model):
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh)
    differences = [
        ((ours - theirs).norm() / theirs.norm()).item()
        for ours, theirs in zip(states_and_gradient(), whole, strict=True)
    ]
    if max(differences) > 0.02:  # bfloat16 rounds to 0.4 %
        raise AssertionError(f"relative differences {differences} of hidden states and gradient")
    yield {"relative_difference": max(differences)}
    torch.distributed.destroy_process_group()


def checkpoint(tiny: bool) -> Iterator[Line]:
    """Speed of saving a state and of reading it again, which must give the same weights."""
    from capgap.engine import checkpoints, training
    from capgap.engine.models import llama_config, new_model

    shape = TINY if tiny else MEDIUM
    with device():
        model = new_model(llama_config(shape, max_positions=64, bos_id=0, eos_id=0), 0)
    optimizer = training.make_optimizer(model, Distill())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    before = next(model.parameters()).detach().clone()
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        checkpoints.save(Path(folder), 1, model, optimizer, {"curve": []})
        saved_s = time.perf_counter() - begun
        with torch.no_grad():
            next(model.parameters()).zero_()
        begun = time.perf_counter()
        restored = checkpoints.load_latest(Path(folder), model, optimizer)
        loaded_s = time.perf_counter() - begun
    if restored is None or not torch.equal(next(model.parameters()).detach(), before):
        raise AssertionError("the state that was read is not the one that was saved")
    size = 12 * sum(p.numel() for p in model.parameters())
    yield {"bytes": size, "save_bytes_per_s": size / saved_s, "load_bytes_per_s": size / loaded_s}


def streamed(tiny: bool) -> Iterator[Line]:
    """A model read layer by layer from disk has the loss of the whole one, from less of the GPU."""
    from capgap.stages import evaluate

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_inputs(root, TINY if tiny else large(12), 1 if tiny else 4)
        settings = Evaluate(sequence_length=LENGTH, batch_tokens=LENGTH, precision="bfloat16")
        found = {}
        for stream in (True, False):
            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()
            begun = time.perf_counter()
            record = evaluate.run(settings, root / "model", root / "tokens", stream=stream)
            line: Line = {"stream": stream, "seconds": time.perf_counter() - begun}
            line["loss"] = found[stream] = json.loads(record.to_json())["test"][
                "loss_nats_per_token"
            ]
            if torch.cuda.is_available():
                line["peak_bytes"] = torch.cuda.max_memory_allocated()
            yield line
    if abs(found[True] / found[False] - 1) > 1e-4:
        raise AssertionError(f"losses differ: {found}")
