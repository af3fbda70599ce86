"""
The steps of a training run, computed once from settings, budget and seed.

The learning rate follows one of three schedules:

  cosine    warm-up, then half a cosine down to the floor at the end of the budget
  constant  warm-up, then no change
  wsd       warm-up, a constant rate, and over the last decay_share of the steps a fall by one minus
            a square root (Hägele et al. 2024, arXiv 2405.18392). The stable phase before the fall,
            the trunk, does not depend on the budget, so runs that differ in budget share it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from capgap.config import Training
from capgap.errors import CapgapError


@dataclass(frozen=True)
class RunPlan:
    """One run: its settings, the seed of its data order, and its steps."""

    settings: Training
    seed: int
    steps: int
    warmup_steps: int  # of linear warm-up
    trunk_steps: int | None  # before the fall of wsd; None for other schedules
    measured_steps: frozenset[int]  # finished steps after which validation loss is measured

    @property
    def tokens(self) -> int:
        """Tokens that are trained on: whole steps."""
        return self.steps * self.settings.batch_tokens

    @property
    def trunk_tokens(self) -> int:
        """Tokens of these that larger budgets share; 0 unless the schedule is wsd."""
        return (self.trunk_steps or 0) * self.settings.batch_tokens

    def learning_rate(self, step: int) -> float:
        """Learning rate of a step (0-based)."""
        settings, warmup = self.settings, self.warmup_steps
        if step < warmup:
            return settings.learning_rate * (step + 1) / warmup
        if settings.schedule == "constant":
            return settings.learning_rate
        floor = settings.final_lr_share
        if self.trunk_steps is not None:
            progress = max(0, step - self.trunk_steps) / max(1, self.steps - self.trunk_steps)
            return settings.learning_rate * (floor + (1 - floor) * (1 - math.sqrt(progress)))
        progress = (step - warmup) / max(1, self.steps - warmup)
        half_cosine = 0.5 * (1 + math.cos(math.pi * progress))
        return settings.learning_rate * (floor + (1 - floor) * half_cosine)


def plan_run(settings: Training, tokens: int, seed: int = 0) -> RunPlan:
    """The plan of a run on a budget of tokens; a last incomplete step is left out.

    Points of measurement in a trunk do not depend on the budget either; they are the end of the
    warm-up and its doublings. Raises CapgapError if the budget is less than one step, or if the
    warm-up does not end before the fall of wsd begins.
    """
    steps = tokens // settings.batch_tokens
    if steps < 1:
        raise CapgapError(
            f"{tokens} tokens are less than one step of {settings.batch_tokens}; "
            "raise the tokens or lower batch_tokens"
        )
    warmup, trunk = _warmup_steps(settings, steps), None
    if settings.schedule == "wsd":
        trunk = steps - max(1, round(settings.decay_share * steps))
        if warmup > trunk:
            raise CapgapError(
                f"warmup_tokens is {settings.warmup_tokens}, but the learning rate falls from step "
                f"{trunk} of {steps} on ({trunk * settings.batch_tokens} tokens); lower "
                "warmup_tokens or decay_share, or raise the tokens"
            )
    shared, points = trunk or 0, settings.validations
    measured = {shared + round((steps - shared) * i / points) for i in range(1, points + 1)}
    at = max(1, warmup)
    while at <= shared:
        measured.add(at)
        at *= 2
    return RunPlan(settings, seed, steps, warmup, trunk, frozenset(measured))


def _warmup_steps(settings: Training, steps: int) -> int:
    if settings.warmup_tokens is None:
        return round(settings.warmup_share * steps)
    return settings.warmup_tokens // settings.batch_tokens
