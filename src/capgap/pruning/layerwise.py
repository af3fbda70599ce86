"""
Run calibration text through a model layer by layer, with the residual streams between layers on disk.

All sequences pass through a layer before the next one (engine/streaming.py), so the weights of one layer
are in memory at a time, and one batch of the streams (tokens x hidden channels, float32).
"""

# B sequences, T tokens, D hidden channels

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from capgap.engine.onednn_matmul import use_onednn
from capgap.engine.stream_file import StreamFile
from capgap.engine.streaming import Batch, Call, layer_by_layer

Layer = torch.nn.Module


class Reached(Exception):
    """Raised by a hook to end a layer's forward pass after the part that is needed."""


class LayerPass:
    """The residual streams of all batches before a layer, B x T x D each; at first before layer 0.

    folder: of the temporary file of the streams.
    """

    def __init__(self, model: PreTrainedModel, batches_BT: list[torch.Tensor], folder: Path):
        self.by_layer = layer_by_layer(model)
        self.calls: dict[int, list[Call]] = {}  # by the number of sequences
        shapes = [(*ids_BT.shape, model.config.hidden_size) for ids_BT in batches_BT]
        self.streams, self.behind = (StreamFile(shapes, folder, model.device) for _ in range(2))
        for batch, ids_BT in enumerate(batches_BT):
            begun = self.by_layer.start(ids_BT.to(model.device))
            self.calls.setdefault(len(ids_BT), begun.calls)
            self.streams[batch] = begun.stream

    def layers(self) -> Iterator[tuple[int, Layer]]:
        """(index, layer) of every layer, each in memory until the next one is taken."""
        return self.by_layer.resident(range(len(self.by_layer.layers)))

    def pass_through(
        self, place: int, batch: int, hooks: Iterable[tuple[str, str, Callable]] = ()
    ) -> torch.Tensor | None:
        """The stream of a batch after the layer in memory; None if a hook raised `Reached`.

        hooks: ("before" or "after", name of a module in the layer, hook as PyTorch takes it).
        """
        layer, stream = self.by_layer.layers[place], self.streams[batch]
        with ExitStack() as stack:
            stack.enter_context(use_onednn())
            for when, name, hook in hooks:
                module = layer.get_submodule(name)
                before = when == "before"
                add = module.register_forward_pre_hook if before else module.register_forward_hook
                stack.callback(add(hook).remove)
            try:
                return self.by_layer.run(place, Batch(self.calls[len(stream)], stream), stream)
            except Reached:
                return None

    def advance(self, place: int, hooks: Iterable[tuple[str, str, Callable]] = ()) -> None:
        """Replace the streams by those after a layer; no hook may raise `Reached`."""
        for batch in range(len(self.streams)):
            self.streams[batch] = self.pass_through(place, batch, hooks)

    def step(self) -> None:
        """Replace the streams by those in `behind`."""
        self.streams, self.behind = self.behind, self.streams


class CurrentLayer(NamedTuple):
    """The layer that a pass has in memory, with the streams before it."""

    layer_pass: LayerPass
    place: int

    def module(self, name: str) -> torch.nn.Module:
        """A module of the layer."""
        return self.layer_pass.by_layer.layers[self.place].get_submodule(name)

    def pass_through(self, batch: int, hooks: Iterable[tuple[str, str, Callable]]):
        """See `LayerPass.pass_through`."""
        return self.layer_pass.pass_through(self.place, batch, hooks)
