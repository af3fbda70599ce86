"""
The tensors of a model folder by the names they have in the model, read one at a time.

They are read into memory of their own (`pread`) instead of being mapped: a mapping that may be
written counts against a limit on memory (RLIMIT_DATA) with its whole length.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

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
    """The tensors of a folder by their names in a model, renamed as transformers does when it loads.

    unexpected: names of tensors that have no such name, or that would be put together with others.
    """

    def __init__(self, folder: Path, weights: Weights, model: PreTrainedModel, *, wrapped: bool):
        self.folder, wanted = folder, model.state_dict()
        changes = get_model_conversion_mapping(model, IN_WRAPPER if wrapped else None)
        renamings = [one for one in changes if isinstance(one, WeightRenaming)]
        merging = [one for one in changes if isinstance(one, WeightConverter)]
        self.places: dict[str, Stored] = {}
        self.unexpected: list[str] = []
        for path in weights.files:
            for key, place in _places(path).items():
                name, merged = rename_source_key(
                    key, renamings, merging, model.base_model_prefix, wanted
                )
                if merged or name not in wanted:
                    self.unexpected.append(key)
                else:
                    self.places[name] = place
        self.checked: set[str] = set()

    @property
    def is_of_known_types(self) -> bool:
        """Whether all tensors are stored as numbers that `read` knows."""
        return all(place.dtype in DTYPES | INTEGERS for place in self.places.values())

    def nbytes(self, names: Iterable[str]) -> int:
        """Bytes that these tensors have in the file."""
        return sum(_size(self.places[name]) for name in names)

    def read(self, name: str, *, rows: range | None = None, pinned: bool = False) -> torch.Tensor:
        """A tensor as it is stored. pinned: into memory that a GPU copies from by itself.

        rows: only these, which follow one another along its first dimension.

        Raises CapgapError if the file ends too early, or a number is NaN or infinite.
        """
        path, start, shape, dtype = self.places[name]
        shape = torch.Size(shape)
        kind = (DTYPES | INTEGERS).get(dtype)
        if kind is None:
            raise CapgapError(
                f"{path}: {name} is stored as {dtype}, which cannot be read by layers; "
                f"use one of {', '.join(DTYPES)}"
            )
        if rows is not None:
            start += rows.start * shape[1:].numel() * kind.itemsize
            shape = (len(rows), *shape[1:])
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
