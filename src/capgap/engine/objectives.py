"""
What a training step minimises: the data alone, or a mixture of data and teacher.

An objective maps (model, inputs B x T, labels (B T), starts B, scale) to a loss to differentiate
and the sums of its parts in nats; starts are the places of the sequences in the training stream.
The loop knows no more of it than that.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from capgap.config import Distill
from capgap.engine.losses import LossParts, PartialSignal, Signal, data_loss, mixture_loss
from capgap.engine.models import hidden_states, output_head
from capgap.engine.signals import SignalStore


def data_objective(
    model, inputs_BT, labels_N, starts_B, scale: float
) -> tuple[torch.Tensor, LossParts]:
    """Cross-entropy against the data."""
    loss, data_ce = data_loss(
        hidden_states(model, inputs_BT), output_head(model), labels_N, scale=scale
    )
    return loss, LossParts(data_ce, torch.zeros_like(data_ce))


@dataclass(frozen=True)
class Distillation:
    """Data and teacher: the teacher's model or its signal kept on disk, and the settings."""

    teacher: torch.nn.Module | SignalStore
    settings: Distill

    def __call__(
        self, model, inputs_BT, labels_N, starts_B, scale: float
    ) -> tuple[torch.Tensor, LossParts]:
        """Mixture of the cross-entropy against the data and the teacher's term."""
        return mixture_loss(
            hidden_states(model, inputs_BT),
            output_head(model),
            labels_N,
            self._signal(inputs_BT, starts_B),
            objective=self.settings.objective,
            weight=self.settings.teacher_weight,
            temperature=self.settings.temperature,
            beta=self.settings.beta,
            scale=scale,
        )

    @torch.no_grad()
    def _signal(self, inputs_BT, starts_B) -> Signal | PartialSignal:
        if isinstance(self.teacher, SignalStore):
            kept = self.teacher.read(starts_B)
            return PartialSignal(*(value.to(inputs_BT.device) for value in kept))
        return Signal(hidden_states(self.teacher, inputs_BT), output_head(self.teacher))
