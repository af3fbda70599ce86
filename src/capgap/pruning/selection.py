"""From a target and the scores of the units to the units that are kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from capgap.config import Depth
from capgap.errors import CapgapError
from capgap.pruning.importance import Importance
from capgap.pruning.solver import (
    Sizes,
    Solution,
    proportional_layers,
    solve,
    solve_shape,
    solve_sparsity,
)
from capgap.pruning.surgery import Kept


@dataclass(frozen=True)
class Target:
    """How large a pruned model shall be.

    params: parameters without embeddings. total: with them. sparsity: share of the parameters
    without embeddings to remove, in equal fractions of all widths. shape: any of SHAPE_KEYS.
    """

    kind: Literal["params", "total", "sparsity", "shape"]
    value: int | float | dict[str, int]


def meet(sizes: Sizes, target: Target, depth: Depth) -> Solution:
    """The layers and widths for a target; CapgapError as the solvers raise it."""
    if target.kind == "shape":
        return solve_shape(sizes, {"layers": depth.layers or sizes.layers} | target.value)
    full = sizes.total(sizes.full) if target.kind == "total" else sizes.params(sizes.full)
    share = 1 - target.value if target.kind == "sparsity" else target.value / full
    layers = depth.layers
    if layers is None and depth.depth != "keep":
        layers = proportional_layers(sizes.layers, min(max(share, 0), 1))
    if target.kind == "sparsity":
        return solve_sparsity(sizes, target.value, layers)
    return solve(sizes, target.value, layers, with_embeddings=target.kind == "total")


def meet_like(sizes: Sizes, reference: Sizes, target: Target, depth: Depth) -> Solution:
    """The shape that a target gives another model, so that students of several teachers share it.

    reference: sizes of that model. Raises CapgapError where it cannot be cut out of this one.
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
    return solve_shape(sizes, shape)._replace(relative_error=wanted.relative_error)


def select(importance: Importance, solution: Solution, depth: Depth) -> Kept:
    """The units with the highest scores, as many as the solution says; on equal scores the first.

    Layers are chosen by their place or by their block influence (`Depth`).
    """
    units = zip(importance[:3], solution.widths, strict=True)
    return Kept(
        *(_top(scores, k) for scores, k in units),
        layers=_layers(importance.layers, solution.layers, depth),
    )


def _layers(influence: np.ndarray, k: int, depth: Depth) -> np.ndarray:
    of = len(influence)
    match depth.depth:
        case "keep" | "drop_middle":  # all of them, where k is all
            return np.r_[: (k + 1) // 2, of - k // 2 : of]
        case "keep_middle":
            return np.arange(k) + (of - k) // 2
        case "block_influence":
            return _top(influence, k)


def _top(scores: np.ndarray, k: int) -> np.ndarray:
    return np.sort(np.argsort(-scores, axis=-1, kind="stable")[..., :k], axis=-1)
