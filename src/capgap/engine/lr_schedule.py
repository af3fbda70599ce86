"""
The learning rate of every step, and the steps at which validation loss is measured.

  cosine    warm-up, then half a cosine down to the floor at the end of the budget
  constant  warm-up, then no change
  wsd       warm-up, a constant rate, and over the last decay_share of the steps a fall by one minus
            a square root (Hägele et al. 2024, arXiv 2405.18392). What comes before the fall, the
            trunk, knows nothing of the budget: runs that differ in their budget share it.
"""

from __future__ import annotations

import math

from capgap.config import Training
from capgap.errors import CapgapError


def warmup_steps(steps: int, settings: Training) -> int:
    """Steps of linear warm-up."""
    if settings.warmup_tokens is None:
        return round(settings.warmup_share * steps)
    return settings.warmup_tokens // settings.batch_tokens


def trunk_steps(steps: int, settings: Training) -> int | None:
    """Steps before the fall of `wsd`, None for other schedules.

    Raises CapgapError where the warm-up does not end before the fall begins.
    """
    if settings.schedule != "wsd":
        return None
    trunk = steps - max(1, round(settings.decay_share * steps))
    if warmup_steps(steps, settings) > trunk:
        raise CapgapError(
            f"warmup_tokens is {settings.warmup_tokens}, but the learning rate falls from step "
            f"{trunk} of {steps} on ({trunk * settings.batch_tokens} tokens); lower warmup_tokens "
            "or decay_share, or raise the tokens"
        )
    return trunk


def learning_rate_at(step: int, steps: int, settings: Training) -> float:
    """Learning rate of a step (0-based) of `steps`."""
    warmup = warmup_steps(steps, settings)
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    if settings.schedule == "constant":
        return settings.learning_rate
    floor = settings.final_lr_share
    if settings.schedule == "wsd":
        trunk = trunk_steps(steps, settings)
        progress = max(0, step - trunk) / max(1, steps - trunk)
        return settings.learning_rate * (floor + (1 - floor) * (1 - math.sqrt(progress)))
    progress = (step - warmup) / max(1, steps - warmup)
    return settings.learning_rate * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))


def measured_steps(steps: int, settings: Training) -> set[int]:
    """Numbers of finished steps after which validation loss is measured.

    Of a trunk they do not depend on the budget either: the end of the warm-up and its doublings.
    """
    trunk = trunk_steps(steps, settings) or 0
    n = settings.validations
    points = {trunk + round((steps - trunk) * i / n) for i in range(1, n + 1)}
    at = max(1, warmup_steps(steps, settings))
    while at <= trunk:
        points.add(at)
        at *= 2
    return points
