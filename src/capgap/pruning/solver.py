"""
From a number of parameters to a pruned shape: how many groups, neurons and hidden channels to keep.

Pure arithmetic, no torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from capgap.errors import CapgapError

TOLERANCE = 0.01  # relative error up to which a count is near enough for proportions to matter
ERROR_WEIGHT = 50  # of a relative error of the count against a logarithmic error of a width


class Widths(NamedTuple):
    """How many units a model has or keeps; all layers alike."""

    groups: int  # key-value heads with their query heads, per layer
    neurons: int  # of the MLP, per layer
    hidden: int  # channels of the residual stream


@dataclass(frozen=True)
class Sizes:
    """A model as the solver sees it: its widths and how parameters follow from widths.

    terms: the count of parameters without embeddings as a polynomial, one (coefficient, power of
    groups, power of neurons, power of hidden) a term.
    """

    full: Widths
    heads_per_group: int
    head_dim: int
    terms: tuple[tuple[int, int, int, int], ...]
    hidden_is_heads: bool = False  # hidden must equal heads x head_dim

    def params(self, widths: Widths) -> int:
        """Parameters without embeddings of a model with these widths."""
        return sum(
            coefficient * widths.groups**a * widths.neurons**b * widths.hidden**c
            for coefficient, a, b, c in self.terms
        )


class Solution(NamedTuple):
    """Widths for a target and how far off they are."""

    widths: Widths
    params_non_embedding: int
    relative_error: float  # (params_non_embedding - target) / target

    def describe(self, sizes: Sizes) -> str:
        """One line for the person at the keyboard: what is kept and how far off the target it is."""
        kept, full = self.widths, sizes.full
        per_group = sizes.heads_per_group
        parts = [
            f"hidden {kept.hidden} of {full.hidden}",
            f"heads {kept.groups * per_group} of {full.groups * per_group}",
            f"neurons {kept.neurons} of {full.neurons}",
        ]
        if per_group > 1:
            parts.insert(2, f"key-value heads {kept.groups} of {full.groups}")
        return (
            f"{', '.join(parts)}: {self.params_non_embedding:,} parameters without embeddings, "
            f"{self.relative_error:+.2%} off the target"
        )


def solve(sizes: Sizes, target: int) -> Solution:
    """Widths whose count of parameters without embeddings is nearest to `target`.

    The rule of arXiv 2311.07052 keeps the fraction f = sqrt(target / full) of every width, for a
    matrix has two of them. Groups are coarse and hidden must be a multiple of the heads
    (Hugging Face refuses other configurations), so f can only be approached. Candidates are all
    (groups, hidden) with the number of neurons that comes nearest to the target. Among candidates
    within 1 % of the target the one with the smallest

        sum over groups, neurons, hidden of (ln(kept / full) - ln f)^2 + (50 e)^2

    wins, e the relative error of the count: 0.2 % of the parameters weighs as much as a tenth of a
    width, for students of one size are compared by thousandths of a nat. Without such candidates
    the one with the nearest count wins. Widths of large models stay multiples of a power of two,
    see `_step`.

    Raises CapgapError for a target above the full count or below the smallest possible one; the
    message names the nearest possible count.
    """
    full_params = sizes.params(sizes.full)
    if target == full_params:
        return Solution(sizes.full, full_params, 0.0)
    if target > full_params:
        raise CapgapError(
            f"cannot prune to {target:,} parameters without embeddings: the model has only "
            f"{full_params:,}, which is the nearest possible; lower the size or prune a larger model"
        )
    candidates = [(widths, sizes.params(widths)) for widths in _candidates(sizes, target)]
    fewest = _step(sizes.full.neurons)
    smallest = min(sizes.params(widths._replace(neurons=fewest)) for widths, _ in candidates)
    if target < smallest:
        raise CapgapError(
            f"cannot prune to {target:,} parameters without embeddings: all layers stay, and with "
            f"the fewest heads, neurons and channels they have {smallest:,}, which is the nearest "
            "possible; raise the size or prune a model with fewer layers or smaller heads"
        )
    log_fraction = 0.5 * math.log(target / full_params)

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

    widths, params = min(candidates, key=rank)
    return Solution(widths, params, (params - target) / target)


def _candidates(sizes: Sizes, target: int) -> Iterator[Widths]:
    """Every (groups, hidden) the architecture allows, with the best number of neurons."""
    full = sizes.full
    for groups in range(1, full.groups + 1):
        heads = groups * sizes.heads_per_group
        if sizes.hidden_is_heads:
            choices = [heads * sizes.head_dim]
        else:
            multiple = math.lcm(heads, _step(full.hidden))
            choices = [*range(multiple, full.hidden, multiple)]
            choices += [full.hidden] if full.hidden % heads == 0 else []
        for hidden in choices:
            without = sizes.params(Widths(groups, 0, hidden))
            slope = sizes.params(Widths(groups, 1, hidden)) - without
            step = _step(full.neurons)
            neurons = step * round((target - without) / (slope * step))
            yield Widths(groups, min(max(neurons, step), full.neurons), hidden)


def _step(width: int) -> int:
    """Widths are cut to multiples of this power of two, at most 64: under 1 % of the full width.

    Matrix units want multiples of 8 to 64, and a model that is wide enough can afford them.
    """
    return min(64, 2 ** max(0, (width // 128).bit_length() - 1))
