"""
Four importance scores of the KV-head groups, neurons and hidden channels of a model.

mask_gradients   arXiv 2311.07052, after Michel et al. 2019: mean over sequences of |dCE/dmask|,
                 the first-order change of the loss when the unit is removed. The absolute value is
                 taken per sequence, because gradients of opposite sign would cancel within a batch.
                 A mask with a batch dimension gives the gradients of several sequences at once.
activations      Minitron (arXiv 2407.14679): mean over tokens of the norm of a group's output, of
                 the magnitude of a neuron, and of the magnitude of a channel after every norm. The
                 score of an expert is the mean of its routing weight.
magnitudes       norm of all weights that removing the unit would remove
random_scores    a baseline

The mask of a hidden channel multiplies everything that is written to the residual stream:
embeddings, attention outputs and MLP outputs, each once. The stream is their sum, so this is the
same as masking the stream wherever it is read, and at zero the channel is gone from the whole
model. (Masking the stream itself after every block would multiply early writes many times over.)
"""

# B sequences, T tokens, L layers, G groups, F neurons, D hidden channels, U units of one kind,
# W width of a unit

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch

from capgap.engine.forward import hidden_states, model_output
from capgap.engine.losses import data_loss
from capgap.engine.onednn_matmul import use_onednn
from capgap.engine.parallel import ONE_PROCESS, DistContext
from capgap.engine.streaming import LayerByLayer, autocast, layer_by_layer, ready, weight_of
from capgap.pruning.families import Family
from capgap.pruning.solver import Sizes, Widths
from capgap.pruning.surgery import sizes_of, unit_of_channel

Batches = Sequence[tuple[torch.Tensor, torch.Tensor]]  # inputs and labels, both B x T
Scores = list[torch.Tensor]  # groups L x G, neurons L x F, hidden D, in float64


def mask_gradients(
    model: torch.nn.Module, family: Family, batches: Batches, precision: str = "float32"
) -> Scores:
    """Mean over sequences of |dCE/dmask|, CE in nats per token of the sequence.

    All masks are one, so the forward pass runs without them and keeps the input of each layer. The
    backward pass recomputes each layer with masks, from the last to the first. So the activations of
    one layer are in memory at a time, and its weights too if the model streams them from disk. Call
    `output_form` on the model before.
    """
    by_layer = layer_by_layer(model, precision)
    totals = _zeros(model, _shapes(sizes_of(model)))
    for block in by_layer.blocks(batches, kept_layers=len(by_layer.layers)):
        with use_onednn():
            _add_gradients(by_layer, family, block, totals)
    return totals


def _add_gradients(
    by_layer: LayerByLayer, family: Family, block: list[tuple], totals: Scores
) -> None:
    """Add |dCE/dmask| of the sequences of a block to totals: groups L x G, neurons L x F, hidden D."""
    model, layers, device = by_layer.model, len(by_layer.layers), by_layer.model.device
    groups, neurons, hidden = totals
    with torch.no_grad():
        begun = [by_layer.start(inputs_BT.to(device)) for inputs_BT, _ in block]
        streams = [one.stream for one in begun]
        kept = by_layer.keep([tuple(stream.shape) for stream in streams])
        for at, _ in by_layer.resident(range(layers)):
            for number, one in enumerate(begun):
                kept[at * len(block) + number] = streams[number]
                streams[number] = by_layer.run(at, one, streams[number])
    slopes = streams  # of the loss by the stream
    of_hidden = [torch.zeros(len(x), len(hidden), device=device) for x in slopes]
    for number, (inputs_BT, labels_BT) in enumerate(block):
        stream = streams[number].requires_grad_()
        with by_layer.ending(stream):
            output = model_output(model, inputs_BT.to(device), precision=by_layer.precision)
        loss, _ = data_loss(
            output.hidden,
            output.head,
            labels_BT.reshape(-1).to(device),
            cap=output.cap,
            scale=1 / inputs_BT.shape[1],
        )
        [slopes[number]] = torch.autograd.grad(loss, [stream])
    for at, layer in by_layer.resident(reversed(range(layers))):
        for number, one in enumerate(begun):
            stream = kept[at * len(block) + number].requires_grad_()
            masks = [
                torch.ones(len(stream), size, device=device, requires_grad=True)
                for size in (groups.shape[1], neurons.shape[1], len(hidden))
            ]
            with _hooks(_masked(layer, family, *masks)):
                behind = by_layer.run(at, one, stream, again=True)
            slopes[number], *found = torch.autograd.grad(behind, [stream, *masks], slopes[number])
            groups[at] += found[0].double().abs().sum(0)
            neurons[at] += found[1].double().abs().sum(0)
            of_hidden[number] += found[2]
    embeddings = [model.get_submodule(name) for name in family.embeddings]
    for number, (inputs_BT, _) in enumerate(block):
        mask_BD = torch.ones_like(of_hidden[number], requires_grad=True)
        with _hooks(([], [(table, partial(_mask_output, mask_BD)) for table in embeddings])):
            stream = by_layer.start(inputs_BT.to(device)).stream
        [found] = torch.autograd.grad(stream, [mask_BD], slopes[number])
        hidden += (of_hidden[number] + found).double().abs().sum(0)


def activations(
    model: torch.nn.Module,
    family: Family,
    batches: Batches,
    precision: str = "float32",
    dist: DistContext = ONE_PROCESS,
) -> Scores:
    """Mean magnitude of units' outputs over tokens (and, for channels, over norms).

    dist: the processes, each of which has some of the batches.
    """
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
        run_through(model, batches, precision)
    tokens = dist.sum(torch.tensor(sum(inputs.numel() for inputs, _ in batches))).item()
    groups, neurons, hidden = map(dist.sum, (groups, neurons, hidden))
    return [groups / tokens, neurons / tokens, hidden / (tokens * len(after))]


def magnitudes(model: torch.nn.Module, family: Family) -> Scores:
    """L2 norm of all weights of a unit in all tensors; embeddings count for hidden channels."""
    sizes = sizes_of(model)
    squares = dict(zip(Widths._fields, _zeros(model, _shapes(sizes)), strict=True))
    for name, parameter in model.named_parameters():  # shared tensors come once
        kinds, layer = family.kinds(name)
        weight = weight_of(model, name, parameter)
        for dim, (repeats, kind) in enumerate(kinds):
            if kind in squares:
                of = getattr(sizes.full, kind)
                squares_of = _squares(weight, dim).to(model.device)
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
def run_through(model: torch.nn.Module, batches: Batches, precision: str = "float32") -> None:
    """Run the layers so that their hooks are called; outputs are discarded."""
    for inputs, _ in ready(model, batches):
        with autocast(model, precision):
            hidden_states(model, inputs.to(model.device))


def _shapes(sizes: Sizes) -> list[tuple[int, ...]]:
    groups, neurons, hidden = sizes.full
    return [(sizes.layers, groups), (sizes.layers, neurons), (hidden,)]


def _zeros(model: torch.nn.Module, shapes: list[tuple[int, ...]]) -> Scores:
    return [torch.zeros(shape, dtype=torch.float64, device=model.device) for shape in shapes]


Hook = tuple[torch.nn.Module, Callable]


@contextmanager
def _hooks(hooks: tuple[list[Hook], list[Hook]]) -> Iterator[None]:
    """Register hooks before and after modules for the duration of the context."""
    before, after = hooks
    handles = [module.register_forward_pre_hook(hook) for module, hook in before]
    handles += [module.register_forward_hook(hook) for module, hook in after]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _mask_output(mask_BD, module, args, output):
    return _scaled(output, mask_BD)


def _masked(
    layer: torch.nn.Module,
    family: Family,
    groups_BG: torch.Tensor,
    neurons_BF: torch.Tensor,
    hidden_BD: torch.Tensor,
) -> tuple[list[Hook], list[Hook]]:
    """Hooks that multiply the units of a layer by masks."""

    def mask_input(mask_BU, module, args):
        return (_scaled(args[0], mask_BU), *args[1:])

    def mask_routed(mask_BU, module, args):
        x_ND, experts_NK, weights_NK = args
        mask_NU = mask_BU.repeat_interleave(len(x_ND) // len(mask_BU), 0)
        return x_ND, experts_NK, weights_NK * mask_NU.gather(1, experts_NK)

    mask_mlp = mask_routed if family.experts else mask_input
    attention, mlp = map(layer.get_submodule, (family.attention_out, family.mlp_out))
    before = [(attention, partial(mask_input, groups_BG)), (mlp, partial(mask_mlp, neurons_BF))]
    writers = map(layer.get_submodule, family.writers)
    return before, [(writer, partial(_mask_output, hidden_BD)) for writer in writers]


def _scaled(x: torch.Tensor, mask_BU: torch.Tensor) -> torch.Tensor:
    """Multiply activations, whose last dimension lists U units of width W, by a mask.

    x is B x T x (U W), 1 x T x (U W) if sequences share it (positions), or (B T) x (U W).
    """
    batch, units = mask_BU.shape
    if x.dim() == 2:
        return _scaled(x.unflatten(0, (batch, -1)), mask_BU).flatten(0, 1)
    return (x.unflatten(-1, (units, -1)) * mask_BU[:, None, :, None]).flatten(2)
