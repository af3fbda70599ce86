"""Memory of weights that are mapped (mmap) from a file."""

from __future__ import annotations

import ctypes
import mmap
from pathlib import Path

import torch

MAPS = Path("/proc/self/maps")  # Linux only


def release(tensor: torch.Tensor) -> None:
    """Give back the memory of a tensor that is a view of a mapped safetensors file.

    Its values are read again from the file when they are used, so it must not have been written to.
    Only whole pages are released, and tensors in other memory are left alone. The C library's free
    memory is returned to the system as well.
    """
    start = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if start < end and any(first <= start and end <= last for first, last in _mapped_files()):
        libc = ctypes.CDLL(None)
        libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED)
        libc.malloc_trim(0)


def _mapped_files() -> list[tuple[int, int]]:
    """First and last address of every mapping of a safetensors file; empty if not on Linux."""
    if not MAPS.is_file():
        return []
    lines = (line.split(maxsplit=5) for line in MAPS.read_text().splitlines())
    ranges = [line[0].split("-") for line in lines if line[-1].endswith(".safetensors")]
    return [(int(first, 16), int(last, 16)) for first, last in ranges]
