"""
Importance of each KV-head group, neuron, hidden channel and layer of a model.

Units are scored by one of four criteria (criteria.py). Layers are always scored by their block
influence, one minus the cosine between what enters a layer and what leaves it, averaged over
tokens (Men et al. 2024, arXiv 2403.03853). A layer that hardly changes its input can be removed.

Scores do not depend on the size of batches.
"""

# B sequences, T tokens, L layers, G groups, F neurons, D hidden channels

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch

from capgap.engine.forward import output_form
from capgap.engine.parallel import ONE_PROCESS, DistContext
from capgap.engine.time_left import Reported
from capgap.pruning.criteria import (
    Batches,
    Scores,
    activations,
    magnitudes,
    mask_gradients,
    random_scores,
    run_through,
)
from capgap.pruning.families import Family, family_of
from capgap.pruning.surgery import sizes_of

MICRO_BATCH_TOKENS = 1024  # tokens per forward pass: bounds the memory, not the result


class Importance(NamedTuple):
    """Scores, float32, none negative; each row of groups and neurons, and hidden, has L2 norm 1."""

    groups: np.ndarray  # L x G
    neurons: np.ndarray  # L x F
    hidden: np.ndarray  # D
    layers: np.ndarray  # L, block influence as it is, between 0 and 2


def measure(
    model: torch.nn.Module,
    inputs_BT: torch.Tensor,
    labels_BT: torch.Tensor,
    criterion: str = "mask_gradient",
    *,
    seed: int = 0,
    precision: str = "float32",
    micro_batch_tokens: int = MICRO_BATCH_TOKENS,
    dist: DistContext = ONE_PROCESS,
) -> Importance:
    """Importance of all units of a model, averaged over B sequences.

    criterion, precision: as in config.Score. seed: of random scores. dist: the processes that share the
    sequences; sums over them are of float64, so their number changes no score by more than its rounding
    to float32. The model is put into evaluation mode and its parameters stop requiring gradients.
    """
    family = family_of(type(model).__name__)
    model.eval().requires_grad_(False)
    output_form(model)  # probes the model, so it must run before hooks are registered
    rows = max(1, micro_batch_tokens // inputs_BT.shape[1])
    batches = list(zip(inputs_BT.split(rows), labels_BT.split(rows), strict=True))
    batches = Reported(list(dist.deal(batches)), f"{criterion}: batch")
    with _influence(model, family) as influence_L:
        scores = _scores(model, family, batches, criterion, seed, precision, dist)
    influence_L = dist.sum(influence_L) / inputs_BT.numel()
    layers = influence_L.clamp_min(0).cpu().numpy().astype(np.float32)
    return Importance(*(_normalised(s.cpu().numpy()) for s in scores), layers)


def _scores(model, family: Family, batches: Batches, criterion, seed, precision, dist) -> Scores:
    match criterion:
        case "mask_gradient":
            return [*map(dist.sum, mask_gradients(model, family, batches, precision))]
        case "activation":
            return activations(model, family, batches, precision, dist)
        case "magnitude":
            run_through(model, batches, precision)
            return magnitudes(model, family)
        case "random":
            run_through(model, batches, precision)
            return random_scores(sizes_of(model), seed)
    raise AssertionError(criterion)


@contextmanager
def _influence(model: torch.nn.Module, family: Family) -> Iterator[torch.Tensor]:
    """Sum of 1 - cos(input, output) over the tokens that run through each layer, L in float64."""
    layers = model.get_submodule(family.layers)
    total_L = torch.zeros(len(layers), dtype=torch.float64, device=model.device)

    def add(i):
        def hook(module, args, kwargs, output):
            before = args[0] if args else kwargs["hidden_states"]
            after = output[0] if isinstance(output, tuple) else output
            cosine = torch.cosine_similarity(before.detach(), after.detach(), dim=-1)
            total_L[i] += (1 - cosine.double()).sum()

        return hook

    handles = [
        layer.register_forward_hook(add(i), with_kwargs=True) for i, layer in enumerate(layers)
    ]
    try:
        yield total_L
    finally:
        for handle in handles:
            handle.remove()


def _normalised(scores: np.ndarray) -> np.ndarray:
    """Scores over their L2 norm along the last axis; a row of zeros stays."""
    norm = np.linalg.norm(scores, axis=-1, keepdims=True)
    return (scores / np.where(norm == 0, 1, norm)).astype(np.float32)
