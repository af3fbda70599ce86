"""
Use oneDNN for float32 matmuls on CPUs on which it is faster.

PyTorch uses MKL, which uses AVX-512 on Intel processors only. oneDNN, in the same build, uses it on
all, and is 2.2 times as fast on an AMD EPYC of 2024. PyTorch passes float32 matmuls to oneDNN only
if rounding factors to bfloat16 is allowed, which oneDNN does only on processors with AMX. So oneDNN
is used on processors with AVX-512 that are not Intel's and have no AMX, after a test product with
factors that rounding would change has come out exact. Results stay float32, summed in another order.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch

SETTING = torch.backends.mkldnn.matmul  # pyright: ignore[reportAttributeAccessIssue]
MKL, ONEDNN = "ieee", "bf16"  # values of PyTorch's setting that select each library
ROUNDING_UNITS = ("amx_tile", "amx_bf16", "amx_fp16", "avx10_2")

_in_use = False  # whether oneDNN multiplies at the moment


@contextmanager
def use_onednn() -> Iterator[None]:
    """Within this context oneDNN multiplies matrices if that is faster and exact on this processor.

    Forward and backward pass of a loss must run in the same context, because checkpointed layers are
    recomputed in the backward pass and must save the same tensors. Not for several threads.
    """
    global _in_use
    if _in_use or not onednn_is_better():
        yield
        return
    from capgap.engine.attention import whole_attention  # which uses these matmuls

    _in_use = True
    try:
        with _multiplied_by(ONEDNN), whole_attention():
            yield
    finally:
        _in_use = False


@contextmanager
def _multiplied_by(library: str) -> Iterator[None]:
    before, SETTING.fp32_precision = SETTING.fp32_precision, library
    try:
        yield
    finally:
        SETTING.fp32_precision = before


def onednn_in_use() -> bool:
    """Whether oneDNN multiplies at the moment."""
    return _in_use


def dot(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Sum of the products of all entries. Never uses oneDNN, which is ten times slower for this."""
    first, second = first.reshape(-1), second.reshape(-1)
    if not _in_use:
        return torch.dot(first, second)
    with _multiplied_by(MKL):
        return torch.dot(first, second)


@cache
def onednn_is_better() -> bool:
    """Whether oneDNN uses more of this processor than MKL and keeps float32.

    False if there is a GPU, which does the work.
    """
    has = torch.cpu.get_capabilities()
    if torch.cuda.is_available() or not torch.backends.mkldnn.is_available():
        return False
    if not has.get("avx512_f") or "intel" in str(has.get("cpu_name")).lower():
        return False
    return not any(has.get(unit) for unit in ROUNDING_UNITS) and keeps_float32()


def keeps_float32() -> bool:
    """Whether oneDNN's matmuls keep the 24 bits of float32 factors on both sides."""
    cpu = torch.device("cpu")
    factor = torch.rand(64, 64, generator=torch.Generator().manual_seed(0), device=cpu)
    one = torch.eye(64, device=cpu)
    with torch.autocast("cpu", enabled=False), _multiplied_by(ONEDNN):
        return torch.equal(factor @ one, factor) and torch.equal(one @ factor, factor)
