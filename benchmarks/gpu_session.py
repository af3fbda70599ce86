"""
A quarter of an hour on one GPU: is the code that was built without one right, and how fast is it?

    python benchmarks/gpu_session.py --out gpu.jsonl           # then: capgap plan --device ...
    python benchmarks/gpu_session.py --tiny                    # all parts on a CPU, in a minute

Parts run one after another, the most informative first, each in a process of its own with its own time
limit, so that one that fails or hangs leaves the others alone. Each prints lines of JSON, which also go
to --out. From the rates of kernels and the seconds of a real step a calibration is written,
scratch/gpu-calibration.json, which `capgap plan` uses for that device from then on. The bars that
a line names are those of the roofline (benchmarks/gpu_roofline.py); the exit status is 1 if a part failed.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import torch
from gpu_checks import MEDIUM, Line, checkpoint, device, sharded, streamed, tests
from gpu_checks import TINY as TINY_STUDENT
from gpu_roofline import as_model, useful_flops

from capgap.config import Distill
from capgap.config.devices import DEVICES
from capgap.config.shapes import LlamaShape, gpu_chunk_tokens
from capgap.cost import device_memory, passes, roofline
from capgap.cost.speed import GPU_CALIBRATION
from capgap.records.artifacts import write_text
from capgap.records.run_records import GpuCalibration, Reached

# student and teacher from the largest on; the first that fits by the plan is taken
PAIRS = [
    (LlamaShape(24, 3072, 24, 24, 128, 8192, 32000, False), LlamaShape(32, 4096, 32, 32, 128, 11008, 32000, False)),
    (LlamaShape(24, 2048, 16, 16, 128, 5504, 32000, False), LlamaShape(32, 2560, 20, 20, 128, 6912, 32000, False)),
    (MEDIUM, LlamaShape(24, 1024, 16, 16, 64, 2816, 32000, False)),
]  # fmt: skip
TINY = (TINY_STUDENT, LlamaShape(2, 48, 3, 3, 16, 64, 96, False))


def named(gpu: str) -> str | None:
    """The name of `plan.device` for a GPU as the driver calls it, by its memory if there are several."""
    found = [name for name in DEVICES if name.split("-")[0] in gpu.lower().replace(" ", "")]
    if not found or not torch.cuda.is_available():
        return found[0] if found else None
    has = torch.cuda.get_device_properties(0).total_memory / 2**30
    return min(found, key=lambda name: abs(DEVICES[name].memory_gib - has))


def seconds(call: Callable[[], object], repeats: int = 10) -> float:
    """Seconds of a call: the median after two that warm up."""
    cuda, found = torch.cuda.is_available(), []
    for turn in range(repeats + 2):
        if cuda:
            torch.cuda.synchronize()
        begun = time.perf_counter()
        call()
        if cuda:
            torch.cuda.synchronize()
        if turn >= 2:
            found.append(time.perf_counter() - begun)
    return sorted(found)[len(found) // 2]


def versions(tiny: bool) -> Iterator[Line]:
    """What this is."""
    import transformers

    from capgap.engine import device_path, loss_kernel

    line: Line = {"python": platform.python_version(), "torch": torch.__version__}
    line |= {"transformers": transformers.__version__, "triton": None}
    if loss_kernel.triton is not None:
        line["triton"] = loss_kernel.triton.__version__
    line["wide_products"] = device_path.has_wide_products(device())
    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(0)
        line |= {"gpu": gpu.name, "memory_gib": round(gpu.total_memory / 2**30, 1)}
        line |= {"cuda": torch.version.cuda, "plan_device": named(gpu.name)}
    yield line


def rates(tiny: bool) -> Iterator[Line]:
    """What kernels reach: products, memory, launches, attention."""
    at, n = device(), 64 if tiny else 8192
    half = {"dtype": torch.bfloat16, "device": at}
    a, b = torch.randn(n, n, **half), torch.randn(n, n, **half)
    product_s = seconds(lambda: a @ b)
    flat = torch.randn((64 if tiny else 2**14) * 2**14, device=at)
    copy_s = seconds(lambda: flat.mul_(1.0))
    small = torch.randn(16, device=at)
    launch_s = seconds(lambda: [small.add_(1.0) for _ in range(500)]) / 500
    q = torch.randn(1, 2 if tiny else 32, 32 if tiny else 4096, 128, **half, requires_grad=True)
    attend = torch.nn.functional.scaled_dot_product_attention
    forward_s = seconds(lambda: attend(q.detach(), q.detach(), q.detach(), is_causal=True))
    both_s = seconds(lambda: attend(q, q, q, is_causal=True).sum().backward())
    scores = 4 * q.shape[1] * q.shape[2] ** 2 * q.shape[3] / 2
    yield {
        "product_flops_per_s": 2 * n**3 / product_s,
        "memory_bytes_per_s": 8 * flat.numel() / copy_s,
        "launch_s": launch_s,
        "attention_flops_per_s": scores / forward_s,
        "attention_backward_flops_per_s": 2.5 * scores / max(both_s - forward_s, 1e-9),
    }


def loss(tiny: bool) -> Iterator[Line]:
    """Every objective against the dense formula, then speed by vocabulary and chunk."""
    from capgap.engine import losses

    at = device()
    kernel = losses.loss_kernels(torch.empty(1, dtype=torch.bfloat16, device=at)) is not None
    for objective in losses.OBJECTIVES:
        beta = 0.5 if objective == "jensen_shannon" else None
        yield {"objective": objective, "kernel": kernel} | _agreement(objective, beta)
    hidden, taught = (16, 24) if tiny else (2048, 4096)
    tokens = 64 if tiny else 8192
    for vocab in (96,) if tiny else (32_000, 151_936):
        for chunk, with_kernel in product(
            (None, *((16,) if tiny else (1024, 4096))), (True, False)
        ):
            if with_kernel and not kernel:
                continue
            h, w, th, tw, labels = _inputs(tokens, vocab, hidden, taught, torch.bfloat16)

            def call(h=h, w=w, th=th, tw=tw, labels=labels, chunk=chunk):
                targets = losses.ModelOutput(th, tw)
                losses.mixture_loss(h, w, labels, targets, chunk=chunk)[0].backward()
                h.grad = w.grad = None

            before = losses.loss_kernels
            try:
                if not with_kernel:
                    losses.loss_kernels = lambda hidden: None
                took = seconds(call, 2 if tiny else 5)
            finally:
                losses.loss_kernels = before
            flops = 2 * tokens * vocab * (3 * hidden + taught)
            line = {"V": vocab, "chunk": chunk or gpu_chunk_tokens(vocab), "kernel": with_kernel}
            yield line | {"seconds": took, "flops_per_s": flops / took} | _share(flops / took, 0.45)
    yield from _liger(tokens, 96 if tiny else 32_000, hidden, taught)


def _inputs(tokens: int, vocab: int, hidden: int, taught: int, dtype: torch.dtype):
    torch.manual_seed(0)
    sizes = (tokens, hidden), (vocab, hidden), (tokens, taught), (vocab, taught)
    h, w, th, tw = (
        (torch.randn(*size, device=device()) / size[1] ** 0.5).to(dtype) for size in sizes
    )
    labels = torch.randint(0, vocab, (tokens,))
    return h.requires_grad_(), w.requires_grad_(), th, tw, labels


def _agreement(objective: str, beta: float | None) -> Line:
    """Largest error of the loss and its gradients in float32, over the largest true value."""
    from capgap.engine import losses

    h, w, th, tw, labels = _inputs(33, 1000, 24, 40, torch.float32)
    with torch.no_grad():  # logits of a few nats
        h *= 20
        th *= 20
    targets = losses.ModelOutput(th, tw)
    found, _ = losses.mixture_loss(h, w, labels, targets, objective=objective, beta=beta, chunk=16)
    own = torch.autograd.grad(found, (h, w))
    hd, wd = (x.detach().double().requires_grad_() for x in (h, w))
    z, t = hd @ wd.T, (th.double() @ tw.double().T)
    log_q, log_p = z.log_softmax(1), t.log_softmax(1)
    q, p = log_q.exp(), log_p.exp()
    log_m = (0.5 * p + 0.5 * q).log()
    term = {
        "soft_ce": -p * log_q,
        "forward_kl": p * (log_p - log_q),
        "reverse_kl": q * (log_q - log_p),
        "jensen_shannon": 0.5 * p * (log_p - log_m) + 0.5 * q * (log_q - log_m),
    }[objective].sum()
    data = torch.nn.functional.cross_entropy(z, labels.to(z.device), reduction="sum")
    true = 0.5 * data + 0.5 * term
    wanted = torch.autograd.grad(true, (hd, wd))
    errors = [float((a - b).abs().max() / b.abs().max()) for a, b in zip(own, wanted, strict=True)]
    worst = max(abs(found.item() / true.item() - 1), *errors)
    if worst > 1e-3:  # TF32 is off
        raise AssertionError(f"{objective}: relative error {worst:.1e}")
    return {"relative_error": worst}


def _liger(tokens: int, vocab: int, hidden: int, taught: int) -> Iterator[Line]:
    """The peer, if it is here (make bench)."""
    try:
        from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss
    except ImportError:
        return
    if not torch.cuda.is_available():
        return
    module = LigerFusedLinearJSDLoss(beta=0.0, compiled=True, chunk_size=1024)
    h, w, th, tw, labels = _inputs(tokens, vocab, hidden, taught, torch.bfloat16)
    labels = labels.to(h.device)

    def call():
        module(h, w, th, tw, labels, None, None).backward()
        h.grad = w.grad = None

    yield {"peer": "Liger, compiled, chunk 1024", "V": vocab, "seconds": seconds(call, 5)}


def _share(flops_per_s: float, bar: float) -> Line:
    """The share of the peak and its bar, on a known GPU."""
    name = named(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
    if name is None:
        return {}
    return {"of_peak": flops_per_s / 1e12 / DEVICES[name].peak_tflops_bfloat16, "bar": bar}


def _settings(tiny: bool, **more) -> Distill:
    length = 16 if tiny else 4096
    return Distill(
        sequence_length=length, batch_tokens=4 * length, micro_batch_tokens=2 * length if tiny else length,
        precision="bfloat16", validation_tokens=2 * length, learning_rate=1e-4, **more,
    )  # fmt: skip


def _pair(tiny: bool) -> tuple[LlamaShape, LlamaShape]:
    """The largest pair that fits by the plan's count of memory."""
    if tiny or not torch.cuda.is_available():
        return TINY
    free = 0.9 * torch.cuda.get_device_properties(0).total_memory
    for pair in PAIRS:
        if _planned(*pair, _settings(tiny)) < free:
            return pair
    return PAIRS[-1]


def _planned(student: LlamaShape, teacher: LlamaShape, settings: Distill) -> int:
    models = as_model(student), as_model(teacher)
    return device_memory.training(models[0], settings, models[1], on_gpu=True).total


def step(tiny: bool) -> Iterator[Line]:
    """A real step, eager and compiled: share of the peak, memory against the plan, waits."""
    for compiled in (False, True):
        yield _step(tiny, compiled)


def _step(tiny: bool, compiled: bool) -> Line:
    from capgap.data.token_streams import Batch
    from capgap.engine import compiling, training
    from capgap.engine.forward import output_form
    from capgap.engine.models import llama_config, new_model
    from capgap.engine.objectives import Distillation
    from capgap.engine.parallel import DistContext
    from capgap.engine.rounded_linear import round_products

    at, (small, large) = device(), _pair(tiny)
    if at.type == "cuda":  # the peak of this step, not of an earlier one
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    if at.type == "cpu":
        compiling.COMPILER = "aot_eager"  # there may be no C++ compiler
    settings, dist = _settings(tiny, compile=compiled), DistContext(device=at)

    def build(shape: LlamaShape):
        with at:
            return new_model(llama_config(shape, max_positions=8192, bos_id=0, eos_id=0), 0)

    teacher, student = build(large).eval(), build(small).train()
    objective = Distillation(teacher, settings, small.vocab).on(dist)
    output_form(student)
    whole = dist.distribute(student, precision=settings.precision)
    rounding = round_products(student, settings.precision)
    training.prepare(student, settings)
    optimizer = training.make_optimizer(student, settings)
    length = settings.sequence_length
    ids = torch.randint(0, small.vocab, (settings.batch_tokens // length, length + 1))
    batch = Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), torch.zeros(len(ids)))
    if at.type == "cuda":
        batch = Batch(*(part.pin_memory() for part in batch))

    def call():
        return training._step(whole, optimizer, batch, settings, objective, 1e-4, dist, rounding)

    took = seconds(call, 3)
    models = as_model(small), as_model(large)
    flops = useful_flops(*models, length, settings.batch_tokens)
    line: Line = {"compiled": compiled, "student": models[0].params, "teacher": models[1].params}
    line |= {"seconds": took, "flops_per_s": flops / took} | _share(flops / took, 0.5)
    if at.type == "cuda":
        line["peak_bytes"] = torch.cuda.max_memory_allocated()
        line["planned_bytes"] = _planned(small, large, settings)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            call()
            torch.cuda.set_sync_debug_mode("default")
        waits = [w for w in caught if "synchroniz" in str(w.message)]
        micro = settings.batch_tokens // settings.micro_batch_tokens
        line["waits_of_a_micro_batch"] = len(waits) / micro
        line["bar_of_waits"] = 2
    return line


# name: (part, seconds that it may take)
PARTS: dict[str, tuple[Callable[[bool], Iterator[Line]], int]] = {
    "versions": (versions, 60),
    "rates": (rates, 60),
    "loss": (loss, 150),
    "step": (step, 240),
    "tests": (tests, 120),
    "streamed": (streamed, 120),
    "checkpoint": (checkpoint, 60),
    "sharded": (sharded, 60),
}


def calibration(found: dict[str, list[Line]], tiny: bool) -> GpuCalibration | None:
    """What the plan takes over: rates as shares of the data sheet, and how the step compares."""
    if not all(found.get(part) for part in ("versions", "rates", "step")):
        return None
    gpu = str(found["versions"][0].get("gpu", "cpu"))
    name = found["versions"][0].get("plan_device") or ("h100-80gb" if tiny else None)
    if name is None:
        return None
    [measured], known = found["rates"], DEVICES[str(name)]
    peak = 1e12 * known.peak_tflops_bfloat16
    reached = Reached(
        products=measured["product_flops_per_s"] / peak,
        attention=measured["attention_flops_per_s"] / peak,
        attention_backward=measured["attention_backward_flops_per_s"] / peak,
        bandwidth=measured["memory_bytes_per_s"] / (1e12 * known.memory_tb_per_s),
        launch_s=measured["launch_s"],
        compiled_launch_s=roofline.ASSUMED.compiled_launch_s,
    )
    small, large = _pair(tiny)
    eager = next(line for line in found["step"] if not line["compiled"])
    through = passes.trained(_settings(tiny), as_model(small), as_model(large))
    expected = _settings(tiny).batch_tokens * through.seconds_per_token(str(name), reached)
    return GpuCalibration(
        gpu=gpu,
        device=str(name),
        reached=reached,
        measured_over_roofline=float(eager["seconds"]) / expected,
    )


def run_part(name: str, tiny: bool, limit_s: float) -> tuple[list[Line], str]:
    """Lines of a part that ran in a process of its own, and why it failed, if it did."""
    words = [sys.executable, __file__, "--part", name, *(["--tiny"] if tiny else [])]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(words, stdout=out, stderr=err, start_new_session=True)
        try:
            status = process.wait(limit_s)
            reason = f"status {status}" if status else ""
        except subprocess.TimeoutExpired:
            reason = f"not finished after {limit_s:.0f} s"
            os.killpg(process.pid, signal.SIGKILL)  # and what it has started, like pytest
            process.wait()
        out.seek(0), err.seek(0)
        lines = [json.loads(x) for x in out.read().splitlines() if x.startswith('{"part"')]
        said = err.read().strip().splitlines()
    return lines, f"{reason}: {said[-1] if said else ''}" if reason else ""


def main() -> None:
    """Run all parts and write the calibration."""
    parser = argparse.ArgumentParser(
        description=__doc__.strip(), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="also write the lines there")
    parser.add_argument("--minutes", type=float, default=15.0, help="for all parts together")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, for a CPU")
    parser.add_argument("--only", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--part", choices=list(PARTS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        for line in PARTS[args.part][0](args.tiny):
            print(json.dumps({"part": args.part} | line), flush=True)
        return
    if not args.tiny and not torch.cuda.is_available():
        sys.exit("gpu_session: there is no GPU that PyTorch sees; --tiny runs all parts on a CPU")
    end, found, failed = time.monotonic() + 60 * args.minutes, {}, []

    def say(line: Line) -> None:
        print(json.dumps(line), flush=True)
        if args.out:
            with args.out.open("a") as file:
                file.write(json.dumps(line) + "\n")

    for name in args.only:
        left = end - time.monotonic()
        if left < 5:
            say({"part": name, "failed": "no time was left"})
            failed.append(name)
            continue
        begun = time.monotonic()
        limit_s = PARTS[name][1] * (10 if args.tiny else 1)  # beside other work on a CPU
        found[name], reason = run_part(name, args.tiny, min(left, limit_s))
        for line in found[name]:
            say(line)
        say({"part": name, "took_s": round(time.monotonic() - begun, 1), "failed": reason or None})
        failed += [name] if reason else []
    if result := calibration(found, args.tiny):
        # tiny sizes say nothing about a device, so the plan does not read theirs
        file = GPU_CALIBRATION.with_name("tiny-calibration.json") if args.tiny else GPU_CALIBRATION
        write_text(file, result.to_json())
        say({"part": "calibration", "file": str(file)} | result.model_dump(mode="json"))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
