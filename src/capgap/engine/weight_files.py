"""
Find and check the files that hold a model folder's weights.

If there is an index, it lists the files; otherwise there must be a single .safetensors file. Other
files are not read, but they are reported. Only headers are read here.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open

from capgap.errors import CapgapError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
LFS_POINTER = b"version https://git-lfs"


class Tensor(NamedTuple):
    """A tensor's entry in a header."""

    shape: tuple[int, ...]
    dtype: str  # as safetensors writes it: F32, BF16, ...

    @property
    def elements(self) -> int:
        """Its number of elements."""
        return math.prod(self.shape)


class Weights(NamedTuple):
    """The weights of a folder: the files to read, and what lies in them by name."""

    files: list[Path]
    tensors: dict[str, Tensor]
    ignored: list[Path]  # other .safetensors files, which are not read

    @property
    def elements(self) -> int:
        """Numbers in all tensors together."""
        return sum(tensor.elements for tensor in self.tensors.values())


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a folder's weights, in order of their names.

    Raises CapgapError if there are none, or several without an index.
    """
    there = sorted(folder.glob("*.safetensors"))
    if (folder / INDEX).is_file():
        named = sorted(set(_index(folder).values()))
        if lacking := [name for name in named if not (folder / name).is_file()]:
            raise CapgapError(
                f"{folder / lacking[0]}: no such file, but {INDEX} names it; fetch the model again"
            )
        return [folder / name for name in named]
    if folder / SINGLE in there:
        return [folder / SINGLE]
    if len(there) > 1:
        raise CapgapError(
            f"{folder}: {len(there)} .safetensors files ({there[0].name}, ...) and neither {SINGLE} "
            f"nor {INDEX}, so those of the model cannot be identified; add its index"
        )
    if not there:
        raise CapgapError(
            f"{folder}: no .safetensors weights; pickled weights are not loaded, convert them first"
        )
    return there


def _index(folder: Path) -> dict[str, str]:
    """File of every tensor according to the index."""
    try:
        files = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
        if not files or not all(isinstance(name, str) for name in files.values()):
            raise ValueError(files)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CapgapError(
            f"{folder / INDEX} is damaged: it maps no tensors to files (weight_map); fetch the model "
            "again"
        ) from None
    return files


def read_weights(folder: Path) -> Weights:
    """Files and headers of a folder's weights.

    Raises CapgapError naming the file if one is damaged or missing, is a pointer of Git LFS, or
    lacks a tensor that the index places in it.
    """
    files, tensors, places = weight_files(folder), {}, {}
    for path in files:
        for name, tensor in _header(path).items():
            if name in tensors:
                raise CapgapError(
                    f"{path}: holds {name}, as {places[name]} does; fetch the model again"
                )
            tensors[name], places[name] = tensor, path.name
    if (folder / INDEX).is_file():
        for name, file in sorted(_index(folder).items()):
            if places.get(name) != file:
                where = places.get(name, "in no file")
                raise CapgapError(
                    f"{folder / file}: {INDEX} places {name} there, but it is {where}; the index and "
                    "the files belong to different versions, so fetch the model again"
                )
        if extra := sorted(set(tensors) - set(_index(folder))):
            raise CapgapError(
                f"{folder / places[extra[0]]}: holds {extra[0]}, which {INDEX} does not have; the "
                "index and the files belong to different versions, so fetch the model again"
            )
    return Weights(files, tensors, sorted(set(folder.glob("*.safetensors")) - set(files)))


def _header(path: Path) -> dict[str, Tensor]:
    with path.open("rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise CapgapError(
                f"{path}: a pointer of Git LFS, not the weights; run 'git lfs pull' in its repository, "
                "or fetch the model with capgap fetch"
            )
    try:
        with safe_open(path, framework="pt") as file:
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {n: Tensor(tuple(p.get_shape()), p.get_dtype()) for n, p in parts.items()}
    except (SafetensorError, OSError) as error:
        raise CapgapError(f"{path} is damaged ({error}); fetch or make the model again") from None
