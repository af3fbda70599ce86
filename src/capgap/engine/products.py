"""
Which library multiplies float32 matrices on a CPU: oneDNN where it is the faster one.

PyTorch takes MKL, which uses AVX-512 on Intel's processors alone. oneDNN, in the same build, uses it
on all: 2.2 times the speed on an AMD EPYC of 2024. PyTorch hands float32 products to oneDNN once it
may round factors to bfloat16, which oneDNN does where a processor has units for it (AMX) and nowhere
else. So it is allowed on processors with AVX-512 and no AMX, after a product whose factors would not
survive rounding has come out exact: float32 stays float32, summed in another order.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch

MKL, ONEDNN = "highest", "medium"  # of torch.set_float32_matmul_precision
ROUNDING_UNITS = ("amx_tile", "amx_bf16", "amx_fp16", "avx10_2")

_fast = False  # whether products are oneDNN's at the moment


@contextmanager
def fast_products() -> Iterator[None]:
    """Multiply by oneDNN inside, where that is faster and exact; nothing changes elsewhere.

    Passes forward and backward of one loss belong into it, or a layer that is computed again in the
    backward pass is so in other roundings.
    """
    global _fast
    if _fast or not onednn_is_better():
        yield
        return
    _fast = True
    try:
        with _allowed(ONEDNN):
            yield
    finally:
        _fast = False


@contextmanager
def _allowed(precision: str) -> Iterator[None]:
    """What PyTorch may do to the factors of a float32 product, inside."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def products_are_fast() -> bool:
    """Whether oneDNN multiplies at the moment."""
    return _fast


def dot(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Sum of the products of all entries, by MKL: oneDNN takes ten times as long for a product that
    has one row and one column."""
    with _allowed(MKL):
        return torch.dot(first.reshape(-1), second.reshape(-1))


@cache
def onednn_is_better() -> bool:
    """Whether oneDNN uses more of this processor than MKL and keeps float32.

    Not asked where there is a GPU, which then does the work and to which the permission would apply.
    """
    if torch.cuda.is_available():
        return False
    has = torch.cpu.get_capabilities()
    if not torch.backends.mkldnn.is_available() or not has.get("avx512_f"):
        return False
    return not any(has.get(unit) for unit in ROUNDING_UNITS) and _keeps_float32()


def _keeps_float32() -> bool:
    """Whether factors of 24 bits come out of a product by oneDNN unchanged."""
    factor = torch.rand(64, 64, generator=torch.Generator().manual_seed(0))
    with _allowed(ONEDNN):
        return torch.equal(factor @ torch.eye(64), factor)
