"""
Seconds of a step on a GPU by its roofline: every operation takes the longest of its launch, its bytes
at the memory's speed and its FLOPs at the speed of its kind.

The rates are assumptions of what kernels reach of a maker's data sheet (`ASSUMED`), stated for an H100
and taken as the same shares elsewhere. The counts of operations and bytes are those of a Llama of
transformers, layer by layer; `benchmarks/gpu_roofline.py` counts the same of the real step, operation by
operation on tensors without memory, and a test holds the two together.
"""

# M tokens of a micro-batch, T of a sequence, V vocabulary; d, a, k, f: channels of the residual stream,
# of queries, of keys and of the MLP

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import ceil
from typing import NamedTuple

from capgap.config.devices import DEVICES, Device
from capgap.config.shapes import gpu_chunk_tokens
from capgap.cost.architectures import TRAITS, Model
from capgap.records.run_records import Reached

BYTES = {"float32": 4, "bfloat16": 2}
# of a parameter: weight, gradient and both moments read; all but the gradient written
ADAMW_BYTES = 28
# of a parameter: the gradient read for the norm, then read and written to be scaled
CLIP_BYTES = 12
COPY_BYTES = 6  # of a parameter: read in float32, written in bfloat16 once a step
ADAMW_LAUNCHES = 40  # of the fused optimizer, the norm and the copy, which take lists of tensors


ASSUMED = Reached(
    products=0.69,
    attention=0.45,
    attention_backward=0.33,
    bandwidth=0.80,
    launch_s=5e-6,
    compiled_launch_s=2.5e-6,
)


class Rates(NamedTuple):
    """What one device reaches, in FLOP/s, bytes/s and seconds of a launch."""

    product: float
    attention: float
    attention_backward: float
    memory: float
    launch_s: float

    @classmethod
    def of(
        cls,
        device: Device,
        precision: str,
        reached: Reached = ASSUMED,
        *,
        compiled: bool = False,
    ) -> Rates:
        """The rates of a device for matmuls in a precision."""
        half = precision == "bfloat16" and device.peak_tflops_bfloat16 > device.peak_tflops_float32
        peak = 1e12 * (device.peak_tflops_bfloat16 if half else device.peak_tflops_float32)
        return cls(
            peak * reached.products,
            peak * reached.attention,
            peak * reached.attention_backward,
            1e12 * device.memory_tb_per_s * reached.bandwidth,
            reached.compiled_launch_s if compiled else reached.launch_s,
        )

    def seconds(
        self, bytes_: float, flops: float = 0.0, *, kind: str = "product", launches: float = 1
    ) -> float:
        """Seconds of operations of one kind that together move these bytes and do these FLOPs."""
        rate = getattr(self, kind)
        return max(launches * self.launch_s, bytes_ / self.memory, flops / rate)


class Shape(NamedTuple):
    """One micro-batch, and how its loss is computed."""

    tokens: int
    length: int  # of a sequence
    chunk: int | None = None  # tokens of the loss at a time; by device if None
    objective: str = "soft_ce"
    cached: bool = False  # targets of the teacher from disk


class Counts(NamedTuple):
    """What a layer does for each token besides matmuls and attention."""

    stream: float  # bytes a channel of the residual stream
    heads: float  # bytes a channel of queries and of keys
    neurons: float  # bytes a channel of the MLP
    launches: int
    small: int  # of these on tensors of one number a token, which take a launch whatever the device


# by precision, counted in the operations of the real step on FakeTensors
FORWARD = {"bfloat16": Counts(106, 36, 10, 33, 8), "float32": Counts(80, 40, 20, 26, 8)}
BACKWARD = {"bfloat16": Counts(294, 58, 18, 65, 14), "float32": Counts(252, 64, 36, 52, 14)}
# ASSUMED of compiled layers: all between two matmuls is one kernel, which reads and writes once
COMPILED_FORWARD = {"bfloat16": Counts(24, 4, 6, 6, 0), "float32": Counts(32, 8, 12, 6, 0)}
COMPILED_BACKWARD = {"bfloat16": Counts(32, 4, 12, 10, 0), "float32": Counts(48, 8, 24, 10, 0)}
# bytes an entry of the logits in bfloat16, and launches a chunk, of PyTorch's operations; float32 takes
# 16 bytes less, because nothing is widened
LOSS = {
    "soft_ce": (64, 29), "forward_kl": (84, 35), "reverse_kl": (104, 40), "jensen_shannon": (148, 46),
    "data": (38, 19), "cached": (46, 29),
}  # fmt: skip
WIDENING_BYTES = 16
# reads and writes of an entry by the kernel: of the student's logits and the teacher's
KERNEL_TOUCHES = {"data": 3, "soft_ce": 5, "forward_kl": 5, "reverse_kl": 7, "jensen_shannon": 7}
ENDS_FORWARD, ENDS_BACKWARD = 40, 108  # bytes a channel and token before and behind the layers
ENDS_LAUNCHES = 20
HEAD_FORWARD = {"bfloat16": 12, "float32": 0}  # bytes an entry of a head that learns: it is rounded
HEAD_BACKWARD = {"bfloat16": 20, "float32": 8}
ACCUMULATION_BYTES = 12  # of a parameter: gradients of a further micro-batch, added in float32


def _matrices(model: Model) -> list[tuple[int, int]]:
    """(inputs, outputs) of the matrices of a layer."""
    d, a, k, f = model.hidden, model.attention, model.key_value, model.neurons
    mlp = [(d, f)] * (2 if TRAITS[model.family].gated else 1)
    return [(d, a), (d, k), (d, k), (a, d), *mlp, (f, d)]


def _products(model: Model, tokens: int, rates: Rates, width: int, *, backward: bool) -> float:
    """Seconds of a layer's matmuls; the backward ones are by the input and, in float32, by the weight."""
    total = 0.0
    for inputs, outputs in _matrices(model):
        flops, passing = 2 * tokens * inputs * outputs, width * tokens * (inputs + outputs)
        weight = inputs * outputs
        total += rates.seconds(passing + width * weight, flops)
        if backward:
            total += rates.seconds(passing + 4 * weight, flops)
    return total


def _attention(model: Model, shape: Shape, rates: Rates, width: int, *, backward: bool) -> float:
    """Seconds of causal attention of a layer, in one kernel; the backward pass computes scores again."""
    products = 10 if backward else 4
    flops = products * shape.tokens * shape.length * model.attention / 2
    passes = 4 if backward else 2
    bytes_ = passes * width * shape.tokens * (model.attention + model.key_value)
    kind = "attention_backward" if backward else "attention"
    return rates.seconds(bytes_, flops, kind=kind, launches=2 if backward else 1)


def _others(model: Model, tokens: int, rates: Rates, counts: Counts) -> float:
    """Seconds of all else in a layer."""
    channels = counts.stream * model.hidden + counts.neurons * model.neurons
    channels += counts.heads * (model.attention + model.key_value)
    moving = rates.seconds(tokens * channels, launches=0)
    return max(counts.launches * rates.launch_s, moving + counts.small * rates.launch_s)


def layers(
    device: Device,
    model: Model,
    shape: Shape,
    precision: str,
    reached: Reached = ASSUMED,
    *,
    backward: bool = False,
    compiled: bool = False,
) -> float:
    """Seconds of one pass through the layers, without the loss."""
    rates = Rates.of(device, precision, reached, compiled=compiled)
    width = BYTES[precision]
    if compiled:
        counts = (COMPILED_BACKWARD if backward else COMPILED_FORWARD)[precision]
    else:
        counts = (BACKWARD if backward else FORWARD)[precision]
    layer = _products(model, shape.tokens, rates, width, backward=backward)
    layer += _attention(model, shape, rates, width, backward=backward)
    layer += _others(model, shape.tokens, rates, counts)
    ends = (ENDS_BACKWARD if backward else ENDS_FORWARD) * shape.tokens * model.hidden
    return model.layers * layer + rates.seconds(ends, launches=ENDS_LAUNCHES)


def loss(
    device: Device,
    student: Model,
    teacher: Model | None,
    shape: Shape,
    precision: str,
    reached: Reached = ASSUMED,
    *,
    kernel: bool = True,
) -> float:
    """Seconds of the loss and of its gradients, by chunks. kernel: one of Triton's, not PyTorch's."""
    rates, width = Rates.of(device, precision, reached), BYTES[precision]
    most = min(shape.chunk or gpu_chunk_tokens(student.vocab), shape.tokens)
    chunks = ceil(shape.tokens / most)
    tokens, vocab = ceil(shape.tokens / chunks), student.vocab
    kind = "cached" if shape.cached else "data" if teacher is None else shape.objective

    def product(channels: int, by_weight: bool = False) -> float:
        bytes_ = width * (tokens * vocab + tokens * channels) + width * vocab * channels
        bytes_ += 8 * vocab * channels if by_weight else 0
        return rates.seconds(bytes_, 2 * tokens * vocab * channels)

    chunk = 2 * product(student.hidden) + product(student.hidden, by_weight=True)
    if teacher is not None:
        chunk += product(teacher.hidden)
    if kernel and kind in KERNEL_TOUCHES:
        chunk += rates.seconds(KERNEL_TOUCHES[kind] * width * tokens * vocab, launches=3)
    else:
        of_entry, launches = LOSS[kind]
        of_entry -= WIDENING_BYTES if precision == "float32" else 0
        chunk += rates.seconds(of_entry * tokens * vocab, launches=launches)
    return chunks * chunk


def micro_batch(
    device: Device,
    student: Model,
    teacher: Model | None,
    shape: Shape,
    *,
    precision: str = "bfloat16",
    teacher_precision: str | None = None,
    compiled: bool = False,
    kernel: bool = True,
    reached: Reached = ASSUMED,
) -> dict[str, float]:
    """Seconds of the parts of a micro-batch: teacher, student, loss, backward. teacher: None without
    one, and with cached targets. kernel: see `loss`."""
    found = {}
    options = {"reached": reached, "compiled": compiled}
    if teacher is not None:
        of_teacher = teacher_precision or precision
        found["teacher"] = layers(device, teacher, shape, of_teacher, **options)
    rates = Rates.of(device, precision, reached)
    head = student.vocab * student.hidden
    found["student"] = layers(device, student, shape, precision, **options)
    found["student"] += rates.seconds(HEAD_FORWARD[precision] * head)
    found["loss"] = loss(device, student, teacher, shape, precision, reached, kernel=kernel)
    found["backward"] = layers(device, student, shape, precision, backward=True, **options)
    found["backward"] += rates.seconds(HEAD_BACKWARD[precision] * head)
    return found


def update(device: Device, student: Model, micro_batches: int, reached: Reached = ASSUMED) -> float:
    """Seconds of a step besides its micro-batches: adding up gradients, their norm, AdamW, rounding."""
    bytes_ = ADAMW_BYTES + CLIP_BYTES + COPY_BYTES + ACCUMULATION_BYTES * (micro_batches - 1)
    rates = Rates.of(device, "float32", reached)
    return rates.seconds(bytes_ * student.params, launches=ADAMW_LAUNCHES)


@dataclass(frozen=True)
class Pass:
    """How the tokens of a piece of work go through the models."""

    kind: str  # train, evaluate or score
    model: Model
    shape: Shape
    precision: str
    teacher: Model | None = None  # online
    teacher_precision: str = "float32"
    batch_tokens: int = 0  # of a step
    compiled: bool = False
    checkpointed: bool = False

    def seconds_per_token(self, device: str, reached: Reached = ASSUMED) -> float:
        """Seconds of one token on one device."""
        return _seconds_per_token(self, DEVICES[device], reached)


@cache
def _seconds_per_token(one: Pass, device: Device, reached: Reached) -> float:
    options = {"reached": reached, "compiled": one.compiled}
    forward = layers(device, one.model, one.shape, one.precision, **options)
    if one.kind == "train":
        parts = micro_batch(
            device, one.model, one.teacher, one.shape, precision=one.precision,
            teacher_precision=one.teacher_precision, **options,
        )  # fmt: skip
        again = forward if one.checkpointed else 0.0
        micro_batches = max(1, one.batch_tokens // one.shape.tokens)
        step = update(device, one.model, micro_batches, reached) / micro_batches
        return (sum(parts.values()) + again + step) / one.shape.tokens
    rates, width = Rates.of(device, one.precision, reached), BYTES[one.precision]
    logits, head = one.shape.tokens * one.model.vocab, one.model.vocab * one.model.hidden
    head_s = rates.seconds(width * (logits + head), 2 * one.shape.tokens * head)
    if one.kind == "score":  # forward, then each layer again and backward
        backward = layers(device, one.model, one.shape, one.precision, backward=True, **options)
        return (2 * forward + backward + 3 * head_s) / one.shape.tokens
    return (forward + head_s + rates.seconds(8 * width * logits)) / one.shape.tokens
