"""Select the units to keep by their scores."""

from __future__ import annotations

import numpy as np

from capgap.config import Depth
from capgap.pruning.importance import Importance
from capgap.pruning.solver import Solution
from capgap.pruning.surgery import Kept


def select(importance: Importance, solution: Solution, depth: Depth) -> Kept:
    """The units with the highest scores, as many as the solution keeps; ties go to the first.

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
        case "keep" | "drop_middle":  # all of them if k is the number of layers
            return np.r_[: (k + 1) // 2, of - k // 2 : of]
        case "keep_middle":
            return np.arange(k) + (of - k) // 2
        case "block_influence":
            return _top(influence, k)


def _top(scores: np.ndarray, k: int) -> np.ndarray:
    return np.sort(np.argsort(-scores, axis=-1, kind="stable")[..., :k], axis=-1)
