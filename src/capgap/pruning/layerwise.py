"""
Run the layers of a model one at a time, and keep the residual streams between them on disk.

All sequences pass a layer before the next one, so only one layer's weights are in memory at a time.
The streams (tokens x hidden channels, float32) lie in an unnamed file that vanishes with the process;
one batch of them is in memory.
"""

# B sequences, T tokens, D hidden channels

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path

import torch
from transformers import PreTrainedModel

from capgap.engine.forward import hidden_states
from capgap.engine.mmap_weights import release
from capgap.engine.onednn_matmul import fast_products
from capgap.engine.stream_file import StreamFile
from capgap.pruning.families import Family

Layer = torch.nn.Module


class Reached(Exception):
    """Raised by a hook to end a layer's forward pass after the part that is needed."""


class Layers:
    """The layers of a model and the streams between them, one B x T x D tensor a batch.

    folder: for the file of the streams. At first the streams are the inputs of the first layer.
    Modules outside the layers are moved to the device in float32 at once, a layer when it is used.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        family: Family,
        batches_BT: list[torch.Tensor],
        device: torch.device,
        folder: Path,
    ):
        self.model, self.device = model, device
        self.layers = model.get_submodule(family.layers)
        inside = {id(tensor) for tensor in [*self.layers.parameters(), *self.layers.buffers()]}
        for tensor in [*model.parameters(), *model.buffers()]:
            if id(tensor) not in inside:
                dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
                tensor.data = tensor.data.to(device, dtype)
        self.calls: dict[tuple[int, int], tuple[tuple, dict]] = {}  # by layer and sequences
        shapes = [(*ids_BT.shape, model.config.hidden_size) for ids_BT in batches_BT]
        self.streams, self.behind = (StreamFile(shapes, folder, device) for _ in range(2))
        for batch, ids_BT in enumerate(batches_BT):
            self.streams[batch] = self._start(ids_BT.to(device))

    def _start(self, ids_BT: torch.Tensor) -> torch.Tensor:
        """The input of the first layer, and the arguments with which every layer is called."""
        entered = []

        def passing(place):
            def forward(*args, **kwargs):
                stream = args[0] if args else kwargs.pop("hidden_states")
                self.calls[place, len(ids_BT)] = args[1:], kwargs
                entered.append(stream)
                return stream

            return forward

        for place, layer in enumerate(self.layers):
            layer.forward = passing(place)
        try:
            hidden_states(self.model, ids_BT)
        finally:
            for layer in self.layers:
                del layer.forward
        return entered[0]

    def layer(self, place: int) -> Layer:
        """A copy of a layer in float32; the original's memory is released if it is mapped (mmap)."""
        original = self.layers[place]
        one = copy.deepcopy(original).to(self.device, torch.float32)
        for parameter in original.parameters():
            release(parameter.data)
        return one

    def pass_through(
        self, layer: Layer, place: int, batch: int, hooks: Iterable[tuple[str, str, Callable]] = ()
    ) -> torch.Tensor | None:
        """The stream after a layer; None if a hook raised `Reached`.

        hooks: ("before" or "after", name of a module in the layer, hook as PyTorch takes it).
        """
        stream = self.streams[batch]
        args, kwargs = self.calls[place, len(stream)]
        with ExitStack() as stack:
            stack.enter_context(fast_products())
            for when, name, hook in hooks:
                module = layer.get_submodule(name)
                add = (
                    module.register_forward_pre_hook
                    if when == "before"
                    else module.register_forward_hook
                )
                stack.callback(add(hook).remove)
            try:
                output = layer(stream, *args, **kwargs)
            except Reached:
                return None
        return output[0] if isinstance(output, tuple) else output

    def advance(self, layer: Layer, place: int) -> None:
        """Replace the streams by those after a layer."""
        for batch in range(len(self.streams)):
            self.streams[batch] = self.pass_through(layer, place, batch)

    def step(self) -> None:
        """Replace the streams by those that were put into `behind`."""
        self.streams, self.behind = self.behind, self.streams
