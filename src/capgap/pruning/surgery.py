"""
Cut units out of a model: slice every tensor along the dimensions its family declares.

Nothing is rescaled, as in arXiv 2311.07052, except what a model's code scales by its width
(`_keep_scale`). Removing groups and neurons gives exactly the model with those units silenced,
removing layers the model that skips them. Removing hidden channels does not quite: a norm averages
over the d channels that are left, where the silenced model averages over all D, zeros included.
With RMSNorm what the cut model reads from the residual stream is sqrt(d / D) times what the
silenced one reads.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import NamedTuple

import numpy as np
import torch
from transformers import PreTrainedConfig, PreTrainedModel

from capgap.engine.mmap_weights import release
from capgap.engine.streaming import weight_of
from capgap.engine.time_left import Reported
from capgap.errors import CapgapError
from capgap.pruning.families import family_of
from capgap.pruning.solver import Sizes, Widths

# configuration keys with an entry for every layer: kind of attention, rotary positions or none
PER_LAYER = ("layer_types", "no_rope_layers")


class Kept(NamedTuple):
    """Indices of the units to keep, ascending, int64."""

    groups: np.ndarray  # layers of the original x kept groups
    neurons: np.ndarray  # layers of the original x kept neurons
    hidden: np.ndarray  # kept channels
    layers: np.ndarray | None = None  # kept layers; None keeps all
    vocab: np.ndarray | None = None  # kept entries of the vocabulary; None keeps all

    @property
    def widths(self) -> Widths:
        """How many units are kept."""
        return Widths(*(indices.shape[-1] for indices in self[:3]))


def keep_all(model: PreTrainedModel) -> Kept:
    """Every unit of a model."""
    sizes = sizes_of(model)
    groups, neurons, hidden = (np.arange(width) for width in sizes.full)
    return Kept(np.tile(groups, (sizes.layers, 1)), np.tile(neurons, (sizes.layers, 1)), hidden)


def sizes_of(model: PreTrainedModel) -> Sizes:
    """Widths of a model, and its count of parameters as a polynomial of them.

    Raises CapgapError for an architecture or a tensor that is not declared.
    """
    family, config = family_of(type(model).__name__), model.config
    if counted := [key for key in family.numbered_heads if getattr(config, key, None)]:
        raise CapgapError(
            f"{type(model).__name__}: {counted[0]} is set in its config.json, which makes each head "
            "depend on its number; cutting heads would change the others, so it is not pruned"
        )
    heads, groups = config.num_attention_heads, family.groups(config)
    mlp_tensor = f"{family.layers}.0.{family.mlp_tensor}"
    kinds, _ = family.kinds(mlp_tensor)
    neurons = model.get_parameter(mlp_tensor).shape[kinds.index((1, "neurons"))]
    full, layers = Widths(groups, neurons, config.hidden_size), config.num_hidden_layers

    terms, embedding = Counter(), 0
    for name, parameter in model.named_parameters():  # shared tensors come once
        kinds, layer = family.kinds(name)
        if name in family.outer_embedding:
            embedding += parameter.numel()
        else:
            powers = tuple(sum(kind == field for _, kind in kinds) for field in Widths._fields)
            units = math.prod(width**power for width, power in zip(full, powers, strict=True))
            coefficient, rest = divmod(parameter.numel(), units)
            assert rest == 0, (name, tuple(parameter.shape), full)
            terms[layer is not None, powers] += coefficient
    assert all(sum_ % layers == 0 for (inside, _), sum_ in terms.items() if inside), terms
    return Sizes(
        full=full,
        layers=layers,
        heads_per_group=heads // groups,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        outer=tuple((c, *powers) for (inside, powers), c in terms.items() if not inside),
        inner=tuple((c // layers, *powers) for (inside, powers), c in terms.items() if inside),
        embedding_per_channel=embedding // full.hidden,
        hidden_is_heads=family.hidden_is_heads,
        least_neurons=config.num_experts_per_tok if family.experts else 1,
        mlp_unit="experts" if family.experts else "neurons",
        layers_numbered=any(getattr(config, key, None) for key in family.numbered_layers),
    )


def pruned_config(
    model: PreTrainedModel,
    widths: Widths,
    layers: np.ndarray | None = None,
    vocab: int | None = None,
) -> PreTrainedConfig:
    """The configuration of a model with other widths; head dimension and the rest stay.

    layers: indices of the layers to keep, all if None. vocab: entries of the vocabulary, all if
    None.
    """
    sizes, config = sizes_of(model), model.config
    kept_layers = range(sizes.layers) if layers is None else [int(i) for i in layers]
    values = {
        **widths._asdict(),
        "heads": widths.groups * sizes.heads_per_group,
        "head_dim": sizes.head_dim,
        "layers": len(kept_layers),
        "vocab": config.vocab_size if vocab is None else vocab,
    }
    if sizes.layers_numbered and list(kept_layers) != list(range(len(kept_layers))):
        raise CapgapError(
            f"{type(model).__name__}: what a layer computes depends on its number "
            "(scale_attn_by_inverse_layer_idx), so only the last ones can be removed"
        )
    changed = {key: values[size] for key, size in family_of(type(model).__name__).config.items()}
    for key in PER_LAYER:
        if getattr(config, key, None) is not None:
            changed[key] = [getattr(config, key)[i] for i in kept_layers]
    return type(config).from_dict(config.to_dict() | changed)


def cut(model: PreTrainedModel, kept: Kept) -> PreTrainedModel:
    """The model with only the kept units, in float32, ready to evaluate.

    Consumes `model`: each tensor is released once its cut is made, so memory never exceeds the
    original and one tensor. If the original lies on disk (`load_unread`, or mapped by `load_model`),
    only one of its tensors is in memory at a time. To keep the original, cut a deep copy.
    """
    family, sizes = family_of(type(model).__name__), sizes_of(model)
    of = sizes.full._asdict() | {"vocab": model.config.vocab_size}
    layers = np.arange(sizes.layers) if kept.layers is None else kept.layers
    place = {int(old): new for new, old in enumerate(layers)}
    vocab = None if kept.vocab is None else len(kept.vocab)
    config = pruned_config(model, kept.widths, layers, vocab)
    weights = {}
    parameters = Reported(list(model.named_parameters()), "cut tensor")
    for name, parameter in parameters:  # shared tensors come once
        kinds, layer = family.kinds(name)
        gone, new_name = layer is not None and layer not in place, name
        original = weight = parameter.data if gone else weight_of(model, name, parameter)
        if not parameter.is_meta:
            parameter.data = weight.new_empty(0)
        if gone:
            continue
        if layer is not None:
            inside = name.removeprefix(f"{family.layers}.{layer}.")
            new_name = f"{family.layers}.{place[layer]}.{inside}"
        for dim, (repeats, kind) in enumerate(kinds):
            indices = getattr(kept, kind, None)
            if indices is not None:
                units = indices if indices.ndim == 1 else indices[layer]
                places = channels(
                    units, of[kind], repeats, weight.shape[dim], sizes.heads_per_group
                )
                weight = weight.index_select(dim, places.to(weight.device))
        weights[new_name] = weight.float()
        if weights[new_name].data_ptr() != original.data_ptr():
            release(original)
    if family.embeddings_times_root_hidden and kept.widths.hidden < sizes.full.hidden:
        _keep_scale(weights, math.sqrt(sizes.full.hidden / kept.widths.hidden))
    student, report = type(model).from_pretrained(
        None, config=config, state_dict=weights, dtype=torch.float32, output_loading_info=True
    )
    assert not any(report.values()), report
    student.generation_config = model.generation_config
    return student.eval()


def _keep_scale(weights: dict[str, torch.Tensor], factor: float) -> None:
    """Make up for the smaller root of hidden that Gemma multiplies embeddings by, in place.

    A tied output head would grow with them, so the last norm, which multiplies by 1 + its weight,
    shrinks: the logits stay.
    """
    weights["model.embed_tokens.weight"] *= factor
    if "lm_head.weight" not in weights:
        norm = weights["model.norm.weight"]
        norm.copy_((1 + norm) / factor - 1)


def check_layers_alike(model: PreTrainedModel) -> None:
    """Raise CapgapError if layers differ in kind, so that their number is not their shape."""
    lists = (getattr(model.config, key, None) or [] for key in PER_LAYER)
    kinds = {str(kind) for found in lists if len(set(found)) > 1 for kind in found}
    if len(kinds) > 1:
        raise CapgapError(
            f"{type(model).__name__}: its layers are of different kinds ({', '.join(sorted(kinds))}), "
            "so a random init with fewer layers has no unique shape; set prune.depth to keep"
        )


def channels(
    units: np.ndarray, of: int, repeats: int | str, size: int, heads_per_group: int = 1
) -> torch.Tensor:
    """Indices of the given units in a dimension of `size`, see `unit_of_channel`."""
    places, start = [], 0
    for width in _block_widths(of, repeats, size, heads_per_group):
        places.append((start + units[:, None] * width + np.arange(width)).reshape(-1))
        start += of * width
    return torch.from_numpy(np.concatenate(places))


def unit_of_channel(of: int, repeats: int | str, size: int, heads_per_group: int) -> np.ndarray:
    """The unit, out of `of`, that each channel of a dimension of `size` belongs to.

    repeats: how often the dimension lists all units, in blocks of equal width; "qkv" lists them three
    times, with blocks of `heads_per_group` widths first and of one width then.
    """
    widths = _block_widths(of, repeats, size, heads_per_group)
    return np.concatenate([np.repeat(np.arange(of), width) for width in widths])


def _block_widths(of: int, repeats: int | str, size: int, heads_per_group: int) -> list[int]:
    """Channels of one unit, for each time that the units are listed."""
    blocks = [heads_per_group, 1, 1] if repeats == "qkv" else [1] * int(repeats)
    width, rest = divmod(size, of * sum(blocks))
    assert rest == 0, (size, of, blocks)
    return [block * width for block in blocks]
