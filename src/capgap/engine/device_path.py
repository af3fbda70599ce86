"""
Which of two ways a computation takes: by blocks that fit a CPU's cache, or by few large operations.

A GPU has its own memory and starts operations at a cost, so there few and large ones are best. The way
of a GPU can be taken on a CPU too, so that it is tested and counted without one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch

_as_gpu = False


def by_cache(tensor: torch.Tensor) -> bool:
    """Whether computing with this tensor goes by blocks that fit a CPU's cache."""
    return tensor.device.type == "cpu" and not _as_gpu


@contextmanager
def as_on_gpu() -> Iterator[None]:
    """Within this context tensors of the CPU are computed with as those of a GPU are.

    For tests and for counting operations; it is slow on a CPU. Not for several threads.
    """
    global _as_gpu
    before, _as_gpu = _as_gpu, True
    try:
        yield
    finally:
        _as_gpu = before


def moved(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on a device; from the CPU to a GPU through pinned memory, so that nothing waits."""
    if tensor.device.type == "cpu" and device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


@cache
def has_wide_products(device: torch.device) -> bool:
    """Whether products of rounded factors can be added to a float32 tensor, in one operation.

    Tried with numbers whose sum bfloat16 cannot hold, because builds of PyTorch differ; there is no
    such operation on a CPU.
    """
    if device.type != "cuda":
        return False
    ones = torch.ones(16, 16, dtype=torch.bfloat16, device=device)
    total = torch.full((16, 16), 1000.0, device=device)
    try:
        torch.addmm(total, ones, ones, out_dtype=torch.float32, out=total)
    except (RuntimeError, TypeError):
        return False
    return bool((total == 1016.0).all())


def add_product_(total: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> None:
    """Add the product of two rounded matrices to a float32 one, in float32 if the device can."""
    if has_wide_products(total.device):
        torch.addmm(total, first, second, out_dtype=torch.float32, out=total)
    else:
        total += first @ second
