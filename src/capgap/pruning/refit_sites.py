"""
Which matrices of a layer the refit solves for, which of them read the same activations, and which
architectures and tensors it supports.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from capgap.errors import CapgapError
from capgap.pruning.families import Family, family_of
from capgap.pruning.layerwise import CurrentLayer

REFUSED = "set prune.refit to none"
UNITS = ("groups", "neurons", "hidden")
REFITTED = (  # architectures whose layers add just the outputs of two matrices to the residual stream
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "SmolLM3ForCausalLM",
    "GemmaForCausalLM",
    "NemotronForCausalLM",
    "Phi3ForCausalLM",
    "StableLmForCausalLM",
    "FalconForCausalLM",
    "GPT2LMHeadModel",
    "GPTNeoXForCausalLM",
    "OPTForCausalLM",
)


class Linear(NamedTuple):
    """A matrix of a layer, by its module; (repeats, kind of unit) of its outputs and inputs."""

    name: str
    out: tuple[int, str]
    into: tuple[int, str]


class Site(NamedTuple):
    """Matrices that read the same activations. norm: the norm that puts them out, None for units."""

    linears: list[Linear]
    norm: str | None


def check_known(model: PreTrainedModel) -> None:
    """Raise CapgapError, naming the tensor, if a model has one that the refit does not support.

    Weights are not read; a model on the meta device suffices.
    """
    family = family_of(type(model).__name__)
    if type(model).__name__ not in REFITTED:
        raise CapgapError(
            f"{type(model).__name__}: the refit does not support this architecture; it supports "
            f"{', '.join(REFITTED)}; {REFUSED}"
        )
    linears, (inner_norms, outer_norms) = linears_of(model, family), norms_of(model, family)
    if len(outer_norms) != 1:
        raise CapgapError(
            f"{type(model).__name__}: {len(outer_norms)} norms outside of the layers, but the refit "
            f"supports only one, after the last layer; {REFUSED}"
        )
    for name, parameter in model.named_parameters():
        kinds, layer = family.kinds(name)
        carried = [kind for _, kind in kinds if kind in UNITS]
        module, _, what = name.rpartition(".")
        if layer is not None:
            module = module.removeprefix(f"{family.layers}.{layer}.")
            fitted = what in ("weight", "bias") and module in [*linears, *inner_norms]
            known = fitted or (parameter.ndim == 1 and "hidden" not in carried)
        else:
            known = name in family.outer_embedding or module in outer_norms
        if carried and not known:
            raise CapgapError(f"{name}: the refit does not support this tensor; {REFUSED}")


def norms_of(model: PreTrainedModel, family: Family) -> tuple[list[str], list[str]]:
    """The norms of `Family.norms` that a model has: those of a layer, and those outside the layers."""
    inner, outer = family.norms
    layer = model.get_submodule(f"{family.layers}.0")
    there = {name for name, _ in layer.named_modules()}
    return [name for name in inner if name in there], outer


def linears_of(model: PreTrainedModel, family: Family) -> dict[str, Linear]:
    """The matrices of a layer by their modules."""
    found = {}
    for name, module in model.get_submodule(f"{family.layers}.0").named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, torch.Tensor) and weight.ndim == 2:
            first, second = family.kinds(f"{family.layers}.0.{name}.weight")[0]
            out, into = (second, first) if transposed(module) else (first, second)
            found[name] = Linear(name, out, into)
    return found


def sites_of_layer(
    layer: CurrentLayer, linears: dict[str, Linear], norms: Iterable[str], layer_name: str
) -> list[Site]:
    """The matrices of a layer in the order in which it uses them; checks what is assumed."""
    read, normed, written = [], {}, []

    def before(name):
        return lambda module, args: read.append((name, args[0]))

    def behind_norm(name):
        return lambda module, args, output: normed.update({name: output})

    hooks = [("before", name, before(name)) for name in linears]
    hooks += [("after", name, behind_norm(name)) for name in norms]
    hooks += [  # clones, because Falcon adds to an output in place
        ("after", linear.name, lambda module, args, output: written.append(output.clone()))
        for linear in linears.values()
        if writes(linear)
    ]
    out = layer.pass_through(0, hooks)
    stream = layer.layer_pass.streams[0]
    added = sum(output.reshape(stream.shape) for output in written)
    if not torch.allclose(out, stream + added, rtol=1e-3, atol=1e-3 * out.abs().mean().item()):
        raise CapgapError(
            f"{type(layer.layer_pass.by_layer.model).__name__}: what {layer_name} adds to the residual "
            f"stream is not the sum of its output matrices, as the refit takes it to be; {REFUSED}"
        )
    if not read or not writes(linears[read[-1][0]]):
        raise CapgapError(
            f"{layer_name}: its last matrix does not write to the residual stream, as "
            f"the refit takes it to; {REFUSED}"
        )
    sites: list[tuple[torch.Tensor, Site]] = []
    for name, given in read:
        linear = linears[name]
        same = [s for z, s in sites if z.data_ptr() == given.data_ptr()]
        if given.numel() // given.shape[-1] != stream.shape[0] * stream.shape[1]:
            raise CapgapError(
                f"{layer_name}.{name}: reads a part of the tokens only, which the refit does "
                f"not support; {REFUSED}"
            )
        if same:
            same[0].linears.append(linear)
            continue
        behind = [n for n, z in normed.items() if z.data_ptr() == given.data_ptr()]
        if linear.into[1] == "hidden" and not behind:
            raise CapgapError(
                f"{layer_name}.{name}: reads the residual stream without a norm before it, "
                f"which the refit does not support; {REFUSED}"
            )
        sites.append((given, Site([linear], behind[0] if behind else None)))
    return [site for _, site in sites]


def writes(linear: Linear) -> bool:
    """Whether it writes to the residual stream."""
    return linear.out[1] == "hidden"


def is_tied(model: PreTrainedModel) -> bool:
    """Whether embeddings and output head are one tensor."""
    return model.get_output_embeddings().weight is model.get_input_embeddings().weight


def bias_of(module: torch.nn.Module) -> torch.Tensor | None:
    """The bias of a module, None without one."""
    return getattr(module, "bias", None)


def transposed(module: torch.nn.Module) -> bool:
    """Whether its weight is inputs x outputs, as GPT-2's."""
    return type(module).__name__ == "Conv1D"


def matrix_of(module: torch.nn.Module) -> torch.Tensor:
    """The weight of a module, outputs x inputs in float64."""
    weight = module.weight.double()
    return weight.T if transposed(module) else weight


def set_matrix(module: torch.nn.Module, matrix: torch.Tensor) -> None:
    """Set the weight of a module to a matrix, outputs x inputs."""
    module.weight.copy_(matrix.T if transposed(module) else matrix)
