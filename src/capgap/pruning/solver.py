"""
From a target size to a pruned shape: the number of layers, KV-head groups, neurons and hidden channels.

Pure arithmetic, no torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from capgap.config import Depth
from capgap.errors import CapgapError

TOLERANCE = 0.01  # relative error up to which a count is near enough for proportions to matter
ERROR_WEIGHT = 50  # of a relative error of the count, compared with a log error of a width


class Widths(NamedTuple):
    """How many units a model has or keeps; all layers alike."""

    groups: int  # key-value heads with their query heads, per layer
    neurons: int  # of the MLP, per layer
    hidden: int  # channels of the residual stream


@dataclass(frozen=True)
class Sizes:
    """The widths of a model, and its parameter count as a polynomial of them.

    outer, inner: the count of parameters outside the layers, without embeddings, and of one layer,
    as polynomials, one (coefficient, power of groups, power of neurons, power of hidden) a term.
    """

    full: Widths
    layers: int
    heads_per_group: int
    head_dim: int
    outer: tuple[tuple[int, int, int, int], ...]
    inner: tuple[tuple[int, int, int, int], ...]
    embedding_per_channel: int  # entries of the vocabulary and positions, head included if separate
    hidden_is_heads: bool = False  # hidden must equal heads x head_dim
    least_neurons: int = 1  # that must stay; of experts as many as a token is routed to
    mlp_unit: str = "neurons"  # or "experts", which are then counted as neurons
    layers_numbered: bool = False  # a layer's computation depends on its index
    multiple_of: int = 1  # every width must be a multiple of it: hidden, neurons, heads x head_dim

    def params(self, widths: Widths, layers: int | None = None) -> int:
        """Parameters without embeddings of a model with these widths; all layers if None."""
        groups, neurons, hidden = widths

        def value(terms) -> int:
            return sum(k * groups**a * neurons**b * hidden**c for k, a, b, c in terms)

        return value(self.outer) + (self.layers if layers is None else layers) * value(self.inner)

    def total(self, widths: Widths, layers: int | None = None) -> int:
        """Parameters with embeddings and output head."""
        return self.params(widths, layers) + self.embedding_per_channel * widths.hidden


class Solution(NamedTuple):
    """Layers and widths for a target, and their distance from it."""

    widths: Widths
    layers: int
    params_non_embedding: int
    params_total: int
    relative_error: float  # (parameters - target) / target, of what the target counts

    def describe(self, sizes: Sizes) -> str:
        """One line for the user: what is kept, and the distance from the target."""
        kept, full = self.widths, sizes.full
        per_group = sizes.heads_per_group
        parts = [
            f"hidden {kept.hidden} of {full.hidden}",
            f"heads {kept.groups * per_group} of {full.groups * per_group}",
            f"{sizes.mlp_unit} {kept.neurons} of {full.neurons}",
        ]
        if per_group > 1:
            parts.insert(2, f"key-value heads {kept.groups} of {full.groups}")
        if self.layers < sizes.layers:
            parts.insert(0, f"layers {self.layers} of {sizes.layers}")
        return (
            f"{', '.join(parts)}: {self.params_non_embedding:,} parameters without embeddings, "
            f"{self.params_total:,} with them, {self.relative_error:+.2%} off the target"
        )


@dataclass(frozen=True)
class Target:
    """The wanted size of a pruned model.

    params: parameters without embeddings. total: with them. sparsity: share of the parameters
    without embeddings to remove, in equal fractions of all widths. shape: any of SHAPE_KEYS.
    """

    kind: Literal["params", "total", "sparsity", "shape"]
    value: int | float | dict[str, int]


def meet(sizes: Sizes, target: Target, depth: Depth) -> Solution:
    """The layers and widths for a target.

    Raises CapgapError as the solvers do, and if layers would be removed from a model whose layers
    depend on their index.
    """
    solution = _meet(replace(sizes, multiple_of=depth.multiple_of), target, depth)
    if sizes.layers_numbered and solution.layers < sizes.layers:
        raise CapgapError(
            f"{solution.layers} of {sizes.layers} layers cannot be kept: what a layer of this model "
            "computes depends on its number (scale_attn_by_inverse_layer_idx), so the others would "
            "compute something else; keep all of them (depth: keep)"
        )
    return solution


def _meet(sizes: Sizes, target: Target, depth: Depth) -> Solution:
    if target.kind == "shape":
        return solve_shape(sizes, {"layers": depth.layers or sizes.layers} | target.value)
    full = sizes.total(sizes.full) if target.kind == "total" else sizes.params(sizes.full)
    share = 1 - target.value if target.kind == "sparsity" else target.value / full
    layers = depth.layers
    if layers is None and depth.depth != "keep":
        layers = proportional_layers(sizes.layers, min(max(share, 0), 1))
    if target.kind == "sparsity":
        return solve_sparsity(sizes, target.value, layers)
    if depth.widths == "proportional":
        return solve_proportional(
            sizes, target.value, layers, with_embeddings=target.kind == "total"
        )
    return solve(sizes, target.value, layers, with_embeddings=target.kind == "total")


def meet_like(sizes: Sizes, reference: Sizes, target: Target, depth: Depth) -> Solution:
    """The shape that a target gives another model, so that students of several teachers share it.

    reference: sizes of that model. Raises CapgapError if it cannot be cut out of this one.
    """
    wanted = meet(reference, target, depth)
    if (sizes.head_dim, sizes.heads_per_group) != (reference.head_dim, reference.heads_per_group):
        raise CapgapError(
            f"the heads have {sizes.head_dim} channels and {sizes.heads_per_group} to a key-value "
            f"head, those of the model that lends the shape {reference.head_dim} and "
            f"{reference.heads_per_group}; pruning keeps both, so the two cannot share a shape"
        )
    groups, neurons, hidden = wanted.widths
    shape = {"layers": wanted.layers, "hidden": hidden, "kv_heads": groups, "neurons": neurons}
    return meet(sizes, Target("shape", shape), depth)._replace(relative_error=wanted.relative_error)


def meet_halfway(sizes: Sizes, end: Solution, rounds_left: int) -> Solution:
    """The shape after the first of `rounds_left` cuts to `end`, `end` itself if one is left.

    Layers and every width go that part of the way, in logarithms, and stay at or above the end's.
    Hidden channels are as near to it as the heads allow; multiples of more than that are kept at the end
    alone. Raises CapgapError for fewer than one cut.
    """
    if rounds_left < 1:
        raise CapgapError(
            f"rounds_left is {rounds_left}, but this cut is one of them; set it to 1 or more"
        )
    if rounds_left == 1:
        return end

    def between(full: int, kept: int) -> float:
        return full * (kept / full) ** (1 / rounds_left)

    full, kept = sizes.full, end.widths
    wanted = [between(*pair) for pair in zip(full, kept, strict=True)]
    candidates = [
        Widths(groups, round(wanted[1]), hidden)
        for groups in range(kept.groups, full.groups + 1)
        for hidden in _hidden_choices(replace(sizes, multiple_of=1), groups, step=1)
        if kept.hidden <= hidden <= full.hidden
    ]

    def distance(widths: Widths) -> float:
        return sum(math.log(w / exact) ** 2 for w, exact in zip(widths, wanted, strict=True))

    widths = min(candidates, key=distance)
    layers = round(between(sizes.layers, end.layers))
    params = sizes.params(widths, layers)
    return _solution(sizes, widths, layers, params, params)


def solve(
    sizes: Sizes, target: int, layers: int | None = None, *, with_embeddings: bool = False
) -> Solution:
    """Widths whose count of parameters is nearest to `target`, at a depth of `layers` (or all).

    The count is the one without embeddings, unless `with_embeddings`. The rule of arXiv 2311.07052
    keeps the same fraction f of every width, f = sqrt(target / full) without embeddings, for a
    matrix has two of them. Groups are coarse and hidden must be a multiple of the heads (Hugging
    Face refuses other configurations), so f can only be approached. Candidates are all (groups,
    hidden) with the number of neurons that comes nearest to the target. Among candidates within 1 %
    of the target the one with the smallest

        sum over groups, neurons, hidden of (ln(kept / full) - ln f)^2 + (50 e)^2

    wins, e the relative error of the count. So 0.2 % of the parameters weigh as much as a tenth of a
    width, because students of one size are compared by thousandths of a nat. Without such candidates
    the one with the nearest count wins. Widths of large models stay multiples of a power of two,
    see `_step`.

    Raises CapgapError for a target above the full count or below the smallest possible one; the
    message names the nearest possible count.
    """
    what = "parameters with embeddings" if with_embeddings else "parameters without embeddings"
    layers = check_layers(sizes, layers)

    def count(widths: Widths) -> int:
        return sizes.total(widths, layers) if with_embeddings else sizes.params(widths, layers)

    def solution(widths: Widths) -> Solution:
        return _solution(sizes, widths, layers, count(widths), target)

    full_params = count(sizes.full)
    if target == full_params:
        return solution(sizes.full)
    if target > full_params:
        depth = "" if layers == sizes.layers else f" with {layers} of its {sizes.layers} layers"
        raise CapgapError(
            f"cannot prune to {target:,} {what}: the model{depth} has only {full_params:,}, which is "
            "the nearest possible; lower the size or prune a larger model"
            + (", or keep more layers" if depth else "")
        )
    candidates = [(widths, count(widths)) for widths in _candidates(sizes, target, count)]
    fewest = _fewest_neurons(sizes)
    smallest = min(count(widths._replace(neurons=fewest)) for widths, _ in candidates)
    if target < smallest:
        depth = "all layers stay" if layers == sizes.layers else f"{layers} layers stay"
        raise CapgapError(
            f"cannot prune to {target:,} {what}: {depth}, and with the fewest heads, neurons and "
            f"channels they have {smallest:,}, which is the nearest possible; raise the size, keep "
            "fewer layers or prune a model with smaller heads"
        )
    embedding = sizes.total(sizes.full, layers) - sizes.params(sizes.full, layers)
    log_fraction = math.log(_fraction(full_params, embedding if with_embeddings else 0, target))

    def rank(candidate: tuple[Widths, int]) -> tuple[int, float]:
        widths, params = candidate
        error = abs(params - target) / target
        distance = sum(
            (math.log(kept / full) - log_fraction) ** 2
            for kept, full in zip(widths, sizes.full, strict=True)
        )
        if error <= TOLERANCE:
            return 0, distance + (ERROR_WEIGHT * error) ** 2
        return 1, error

    return solution(min(candidates, key=rank)[0])


def solve_proportional(
    sizes: Sizes, target: int, layers: int | None = None, *, with_embeddings: bool = False
) -> Solution:
    """Widths that are one fraction of the model's, with the count nearest to `target`.

    The fraction is the one of the key-value heads, so that models cut from a family whose widths
    are in one proportion are members of it. Raises CapgapError for a model without such smaller
    widths, and for a target that is half again above or below the nearest count.
    """
    layers, full = check_layers(sizes, layers), sizes.full
    found = []
    for groups in range(1, full.groups + 1):
        neurons, odd_neurons = divmod(full.neurons * groups, full.groups)
        hidden, odd_hidden = divmod(full.hidden * groups, full.groups)
        whole = (
            not odd_neurons and not odd_hidden and hidden % (groups * sizes.heads_per_group) == 0
        )
        if whole:
            widths = Widths(groups, neurons, hidden)
            count = sizes.total(widths, layers) if with_embeddings else sizes.params(widths, layers)
            found.append((widths, count))
    widths, count = min(found, key=lambda candidate: abs(math.log(candidate[1] / target)))
    if len(found) == 1 or abs(math.log(count / target)) > math.log(1.5):
        counts = ", ".join(f"{count:,}" for _, count in found)
        raise CapgapError(
            f"cannot prune to about {target:,} parameters in proportion: with {full.groups} key-value "
            f"head(s), {full.neurons} neurons and {full.hidden} channels there are only {counts}; take "
            "one of these, or set widths to nearest_count"
        )
    return _solution(sizes, widths, layers, count, target)


def solve_sparsity(sizes: Sizes, sparsity: float, layers: int | None = None) -> Solution:
    """Widths that each keep the fraction sqrt(1 - sparsity), the per-axis rule of arXiv 2311.07052.

    Each width is the nearest one that Hugging Face accepts, whatever the count comes to. With fewer
    layers than the model has, widths keep sqrt((1 - sparsity) x all layers / layers), at most 1.
    Raises CapgapError for a sparsity outside [0, 1).
    """
    if not 0 <= sparsity < 1:
        raise CapgapError(f"sparsity is {sparsity}, but must be at least 0 and less than 1")
    layers = check_layers(sizes, layers)
    full = sizes.full
    fraction = min(1.0, math.sqrt((1 - sparsity) * sizes.layers / layers))
    choices = list(_group_choices(sizes))
    groups = min(choices, key=lambda count: abs(count - fraction * full.groups))
    channels = list(_hidden_choices(sizes, groups))
    hidden = min(channels, key=lambda width: abs(width - fraction * full.hidden))
    step = _neuron_step(sizes)
    neurons = full.neurons if fraction == 1 else step * round(fraction * full.neurons / step)
    widths = Widths(groups, min(max(_fewest_neurons(sizes), neurons), _most_neurons(sizes)), hidden)
    target = (1 - sparsity) * sizes.params(full)
    return _solution(sizes, widths, layers, sizes.params(widths, layers), target)


SHAPE_KEYS = ("layers", "hidden", "heads", "kv_heads", "neurons")


def solve_shape(sizes: Sizes, shape: dict[str, int]) -> Solution:
    """The given shape: any of layers, hidden, heads, kv_heads, neurons; what is not given stays.

    Raises CapgapError naming every value that is impossible, with the nearest possible one: a size
    above the model's, query heads that are not `heads_per_group` times the key-value heads (groups
    are cut whole), and hidden channels that the heads do not divide.
    """
    full, per_group = sizes.full, sizes.heads_per_group
    if unknown := sorted(set(shape) - set(SHAPE_KEYS)):
        raise CapgapError(f"shape: unknown {', '.join(unknown)}; it has {', '.join(SHAPE_KEYS)}")
    problems = []

    def bounded(key: str, default: int, most: int, least: int = 1) -> int:
        value = shape.get(key, default)
        nearest = min(max(value, least), most)
        if value != nearest:
            problems.append(f"{key} {value}: the nearest possible is {nearest}")
        return nearest

    layers = bounded("layers", sizes.layers, sizes.layers)
    implied = shape.get("kv_heads", full.groups) * per_group
    heads = bounded("heads", implied, full.groups * per_group)
    groups = bounded("kv_heads", min(max(round(heads / per_group), 1), full.groups), full.groups)
    if heads != groups * per_group:
        problems.append(
            f"heads {heads}: {groups} key-value head(s) are read by {per_group} query heads each, "
            f"which stay together; the nearest possible is {groups * per_group}"
        )
    neurons = bounded("neurons", full.neurons, full.neurons, sizes.least_neurons)
    hidden = bounded("hidden", full.hidden, full.hidden)
    choices = list(_hidden_choices(sizes, groups, step=1))
    nearest = min(choices, key=lambda width: abs(width - hidden))
    if hidden != nearest:
        rule = "heads x head dimension" if sizes.hidden_is_heads else "a multiple of the heads"
        problems.append(f"hidden {hidden}: must be {rule}; the nearest possible is {nearest}")
    if problems:
        raise CapgapError("shape: " + "; ".join(problems))
    widths = Widths(groups, neurons, hidden)
    params = sizes.params(widths, layers)
    return _solution(sizes, widths, layers, params, params)


def proportional_layers(layers: int, share: float) -> int:
    """Layers to keep of `layers` if depth and widths keep one fraction: share^(1/3), at least 1.

    share: of the parameters. A matrix has two widths and there is one of them a layer, so three
    equal fractions multiply to the share; 0.4 of 32 layers gives 24, the depth of MiniMA-3B.
    """
    return min(layers, max(1, round(layers * share ** (1 / 3))))


def check_layers(sizes: Sizes, layers: int | None) -> int:
    """A number of layers, all if None; CapgapError if the model has fewer, or for none at all."""
    if layers is None:
        return sizes.layers
    nearest = min(max(layers, 1), sizes.layers)
    if layers != nearest:
        raise CapgapError(
            f"layers {layers}: the model has {sizes.layers}; the nearest possible is {nearest}"
        )
    return layers


def _solution(sizes: Sizes, widths: Widths, layers: int, count: int, target: float) -> Solution:
    return Solution(
        widths=widths,
        layers=layers,
        params_non_embedding=sizes.params(widths, layers),
        params_total=sizes.total(widths, layers),
        relative_error=(count - target) / target,
    )


def _fraction(full: int, linear: int, target: int) -> float:
    """f with (full - linear) f^2 + linear f = target: embeddings have one width, matrices two."""
    square = full - linear
    return (math.sqrt(linear**2 + 4 * square * target) - linear) / (2 * square)


def _candidates(sizes: Sizes, target: int, count: Callable[[Widths], int]) -> Iterator[Widths]:
    """Every (groups, hidden) the architecture allows, with the best number of neurons."""
    for groups in _group_choices(sizes):
        for hidden in _hidden_choices(sizes, groups):
            without = count(Widths(groups, 0, hidden))
            slope = count(Widths(groups, 1, hidden)) - without
            step = _neuron_step(sizes)
            neurons = step * round((target - without) / (slope * step))
            neurons = min(max(neurons, _fewest_neurons(sizes)), _most_neurons(sizes))
            yield Widths(groups, neurons, hidden)


def _hidden_choices(sizes: Sizes, groups: int, step: int | None = None) -> Iterator[int]:
    """Hidden channels that a configuration with this many groups may have, fewest first."""
    full, heads = sizes.full.hidden, groups * sizes.heads_per_group
    if sizes.hidden_is_heads:
        yield heads * sizes.head_dim
    else:
        multiple = math.lcm(heads, step or _step(full), sizes.multiple_of)
        yield from range(multiple, full, multiple)
        if full % math.lcm(heads, sizes.multiple_of) == 0:
            yield full


def _group_choices(sizes: Sizes) -> list[int]:
    """Numbers of groups whose heads together are a multiple of `multiple_of` channels wide.

    Raises CapgapError if there are none, and if the neurons have no such multiple either.
    """
    width, multiple = sizes.heads_per_group * sizes.head_dim, sizes.multiple_of
    found = [n for n in range(1, sizes.full.groups + 1) if n * width % multiple == 0]
    short = sizes.mlp_unit == "neurons" and sizes.full.neurons < multiple
    if not found or short or sizes.full.hidden < multiple:
        raise CapgapError(
            f"multiple_of {multiple}: the model has {sizes.full.groups * width} channels of heads (of "
            f"{width} a group), {sizes.full.neurons} {sizes.mlp_unit} and {sizes.full.hidden} hidden "
            "channels, of which no part is such a multiple; lower it"
        )
    return found


def _neuron_step(sizes: Sizes) -> int:
    """Neurons are cut to multiples of this; experts, which are no width, one by one."""
    if sizes.mlp_unit == "experts":
        return 1
    step = math.lcm(_step(sizes.full.neurons), sizes.multiple_of)
    return step if step <= sizes.full.neurons else sizes.multiple_of


def _most_neurons(sizes: Sizes) -> int:
    """All neurons if they are such a multiple, or the nearest below."""
    full, step = sizes.full.neurons, _neuron_step(sizes)
    wanted = 1 if sizes.mlp_unit == "experts" else sizes.multiple_of
    return full if full % wanted == 0 else full // step * step


def _fewest_neurons(sizes: Sizes) -> int:
    step = _neuron_step(sizes)
    return max(step, sizes.least_neurons)


def _step(width: int) -> int:
    """Widths are cut to multiples of this power of two, at most 64: under 1 % of the full width.

    Matrix units are efficient at multiples of 8 to 64, and wide models can afford the rounding.
    """
    return min(64, 2 ** max(0, (width // 128).bit_length() - 1))
