"""
Cut units out of a model: slice every tensor along the dimensions its family declares.

Nothing is rescaled, as in arXiv 2311.07052. Removing groups and neurons gives exactly the model
with those units silenced. Removing hidden channels does not quite: a norm averages over the d
channels that are left, where the silenced model averages over all D, zeros included. With RMSNorm
what the cut model reads from the residual stream is sqrt(d / D) times what the silenced one reads.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import NamedTuple

import numpy as np
import torch
from transformers import PreTrainedConfig, PreTrainedModel

from capgap.pruning.families import family_of
from capgap.pruning.solver import Sizes, Widths


class Kept(NamedTuple):
    """Indices of the units to keep, ascending, int64."""

    groups: np.ndarray  # layers x kept groups
    neurons: np.ndarray  # layers x kept neurons
    hidden: np.ndarray  # kept channels

    @property
    def widths(self) -> Widths:
        """How many units are kept."""
        return Widths(*(indices.shape[-1] for indices in self))


def sizes_of(model: PreTrainedModel) -> Sizes:
    """Widths of a model, and its count of parameters as a polynomial of them.

    Raises CapgapError for an architecture or a tensor that is not declared.
    """
    family, config = family_of(type(model).__name__), model.config
    heads = config.num_attention_heads
    groups = config.num_key_value_heads if "groups" in family.config.values() else heads
    mlp_out = f"{family.layers}.0.{family.mlp_out}.weight"
    kinds, _ = family.kinds(mlp_out)
    neurons = model.get_parameter(mlp_out).shape[kinds.index((1, "neurons"))]
    full = Widths(groups, neurons, config.hidden_size)

    terms = Counter()
    for name, parameter in model.named_parameters():
        kinds, _ = family.kinds(name)
        if name not in family.outer_embedding:
            powers = tuple(sum(kind == field for _, kind in kinds) for field in Widths._fields)
            units = math.prod(width**power for width, power in zip(full, powers, strict=True))
            coefficient, rest = divmod(parameter.numel(), units)
            assert rest == 0, (name, tuple(parameter.shape), full)
            terms[powers] += coefficient
    return Sizes(
        full=full,
        heads_per_group=heads // groups,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        terms=tuple((coefficient, *powers) for powers, coefficient in terms.items()),
        hidden_is_heads=family.hidden_is_heads,
    )


def pruned_config(model: PreTrainedModel, widths: Widths) -> PreTrainedConfig:
    """The configuration of a model with other widths; depth, head dimension and the rest stay."""
    sizes = sizes_of(model)
    values = {
        **widths._asdict(),
        "heads": widths.groups * sizes.heads_per_group,
        "head_dim": sizes.head_dim,
    }
    changed = {key: values[size] for key, size in family_of(type(model).__name__).config.items()}
    return type(model.config).from_dict(model.config.to_dict() | changed)


def cut(model: PreTrainedModel, kept: Kept) -> PreTrainedModel:
    """The model with only the kept units, ready to evaluate.

    Takes `model` over: each tensor is given up once its cut is made, so both models together never
    hold more than the original and one tensor. Cut a deep copy to go on using the original.
    """
    family, full = family_of(type(model).__name__), sizes_of(model).full
    config = pruned_config(model, kept.widths)
    weights = {}
    for name, parameter in model.named_parameters():  # shared tensors come once
        kinds, layer = family.kinds(name)
        weight = parameter.data
        for dim, (repeats, kind) in enumerate(kinds):
            if kind in Widths._fields:
                indices = getattr(kept, kind)
                units = indices if indices.ndim == 1 else indices[layer]
                channels = _channels(units, getattr(full, kind), repeats, weight.shape[dim])
                weight = weight.index_select(dim, channels.to(weight.device))
        weights[name] = weight
        parameter.data = weight.new_empty(0)
    student, report = type(model).from_pretrained(
        None, config=config, state_dict=weights, dtype=model.dtype, output_loading_info=True
    )
    assert not any(report.values()), report
    student.generation_config = model.generation_config
    return student.eval()


def _channels(units: np.ndarray, of: int, repeats: int, size: int) -> torch.Tensor:
    """Where the given units out of `of` lie in a dimension that lists all of them `repeats` times."""
    width, rest = divmod(size, of * repeats)
    assert rest == 0, (size, of, repeats)
    blocks = (np.arange(repeats)[:, None] * of + units).reshape(-1, 1)
    return torch.from_numpy((blocks * width + np.arange(width)).reshape(-1))
