"""
Tensors of a saved state in safetensors files, whole or in parts.

A part holds rows (along the first dimension) of the tensors that are sharded over processes, and the
first one whatever else there is. Rows of all parts, one after another, are the whole tensor, so nothing
else has to be known to read them, and any number of processes can.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from capgap.errors import CapgapError

WEIGHTS, MOMENTS = "model", "optimizer"  # kinds of tensors, each in files of its own
SAME_FILES = "put scratch where all processes see the same files"


def name_of(kind: str, part: int = 0, parts: int = 1) -> str:
    """Name of the file of a part, which count from 0."""
    numbers = f"-{part + 1:05d}-of-{parts:05d}" if parts > 1 else ""
    return f"{kind}{numbers}.safetensors"


def is_shared(tensor: torch.Tensor) -> bool:
    """Whether a tensor is a DTensor, of which this process holds some rows."""
    return hasattr(tensor, "device_mesh")


def own(tensor: torch.Tensor) -> torch.Tensor:
    """What this process holds of a tensor, in the same memory."""
    return tensor.to_local() if is_shared(tensor) else tensor  # pyright: ignore[reportAttributeAccessIssue]


def own_rows(tensor: Any) -> range:
    """Which rows these are. FSDP2 cuts as `torch.chunk` does, so the last processes may have none."""
    count = len(tensor)
    if not is_shared(tensor):
        return range(count)
    mesh = tensor.device_mesh
    dimension = next(i for i, placed in enumerate(tensor.placements) if placed.is_shard(0))
    each = -(-count // mesh.size(dimension))
    first = min(mesh.get_local_rank(dimension) * each, count)
    return range(first, min(first + each, count))


class StateFiles:
    """The tensors of one kind in a state's folder. Raises CapgapError if a file is missing."""

    def __init__(self, folder: Path, kind: str, parts: int):
        self.folder, self.pieces = folder, {}
        try:
            for part in range(parts):
                file = safe_open(folder / name_of(kind, part, parts), framework="pt")
                for name in file.keys():  # noqa: SIM118
                    self.pieces.setdefault(name, []).append(file)
        except FileNotFoundError as error:
            raise CapgapError(
                f"{folder}: this process does not see all of this state ({error}); {SAME_FILES}"
            ) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self.pieces)

    def fill(self, name: str, tensor: torch.Tensor) -> None:
        """Read what this process holds of a tensor into it."""
        if not tensor.ndim:
            tensor.copy_(self.pieces[name][0].get_tensor(name))
            return
        pieces = [file.get_slice(name) for file in self.pieces[name]]
        counts = [piece.get_shape()[0] for piece in pieces]
        shape = [sum(counts), *pieces[0].get_shape()[1:]]
        if shape != list(tensor.shape):
            raise CapgapError(
                f"{self.folder}: {name} has the shape {shape} there and {list(tensor.shape)} in the model; "
                "delete the folder and run again"
            )
        into, rows, before = own(tensor), own_rows(tensor), 0
        for piece, count in zip(pieces, counts, strict=True):
            first, last = max(rows.start, before), min(rows.stop, before + count)
            if first < last:
                read = piece[first - before : last - before]
                into[first - rows.start : last - rows.start].copy_(read)
            before += count

    def like(self, name: str, parameter: torch.Tensor) -> torch.Tensor:
        """A tensor of the parameter's shape, sharded like it, or one of another shape as it is."""
        shape = self.pieces[name][0].get_slice(name).get_shape()
        if len(shape) != parameter.ndim:
            return self.pieces[name][0].get_tensor(name).to(parameter.device)
        value = torch.zeros_like(parameter, requires_grad=False)
        self.fill(name, value)
        return value
