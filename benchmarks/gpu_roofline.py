"""
What would a step take on a GPU? A roofline of the real step, without a GPU.

    python benchmarks/gpu_roofline.py
    python benchmarks/gpu_roofline.py --device a100-80gb --only minima

The engine's own step is run on tensors that have shapes and no memory, and every operation that it
starts is counted: it takes the longest of its launch, its bytes at the memory's speed and its FLOPs at
the speed of its kind. The speeds are ASSUMPTIONS (`ASSUMED` in src/capgap/cost/roofline.py), nothing
here was measured on a GPU. The formula by layers that `capgap plan` uses for the same step is printed
as well: the two should agree. MFU is that of the plan's FLOPs (student three times, teacher
once, head and attention included) at the device's peak.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from capgap.config.devices import DEVICES
from capgap.config.shapes import LlamaShape
from capgap.cost.architectures import Model
from capgap.cost.roofline import Rates, Shape, micro_batch
from capgap.engine import forward, onednn_matmul
from capgap.engine.device_path import as_on_gpu
from capgap.engine.losses import ModelOutput, PartialTargets, data_loss, mixture_loss
from capgap.engine.models import llama_config, new_model
from capgap.engine.rounded_linear import round_products

VIEWS = set(
    "view _unsafe_view t transpose permute slice select unsqueeze squeeze expand detach alias split "
    "as_strided unbind unflatten reshape _reshape_alias split_with_sizes lift_fresh new_empty empty "
    "empty_like empty_strided empty_permuted unfold view_as device sym_size sym_stride sym_numel".split()
)
STUDENT = LlamaShape(24, 3072, 24, 24, 128, 8192, 32000, False)
PILOT = LlamaShape(12, 640, 10, 10, 64, 2560, 50304, False)
CASES = {  # student, teacher, tokens of a sequence and of a micro-batch
    "minima: 3B from 7B": (STUDENT, LlamaShape(32, 4096, 32, 32, 128, 11008, 32000, False), 4096, 4096),
    "minima: 3B from 70B": (STUDENT, LlamaShape(80, 8192, 64, 8, 128, 28672, 32000, False), 4096, 4096),
    "minima: 3B, cached targets": (STUDENT, None, 4096, 4096),
    "1.2B alone": (LlamaShape(24, 2048, 16, 16, 128, 5504, 32000, False), None, 4096, 8192),
    "pilot: 64M from 410M": (PILOT, LlamaShape(24, 1024, 16, 16, 64, 2816, 50304, False), 512, 8192),
}  # fmt: skip


class Counted(NamedTuple):
    """Seconds, launches, FLOPs and bytes of one part of a step."""

    seconds: float
    launches: int
    flops: float
    bytes: float


class Trace(TorchDispatchMode):
    """Prices every operation inside, by the part of the step that is named at the time."""

    def __init__(self, rates: Rates, wide: Rates):
        super().__init__()
        self.rates, self.wide = rates, wide  # of rounded products, and of those in float32
        self.part = ""
        self.totals: dict[str, list[float]] = {}
        self.waits = Counter()

    def add(self, bytes_: float, flops: float = 0.0, kind: str = "product", wide: bool = False):
        """Count one operation."""
        rates = self.wide if wide else self.rates
        total = self.totals.setdefault(self.part, [0.0, 0, 0.0, 0.0])
        for i, value in enumerate((rates.seconds(bytes_, flops, kind=kind), 1, flops, bytes_)):
            total[i] += value

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = operation._overloadpacket.__name__
        if name in ("_local_scalar_dense", "is_nonzero"):
            self.waits[self.part] += 1
            return True
        result = operation(*args, **kwargs)
        if name in VIEWS or str(operation).startswith("prim"):
            return result
        tensors = {id(x): x for x in tree_leaves((args, kwargs, result)) if torch.is_tensor(x)}
        moved = sum(x.numel() * x.element_size() for x in tensors.values())
        flops, wide = 0.0, False
        packet = getattr(torch.ops.aten, name.rstrip("_"), None)  # addmm_ is addmm in place
        if packet in flop_registry:
            plain = [x for x in args if not isinstance(x, torch.dtype)]  # out_dtype
            flops = flop_registry[packet](*plain, **kwargs, out_val=result)
            wide = plain[-1].dtype == torch.float32  # the last factor; a sum may be wider
        self.add(moved, flops, wide=wide)
        return result

    def parts(self) -> dict[str, Counted]:
        """What was counted, by part."""
        return {name: Counted(*total) for name, total in self.totals.items()}


@contextmanager
def flash_attention(trace: Trace) -> Iterator[None]:
    """Attention as one kernel that reads queries, keys and values once, as a GPU has it."""

    class Flash(torch.autograd.Function):
        @staticmethod
        def forward(ctx, query, key, value):
            ctx.save_for_backward(query, key, value)
            batch, heads, length, width = query.shape
            flops = 4 * batch * heads * length * length * width / 2
            trace.add(2 * (query.nbytes + key.nbytes), flops, "attention")
            return torch.empty_like(query)

        @staticmethod
        def backward(ctx, grad):
            query, key, value = ctx.saved_tensors
            batch, heads, length, width = query.shape
            flops = 10 * batch * heads * length * length * width / 2
            trace.add(4 * (query.nbytes + key.nbytes), flops, "attention_backward")
            return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)

    def attend(query, key, value, *_, **__):
        half = torch.is_autocast_enabled("cpu")
        return Flash.apply(*(x.bfloat16() if half else x for x in (query, key, value)))

    with mock.patch("torch.nn.functional.scaled_dot_product_attention", attend):
        yield


def build(shape: LlamaShape):
    """A random Llama, of tensors without memory inside a FakeTensorMode."""
    model = new_model(llama_config(shape, max_positions=8192, bos_id=0, eos_id=0), 0)
    forward._FORMS[model] = forward.OutputForm()  # a probe would need numbers
    return model


def traced(
    student: LlamaShape,
    teacher: LlamaShape | None,
    length: int,
    tokens: int,
    *,
    device: str,
    precision: str = "bfloat16",
    objective: str = "soft_ce",
    chunk: int | None = None,
    cached: bool = False,
) -> dict[str, Counted]:
    """The parts of one micro-batch of the real step, operation by operation."""
    rates = Rates.of(DEVICES[device], precision), Rates.of(DEVICES[device], "float32")
    trace = Trace(*rates)
    beta = 0.5 if objective == "jensen_shannon" else None
    with (
        mock.patch.object(onednn_matmul, "onednn_is_better", return_value=False),
        mock.patch("capgap.engine.rounded_linear.has_wide_products", return_value=True),
        mock.patch("capgap.engine.device_path.has_wide_products", return_value=True),
        FakeTensorMode(allow_non_fake_inputs=True),
        as_on_gpu(),
        flash_attention(trace),
    ):
        learner = build(student).train()
        round_products(learner, precision)
        frozen = None if teacher is None else build(teacher).eval()
        if frozen is not None:
            forward.hold_frozen(frozen, precision)
        ids = torch.randint(0, student.vocab, (tokens // length, length))
        labels = torch.randint(0, student.vocab, (tokens,))
        with trace, mock.patch("capgap.engine.losses._counted", lambda labels, _: (labels, None)):
            targets: ModelOutput | PartialTargets | None = None
            if frozen is not None:
                trace.part = "teacher"
                with torch.no_grad():
                    targets = forward.model_output(frozen, ids, precision=precision)
            elif cached:
                ids_NK = torch.zeros(tokens, 32, dtype=torch.int64)
                targets = PartialTargets(ids_NK, torch.ones(tokens, 32) / 32)
            trace.part = "student"
            output = forward.model_output(learner, ids, precision=precision)
            trace.part = "loss"
            if targets is None:
                loss, _ = data_loss(output.hidden, output.head, labels, chunk=chunk)
            else:
                loss, _ = mixture_loss(
                    *(output.hidden, output.head, labels, targets),
                    objective=objective, beta=beta, chunk=chunk,
                )  # fmt: skip
            trace.part = "backward"
            loss.backward()
        if any(trace.waits.values()):
            raise RuntimeError(f"a micro-batch waits for the device: {dict(trace.waits)}")
    return trace.parts()


def as_model(shape: LlamaShape) -> Model:
    """The shape as the plan counts it."""
    params = shape.params()
    return Model(
        "llama", shape.layers, shape.hidden, shape.heads * shape.head_dim,
        shape.kv_heads * shape.head_dim, shape.head_dim, shape.intermediate, shape.vocab,
        params["norm"], params["non_embedding"], params["embedding"],
    )  # fmt: skip


def useful_flops(student: Model, teacher: Model | None, length: int, tokens: int) -> float:
    """FLOPs of a micro-batch as the plan counts them."""
    of_teacher = teacher.forward_flops(length) if teacher else 0
    return tokens * (3 * student.forward_flops(length) + of_teacher)


def main() -> None:
    """Print every case, the real operations beside the plan's formula."""
    warnings.filterwarnings("ignore")
    parser = argparse.ArgumentParser(
        description=__doc__.strip(), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="h100-80gb", choices=list(DEVICES))
    parser.add_argument("--only", default="", help="cases whose name starts so")
    parser.add_argument(
        "--chunks", nargs="*", type=int, default=[], help="further chunks of the loss"
    )
    parser.add_argument("--objective", default="soft_ce")
    parser.add_argument("--json", action="store_true", help="one line a case")
    args = parser.parse_args()
    peak = 1e12 * DEVICES[args.device].peak_tflops_bfloat16
    for name, (student, teacher, length, tokens) in CASES.items():
        if not name.startswith(args.only):
            continue
        cached = "cached" in name
        models = as_model(student), teacher and as_model(teacher)
        flops = useful_flops(*models, length, tokens)
        for chunk in [None, *args.chunks]:
            shape = Shape(tokens, length, chunk=chunk, objective=args.objective, cached=cached)
            counted = traced(
                student, teacher, length, tokens,
                device=args.device, objective=args.objective, chunk=chunk, cached=cached,
            )  # fmt: skip
            row = {"case": name, "chunk": chunk or "by device"}
            row["real operations"] = {k: round(1e3 * v.seconds, 2) for k, v in counted.items()}
            total = sum(v.seconds for v in counted.values())
            row["MFU, eager, PyTorch's loss"] = round(flops / total / peak, 3)
            for title, options in {
                "formula, the same": {"kernel": False},
                "formula, the loss's kernel": {},
                "formula, kernel and compiled": {"compiled": True},
            }.items():
                found = micro_batch(DEVICES[args.device], *models, shape, **options)
                row[title] = {k: round(1e3 * v, 2) for k, v in found.items()}
                row[f"MFU, {title}"] = round(flops / sum(found.values()) / peak, 3)
            print(json.dumps(row) if args.json else lines(row), flush=True)


def lines(row: dict) -> str:
    """A case for the eye; milliseconds of a micro-batch by part."""
    return f"\n{row.pop('case')}, chunk {row.pop('chunk')} (ms of a micro-batch)\n" + "\n".join(
        f"  {key}: {value}" for key, value in row.items()
    )


if __name__ == "__main__":
    main()
