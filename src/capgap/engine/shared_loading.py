"""
Load a model that will be sharded over processes, so that none of them ever holds it whole.

The model is made without memory for its weights. Its logits are probed with the embeddings, the head and one
layer in memory, which are then released. When it has been sharded (FSDP2), each process reads the rows that
it holds from the files.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
from transformers import PreTrainedModel

from capgap.engine.models import NotOneByOne, load_hollow, load_model
from capgap.engine.state_files import own, own_rows
from capgap.engine.stored_tensors import StoredTensors
from capgap.engine.streaming import CannotStream, LayerByLayer, put_ends

_UNREAD: WeakKeyDictionary[torch.nn.Module, StoredTensors] = WeakKeyDictionary()
CPU = torch.device("cpu")


def load_to_share(folder: Path, *, dtype: torch.dtype | None = torch.float32) -> PreTrainedModel:
    """A model in float32 whose weights are read when it has been sharded.

    If its tensors cannot be read one by one (as those in 8 bits), or it cannot be probed so, it is loaded whole, with this
    dtype (see `load_model`). Raises CapgapError as `load_model` does, except that numbers are checked
    when they are read.
    """
    try:
        model, stored = load_hollow(folder)
        if not stored.is_of_known_types:
            return load_model(folder, dtype=dtype)
        with _whole_tables(model, stored):
            LayerByLayer(model, stored).probe()
    except (NotOneByOne, CannotStream):
        return load_model(folder, dtype=dtype)
    _UNREAD[model] = stored
    return model.requires_grad_(True)


@contextmanager
def _whole_tables(model: PreTrainedModel, stored: StoredTensors) -> Iterator[None]:
    """Inside, what lies outside of a model's layers is in memory."""
    empty = [
        (owner, name, parameter)
        for owner in model.modules()
        for name, parameter in owner._parameters.items()
        if parameter is not None
    ]
    put_ends(model, stored, "float32", CPU)
    try:
        yield
    finally:
        for owner, name, parameter in empty:
            owner._parameters[name] = parameter


@torch.no_grad()
def read_own(whole: torch.nn.Module, model: torch.nn.Module, device: torch.device) -> None:
    """Read what this process holds of a model that was sharded, if its weights are not read yet.

    whole: the wrapper that was sharded. Raises CapgapError if a number is NaN or infinite.
    """
    stored = _UNREAD.pop(model, None)
    if stored is None:
        return
    buffers = [buffer.clone() for buffer in whole.buffers()]
    whole.to_empty(device=device)
    for buffer, kept in zip(whole.buffers(), buffers, strict=True):
        buffer.copy_(kept)
    for name, buffer in model.named_buffers():
        if name in stored.places:
            buffer.copy_(stored.read(name))
    for name, parameter in model.named_parameters():
        own(parameter).copy_(stored.read(name, rows=own_rows(parameter)))
