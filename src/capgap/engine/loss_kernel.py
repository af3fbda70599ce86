"""
The distillation loss of a chunk in one Triton kernel, for a GPU: logits become their gradient in place.

One program a token. It reads the student's and the teacher's logits for the maxima and the sums of
exponentials of both, for the divergences once more for their sums, and a last time to write the
gradient over the student's logits. So they are read and written in their own precision, computed with
in float32, and nothing of the size of the logits is made. The formulas are those of `losses`, which
computes the same by PyTorch's operations if there is no Triton, on a CPU, and for partial targets.
"""

# C tokens of a chunk, V entries of the vocabulary

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

try:
    import triton
    import triton.language as tl
except ImportError:  # it comes with the builds of PyTorch for a GPU
    triton = None

if TYPE_CHECKING:
    from capgap.engine.losses import Term

BLOCK = 4096  # entries of the vocabulary at a time, at most
DATA, SOFT_CE, FORWARD_KL, REVERSE_KL, JENSEN_SHANNON = range(5)
KINDS = {
    "soft_ce": SOFT_CE,
    "forward_kl": FORWARD_KL,
    "reverse_kl": REVERSE_KL,
    "jensen_shannon": JENSEN_SHANNON,
}


def possible(logits: torch.Tensor) -> bool:
    """Whether there is Triton, and logits of this kind can be computed with in float32."""
    return triton is not None and logits.dtype in (torch.float32, torch.bfloat16, torch.float16)


if triton is not None:

    @triton.jit
    def _softened(logits, cap, CAPPED: tl.constexpr):
        """Logits behind their soft cap; tanh by its exponential, which cannot overflow."""
        if CAPPED:
            small = tl.exp(-2.0 * tl.abs(logits / cap))
            size = (1.0 - small) / (1.0 + small)
            logits = cap * tl.where(logits < 0, -size, size)
        return logits

    @triton.jit
    def _differentiate(
        logits_ptr,
        teacher_ptr,
        labels_ptr,
        sums_ptr,
        vocab,
        stride,
        teacher_stride,
        weight,
        temperature,
        beta,
        cap,
        KIND: tl.constexpr,
        CAPPED: tl.constexpr,
        BLOCK: tl.constexpr,
    ):
        row = tl.program_id(0).to(tl.int64)
        logits_ptr += row * stride
        teacher_ptr += row * teacher_stride
        label = tl.load(labels_ptr + row)
        at_label = _softened(tl.load(logits_ptr + label).to(tl.float32), cap, CAPPED)
        highest = -float("inf")
        total = 0.0  # of exponentials of logits, less their maximum
        soft_total = 0.0  # the same at the temperature
        highest_taught = -float("inf")
        total_taught = 0.0
        for start in range(0, vocab, BLOCK):
            at = start + tl.arange(0, BLOCK)
            there = at < vocab
            z = tl.load(logits_ptr + at, mask=there, other=0.0).to(tl.float32)
            z = tl.where(there, _softened(z, cap, CAPPED), -float("inf"))
            new = tl.maximum(highest, tl.max(z, 0))
            total = total * tl.exp(highest - new) + tl.sum(tl.exp(z - new), 0)
            if KIND != 0:
                soft = tl.exp((highest - new) / temperature)
                soft_total = soft_total * soft + tl.sum(tl.exp((z - new) / temperature), 0)
                t = tl.load(teacher_ptr + at, mask=there, other=-float("inf")).to(tl.float32)
                t = t / temperature
                new_taught = tl.maximum(highest_taught, tl.max(t, 0))
                total_taught = total_taught * tl.exp(highest_taught - new_taught)
                total_taught += tl.sum(tl.exp(t - new_taught), 0)
                highest_taught = new_taught
            highest = new
        log_sum = highest + tl.log(total)
        soft_log_sum = 0.0
        log_sum_taught = 0.0
        if KIND != 0:
            soft_log_sum = highest / temperature + tl.log(soft_total)
            log_sum_taught = highest_taught + tl.log(total_taught)
        inner = 0.0  # sum q r
        rest = 0.0  # of Jensen-Shannon: sum p log(p / m)
        if KIND >= 3:
            for start in range(0, vocab, BLOCK):
                at = start + tl.arange(0, BLOCK)
                there = at < vocab
                z = tl.load(logits_ptr + at, mask=there, other=0.0).to(tl.float32)
                t = tl.load(teacher_ptr + at, mask=there, other=0.0).to(tl.float32)
                log_q = _softened(z, cap, CAPPED) / temperature - soft_log_sum
                log_p = t / temperature - log_sum_taught
                q = tl.where(there, tl.exp(log_q), 0.0)
                p = tl.where(there, tl.exp(log_p), 0.0)
                if KIND == 4:
                    log_m = tl.log(tl.maximum(beta * p + (1.0 - beta) * q, 1.1754944e-38))
                    inner += tl.sum(q * (log_q - log_m), 0)
                    rest += tl.sum(p * (log_p - log_m), 0)
                else:
                    inner += tl.sum(q * (log_q - log_p), 0)
        value = 0.0  # of the teacher's term
        for start in range(0, vocab, BLOCK):
            at = start + tl.arange(0, BLOCK)
            there = at < vocab
            z = tl.load(logits_ptr + at, mask=there, other=0.0).to(tl.float32)
            z = _softened(z, cap, CAPPED)
            gradient = tl.exp(z - log_sum) - tl.where(at == label, 1.0, 0.0)
            if KIND != 0:
                t = tl.load(teacher_ptr + at, mask=there, other=0.0).to(tl.float32)
                log_q = z / temperature - soft_log_sum
                log_p = t / temperature - log_sum_taught
                q = tl.where(there, tl.exp(log_q), 0.0)
                p = tl.where(there, tl.exp(log_p), 0.0)
                if KIND == 1:
                    value -= tl.sum(p * log_q, 0)
                    taught = q - p
                elif KIND == 2:
                    value += tl.sum(p * (log_p - log_q), 0)
                    taught = q - p
                elif KIND == 3:
                    taught = q * (log_q - log_p - inner)
                else:
                    log_m = tl.log(tl.maximum(beta * p + (1.0 - beta) * q, 1.1754944e-38))
                    taught = (1.0 - beta) * q * (log_q - log_m - inner)
                gradient = (1.0 - weight) * gradient + weight * temperature * taught
            if CAPPED:
                gradient *= 1.0 - (z / cap) * (z / cap)
            tl.store(logits_ptr + at, gradient.to(logits_ptr.dtype.element_ty), mask=there)
        if KIND == 3:
            value = inner
        elif KIND == 4:
            value = (1.0 - beta) * inner + beta * rest
        tl.store(sums_ptr + 2 * row, log_sum - at_label)
        tl.store(sums_ptr + 2 * row + 1, temperature * temperature * value)


def _launch(logits_CV, teacher_CV, labels_C, kind: int, term: Term | None, cap: float | None):
    """Turn logits into the gradient; returns the sums of data and teacher's term over the tokens."""
    tokens, vocab = logits_CV.shape
    sums_C2 = logits_CV.new_empty(tokens, 2, dtype=torch.float32)
    block = min(BLOCK, triton.next_power_of_2(vocab))
    _differentiate[(tokens,)](
        logits_CV,
        teacher_CV,
        labels_C,
        sums_C2,
        vocab,
        logits_CV.stride(0),
        teacher_CV.stride(0),
        0.0 if term is None else term.weight,
        1.0 if term is None else term.temperature,
        0.0 if term is None or term.beta is None else term.beta,
        1.0 if cap is None else cap,
        KIND=kind,
        CAPPED=cap is not None,
        BLOCK=block,
        num_warps=8 if block >= 2048 else 4,
    )
    return sums_C2.sum(0)


def data_(logits_CV, labels_C, _targets, cap: float | None) -> torch.Tensor:
    """Turn logits into the gradient of the cross-entropy against the data; returns its sum, nats.

    cap: of the logits, which are those before it. The gradient is with respect to these.
    """
    return _launch(logits_CV, logits_CV, labels_C, DATA, None, cap)[:1]


def mixture_(logits_CV, labels_C, targets, cap: float | None, *, term: Term) -> torch.Tensor:
    """Turn logits into the gradient of the mixture; returns the sums of its two parts, nats.

    targets: the teacher's logits (C x V), alone in a list; cap: see `data_`.
    """
    return _launch(logits_CV, targets[0], labels_C, KINDS[term.objective], term, cap)
