"""
How much each group, neuron and hidden channel matters to the loss, and which ones to keep.

Every unit gets a mask of one. A unit's score is the mean over sequences of |dCE/dmask|, the
first-order change of the loss when the unit is removed (arXiv 2311.07052; Michel et al. 2019).
The gradient is taken for each sequence by itself, before the absolute value: inside a batch
gradients of opposite sign would cancel, and scores would depend on the batch size. A mask with a
batch dimension gives these gradients for several sequences at once.

The mask of a hidden channel multiplies everything that is written to the residual stream:
embeddings, attention outputs and MLP outputs, each once. The stream is their sum, so this is the
same as masking the stream wherever it is read, and at zero the channel is gone from the whole
model. (Masking the stream itself after every block would multiply early writes many times over.)
"""

# B sequences, T tokens, L layers, G groups, F neurons, D hidden channels, U units of one kind,
# W width of a unit

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

from capgap.engine.losses import data_loss
from capgap.engine.models import hidden_states, output_head
from capgap.pruning.families import Family, family_of
from capgap.pruning.solver import Widths
from capgap.pruning.surgery import Kept, sizes_of

MICRO_BATCH_TOKENS = 1024  # tokens per forward pass: bounds the memory, not the result


class Importance(NamedTuple):
    """Scores, float32, none negative; each row of groups and neurons, and hidden, has L2 norm 1."""

    groups: np.ndarray  # L x G
    neurons: np.ndarray  # L x F
    hidden: np.ndarray  # D


def measure(
    model: torch.nn.Module,
    inputs_BT: torch.Tensor,
    labels_BT: torch.Tensor,
    micro_batch_tokens: int = MICRO_BATCH_TOKENS,
) -> Importance:
    """Importance of all units of a model, averaged over B sequences.

    The model is put into evaluation mode and its parameters stop requiring gradients.
    """
    family, sizes = family_of(type(model).__name__), sizes_of(model)
    model.eval().requires_grad_(False)
    layers, tokens = len(model.get_submodule(family.layers)), inputs_BT.shape[1]
    widths = sizes.full
    shapes = [(layers, widths.groups), (layers, widths.neurons), (widths.hidden,)]
    totals = [torch.zeros(shape, dtype=torch.float64, device=model.device) for shape in shapes]
    rows = max(1, micro_batch_tokens // tokens)
    for inputs, labels in zip(inputs_BT.split(rows), labels_BT.split(rows), strict=True):
        masks = [
            torch.ones(
                len(inputs), *shape, dtype=model.dtype, device=model.device, requires_grad=True
            )
            for shape in shapes
        ]
        with _applied(model, family, masks):
            hidden_ND = hidden_states(model, inputs.to(model.device))
        loss, _ = data_loss(
            hidden_ND, output_head(model), labels.reshape(-1).to(model.device), scale=1 / tokens
        )
        for total, gradient in zip(totals, torch.autograd.grad(loss, masks), strict=True):
            total += gradient.double().abs().sum(0)
    return Importance(*(_normalised(total.cpu().numpy()) for total in totals))


@contextmanager
def _applied(model: torch.nn.Module, family: Family, masks: list[torch.Tensor]) -> Iterator[None]:
    """Hook masks on a model: groups B x L x G, neurons B x L x F, hidden B x D."""
    groups, neurons, hidden = masks

    def mask_input(mask_BU, module, args):
        return (_scaled(args[0], mask_BU), *args[1:])

    def mask_output(mask_BU, module, args, output):
        return _scaled(output, mask_BU)

    handles = []
    writers = [model.get_submodule(name) for name in family.embeddings]
    for i, layer in enumerate(model.get_submodule(family.layers)):
        for name, mask_BLU in [(family.attention_out, groups), (family.mlp_out, neurons)]:
            module = layer.get_submodule(name)
            hook = partial(mask_input, mask_BLU[:, i])
            handles.append(module.register_forward_pre_hook(hook))
            writers.append(module)
    handles += [w.register_forward_hook(partial(mask_output, hidden)) for w in writers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _scaled(x: torch.Tensor, mask_BU: torch.Tensor) -> torch.Tensor:
    """Multiply activations, whose last dimension lists U units of width W, by a mask.

    x is B x T x (U W), 1 x T x (U W) where sequences share it (positions), or (B T) x (U W).
    """
    batch, units = mask_BU.shape
    if x.dim() == 2:
        return _scaled(x.unflatten(0, (batch, -1)), mask_BU).flatten(0, 1)
    return (x.unflatten(-1, (units, -1)) * mask_BU[:, None, :, None]).flatten(2)


def _normalised(scores: np.ndarray) -> np.ndarray:
    """Scores over their L2 norm along the last axis; a row of zeros stays."""
    norm = np.linalg.norm(scores, axis=-1, keepdims=True)
    return (scores / np.where(norm == 0, 1, norm)).astype(np.float32)


def most_important(importance: Importance, widths: Widths) -> Kept:
    """The units with the highest scores, `widths` many; on equal scores the first ones."""
    return Kept(*(_top(scores, k) for scores, k in zip(importance, widths, strict=True)))


def _top(scores: np.ndarray, k: int) -> np.ndarray:
    return np.sort(np.argsort(-scores, axis=-1, kind="stable")[..., :k], axis=-1)
