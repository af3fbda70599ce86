"""
Four ways to score the groups, neurons and hidden channels of a model; higher means keep.

mask_gradients   arXiv 2311.07052, after Michel et al. 2019: mean over sequences of |dCE/dmask|,
                 the first-order change of the loss when the unit is removed. The gradient is taken
                 for each sequence by itself, before the absolute value: inside a batch gradients of
                 opposite sign would cancel. A mask with a batch dimension gives these gradients
                 for several sequences at once.
activations      Minitron (arXiv 2407.14679): mean over tokens of the norm of a group's output, of
                 the magnitude of a neuron, and of the magnitude of a channel after every norm. Of
                 an expert, of the weight with which tokens are routed to it.
magnitudes       norm of all weights that removing the unit would remove
random_scores    the baseline for a criterion

The mask of a hidden channel multiplies everything that is written to the residual stream:
embeddings, attention outputs and MLP outputs, each once. The stream is their sum, so this is the
same as masking the stream wherever it is read, and at zero the channel is gone from the whole
model. (Masking the stream itself after every block would multiply early writes many times over.)
"""

# B sequences, T tokens, L layers, G groups, F neurons, D hidden channels, U units of one kind,
# W width of a unit

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint

from capgap.engine.forward import hidden_states, model_output
from capgap.engine.losses import data_loss
from capgap.engine.onednn_matmul import fast_products
from capgap.pruning.families import Family
from capgap.pruning.solver import Sizes, Widths
from capgap.pruning.surgery import sizes_of, unit_of_channel

Batches = Sequence[tuple[torch.Tensor, torch.Tensor]]  # inputs and labels, both B x T
Scores = list[torch.Tensor]  # groups L x G, neurons L x F, hidden D, in float64


def mask_gradients(model: torch.nn.Module, family: Family, batches: Batches) -> Scores:
    """Mean over sequences of |dCE/dmask|, CE in nats per token of the sequence.

    The form of the model's logits must have been probed (`output_form`).
    """
    shapes = _shapes(sizes_of(model))
    totals = _zeros(model, shapes)
    for inputs, labels in batches:
        masks = [
            torch.ones(
                len(inputs), *shape, dtype=model.dtype, device=model.device, requires_grad=True
            )
            for shape in shapes
        ]
        with _hooks(_masked(model, family, masks)), _recomputed(model.get_submodule(family.layers)):
            output = model_output(model, inputs.to(model.device), precision=str(model.dtype)[6:])
            loss, _ = data_loss(
                output.hidden,
                output.head,
                labels.reshape(-1).to(model.device),
                cap=output.cap,
                scale=1 / inputs.shape[1],
            )
            with fast_products():
                gradients = torch.autograd.grad(loss, masks)
        for total, gradient in zip(totals, gradients, strict=True):
            total += gradient.double().abs().sum(0)
    return totals


def activations(model: torch.nn.Module, family: Family, batches: Batches) -> Scores:
    """Mean magnitude of units' outputs over tokens (and, for channels, over norms)."""
    groups, neurons, hidden = _zeros(model, _shapes(sizes_of(model)))

    def add_input(total_U, module, args):
        x_NUW = args[0].reshape(-1, len(total_U), args[0].shape[-1] // len(total_U))
        total_U += x_NUW.double().norm(dim=-1).sum(0)

    def add_routed(total_U, module, args):
        _, experts_NK, weights_NK = args
        total_U.index_add_(0, experts_NK.flatten(), weights_NK.flatten().double())

    def add_output(module, args, output):
        hidden.add_(output.reshape(-1, len(hidden)).double().abs().sum(0))

    inner, outer = family.norms
    before, after = [], [(model.get_submodule(name), add_output) for name in outer]
    for i, layer in enumerate(model.get_submodule(family.layers)):
        before.append((layer.get_submodule(family.attention_out), partial(add_input, groups[i])))
        add = add_routed if family.experts else add_input
        before.append((layer.get_submodule(family.mlp_out), partial(add, neurons[i])))
        there = dict(layer.named_modules())  # a model may lack some of the declared norms
        after += [(there[name], add_output) for name in inner if name in there]
    with _hooks((before, after)):
        run_through(model, batches)
    tokens = sum(inputs.numel() for inputs, _ in batches)
    return [groups / tokens, neurons / tokens, hidden / (tokens * len(after))]


def magnitudes(model: torch.nn.Module, family: Family) -> Scores:
    """L2 norm of all weights of a unit, wherever they lie; embeddings count for hidden channels."""
    sizes = sizes_of(model)
    squares = dict(zip(Widths._fields, _zeros(model, _shapes(sizes)), strict=True))
    for name, parameter in model.named_parameters():  # shared tensors come once
        kinds, layer = family.kinds(name)
        for dim, (repeats, kind) in enumerate(kinds):
            if kind in squares:
                of = getattr(sizes.full, kind)
                squares_of = _squares(parameter.detach(), dim)
                place = unit_of_channel(of, repeats, len(squares_of), sizes.heads_per_group)
                place = torch.from_numpy(place).to(squares_of.device)
                units = squares_of.new_zeros(of).index_add_(0, place, squares_of)
                total = squares[kind]
                (total if total.ndim == 1 else total[layer]).add_(units)
    return [total.sqrt() for total in squares.values()]


def _squares(weight: torch.Tensor, dim: int) -> torch.Tensor:
    """Sum of squares in float64 over all dimensions but one, some rows at a time to save memory."""
    blocks = weight.split(1024)
    if dim == 0:
        return torch.cat([rows.double().square().reshape(len(rows), -1).sum(1) for rows in blocks])
    others = [d - 1 for d in range(1, weight.ndim) if d != dim]  # of a row
    squares = sum(rows.double().square().sum(0) for rows in blocks)
    return squares.sum(others) if others else squares  # pyright: ignore[reportAttributeAccessIssue]


def random_scores(sizes: Sizes, seed: int) -> Scores:
    """Uniform scores; the same seed gives the same ones."""
    random = np.random.default_rng(seed)
    return [torch.from_numpy(random.random(shape)) for shape in _shapes(sizes)]


@torch.no_grad()
def run_through(model: torch.nn.Module, batches: Batches) -> None:
    """Run the model for its hooks; outputs are not used."""
    for inputs, _ in batches:
        hidden_states(model, inputs.to(model.device))


def _shapes(sizes: Sizes) -> list[tuple[int, ...]]:
    groups, neurons, hidden = sizes.full
    return [(sizes.layers, groups), (sizes.layers, neurons), (hidden,)]


def _zeros(model: torch.nn.Module, shapes: list[tuple[int, ...]]) -> Scores:
    return [torch.zeros(shape, dtype=torch.float64, device=model.device) for shape in shapes]


Hook = tuple[torch.nn.Module, Callable]


@contextmanager
def _hooks(hooks: tuple[list[Hook], list[Hook]]) -> Iterator[None]:
    """Hang hooks before and after modules; they are gone afterwards."""
    before, after = hooks
    handles = [module.register_forward_pre_hook(hook) for module, hook in before]
    handles += [module.register_forward_hook(hook) for module, hook in after]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _recomputed(layers: Iterable[torch.nn.Module]) -> Iterator[None]:
    """Layers keep only their inputs for the backward pass, which runs each of them once more.

    Otherwise the activations of all layers would take more memory than the weights.
    """
    for layer in layers:
        layer.forward = partial(
            checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False
        )
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _masked(
    model: torch.nn.Module, family: Family, masks: list[torch.Tensor]
) -> tuple[list[Hook], list[Hook]]:
    """Hooks that multiply by masks: groups B x L x G, neurons B x L x F, hidden B x D."""
    groups, neurons, hidden = masks

    def mask_input(mask_BU, module, args):
        return (_scaled(args[0], mask_BU), *args[1:])

    def mask_routed(mask_BU, module, args):
        x_ND, experts_NK, weights_NK = args
        mask_NU = mask_BU.repeat_interleave(len(x_ND) // len(mask_BU), 0)
        return x_ND, experts_NK, weights_NK * mask_NU.gather(1, experts_NK)

    def mask_output(module, args, output):
        return _scaled(output, hidden)

    before = []
    writers = [model.get_submodule(name) for name in family.embeddings]
    for i, layer in enumerate(model.get_submodule(family.layers)):
        mask_mlp = mask_routed if family.experts else mask_input
        attention, mlp = map(layer.get_submodule, (family.attention_out, family.mlp_out))
        before.append((attention, partial(mask_input, groups[:, i])))
        before.append((mlp, partial(mask_mlp, neurons[:, i])))
        writers += map(layer.get_submodule, family.writers)
    return before, [(writer, mask_output) for writer in writers]


def _scaled(x: torch.Tensor, mask_BU: torch.Tensor) -> torch.Tensor:
    """Multiply activations, whose last dimension lists U units of width W, by a mask.

    x is B x T x (U W), 1 x T x (U W) if sequences share it (positions), or (B T) x (U W).
    """
    batch, units = mask_BU.shape
    if x.dim() == 2:
        return _scaled(x.unflatten(0, (batch, -1)), mask_BU).flatten(0, 1)
    return (x.unflatten(-1, (units, -1)) * mask_BU[:, None, :, None]).flatten(2)
