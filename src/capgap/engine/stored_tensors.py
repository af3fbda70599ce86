"""
The tensors of a model folder by the names they have in the model, read one at a time.

They are read into memory of their own (`pread`) instead of being mapped: a mapping that may be
written counts against a limit on memory (RLIMIT_DATA) with its whole length.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch

from capgap.engine.model_class import IN_WRAPPER
from capgap.engine.weight_files import Weights
from capgap.errors import CapgapError

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
INTEGERS = {"I64": torch.int64, "I32": torch.int32, "U8": torch.uint8, "BOOL": torch.bool}


class Stored(NamedTuple):
    """Where a tensor lies."""

    path: Path
    start: int  # byte of the file
    shape: tuple[int, ...]
    dtype: str  # as safetensors writes it


class StoredTensors:
    """The tensors of a folder whose names are those of a model, `names`, up to a prefix.

    prefix: what names of the model begin with, and those of a file may lack (`base_model_prefix`).
    """

    def __init__(
        self, folder: Path, weights: Weights, names: Iterable[str], *, prefix: str, wrapped: bool
    ):
        self.folder, wanted = folder, set(names)
        self.places: dict[str, Stored] = {}
        self.unexpected: list[str] = []
        for path in weights.files:
            for key, place in _places(path).items():
                name = _in_wrapper(key) if wrapped else key
                spellings = (name, f"{prefix}.{name}", name.removeprefix(f"{prefix}."))
                name = next((n for n in spellings if n in wanted), None)
                if name is None:
                    self.unexpected.append(key)
                else:
                    self.places[name] = place
        self.checked: set[str] = set()

    def nbytes(self, names: Iterable[str]) -> int:
        """Bytes that these tensors have in the file."""
        return sum(_size(self.places[name]) for name in names)

    def read(self, name: str, *, pinned: bool = False) -> torch.Tensor:
        """A tensor as it is stored. pinned: into memory that a GPU copies from by itself.

        Raises CapgapError if the file ends too early, or a number is NaN or infinite.
        """
        path, start, shape, dtype = self.places[name]
        kind = (DTYPES | INTEGERS).get(dtype)
        if kind is None:
            raise CapgapError(
                f"{path}: {name} is stored as {dtype}, which cannot be read by layers; "
                f"use one of {', '.join(DTYPES)}"
            )
        tensor = torch.empty(shape, dtype=kind, device="cpu", pin_memory=pinned)
        left = memoryview(tensor.reshape(-1).view(torch.uint8).numpy()) if tensor.numel() else b""
        file = os.open(path, os.O_RDONLY)
        try:
            while len(left):
                count = os.preadv(file, [left], start)
                if count == 0:
                    raise CapgapError(f"{path} is damaged: it ends in {name}; fetch it again")
                start, left = start + count, left[count:]
        finally:
            os.close(file)
        if name not in self.checked and tensor.numel() and tensor.is_floating_point():
            if not torch.stack(torch.aminmax(tensor)).isfinite().all():
                raise CapgapError(
                    f"{self.folder}: its weights are not all numbers: {name} holds NaN or infinity; "
                    "the training that made them diverged or the file is damaged, so take another"
                )
            self.checked.add(name)
        return tensor


def _in_wrapper(key: str) -> str:
    for pattern, name in IN_WRAPPER.items():
        if re.match(pattern, key):
            return re.sub(pattern, name, key, count=1)
    return key


def _size(place: Stored) -> int:
    count = torch.Size(place.shape).numel()
    return count * torch.empty(0, dtype=(DTYPES | INTEGERS)[place.dtype]).element_size()


def _places(path: Path) -> dict[str, Stored]:
    """Tensors of a safetensors file, whose header has been checked (`read_weights`)."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return {
        key: Stored(path, 8 + length + one["data_offsets"][0], tuple(one["shape"]), one["dtype"])
        for key, one in header.items()
    }
