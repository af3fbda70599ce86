"""
Which library multiplies float32 matrices on a CPU: oneDNN where it is the faster one.

PyTorch takes MKL, which uses AVX-512 on Intel's processors alone. oneDNN, in the same build, uses it
on all: 2.2 times the speed on an AMD EPYC of 2024. PyTorch hands float32 products to oneDNN once it
may round factors to bfloat16, which oneDNN does where a processor has units for it (AMX) and nowhere
else. So it is allowed on processors with AVX-512 that are not Intel's and have no AMX, after products
whose factors would not survive rounding have come out exact: float32 stays float32, summed in another
order.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch

SETTING = torch.backends.mkldnn.matmul  # pyright: ignore[reportAttributeAccessIssue]
MKL, ONEDNN = "ieee", "bf16"  # what the setting may be for either to multiply
ROUNDING_UNITS = ("amx_tile", "amx_bf16", "amx_fp16", "avx10_2")

_fast = False  # whether products are oneDNN's at the moment


@contextmanager
def fast_products() -> Iterator[None]:
    """Multiply by oneDNN inside, where that is faster and exact; nothing changes elsewhere.

    The passes forward and backward of one loss belong into one, or checkpointed layers, which are
    computed again in the backward pass, do not find what they saved. For one thread of a process.
    """
    global _fast
    if _fast or not onednn_is_better():
        yield
        return
    from capgap.engine.attention import whole_attention  # which is computed by these products

    _fast = True
    try:
        with _multiplied_by(ONEDNN), whole_attention():
            yield
    finally:
        _fast = False


@contextmanager
def _multiplied_by(library: str) -> Iterator[None]:
    before, SETTING.fp32_precision = SETTING.fp32_precision, library
    try:
        yield
    finally:
        SETTING.fp32_precision = before


def products_are_fast() -> bool:
    """Whether oneDNN multiplies at the moment."""
    return _fast


def dot(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Sum of the products of all entries, never by oneDNN, which takes ten times as long for a product
    of one row and one column."""
    first, second = first.reshape(-1), second.reshape(-1)
    if not _fast:
        return torch.dot(first, second)
    with _multiplied_by(MKL):
        return torch.dot(first, second)


@cache
def onednn_is_better() -> bool:
    """Whether oneDNN uses more of this processor than MKL and keeps float32.

    Not where there is a GPU: it does the work.
    """
    has = torch.cpu.get_capabilities()
    if torch.cuda.is_available() or not torch.backends.mkldnn.is_available():
        return False
    if not has.get("avx512_f") or "intel" in str(has.get("cpu_name")).lower():
        return False
    return not any(has.get(unit) for unit in ROUNDING_UNITS) and _keeps_float32()


def _keeps_float32() -> bool:
    """Whether factors of 24 bits, on either side, come out of products by oneDNN unchanged."""
    cpu = torch.device("cpu")
    factor = torch.rand(64, 64, generator=torch.Generator().manual_seed(0), device=cpu)
    one = torch.eye(64, device=cpu)
    with torch.autocast("cpu", enabled=False), _multiplied_by(ONEDNN):
        return torch.equal(factor @ one, factor) and torch.equal(one @ factor, factor)
