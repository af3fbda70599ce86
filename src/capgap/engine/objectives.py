"""
The objectives that a training step minimises: the data alone, or a mixture of data and teacher.

An objective maps (model, inputs B x T, labels (B T), starts B, scale) to a loss to differentiate
and the sums of its parts in nats; starts are the places of the sequences in the training stream.
The loop needs nothing else of it. An objective that holds a model has `on(dist)`, which moves it to
the devices of the job's processes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import torch

from capgap.config import Distill
from capgap.engine.compiling import compile_layers, micro_batch_shape
from capgap.engine.device_path import moved
from capgap.engine.forward import hold_frozen, model_output, output_form
from capgap.engine.losses import LossParts, ModelOutput, PartialTargets, data_loss, mixture_loss
from capgap.engine.parallel import DistContext, ForwardWrapper
from capgap.engine.teacher_targets import TargetStore


def data_objective(
    model,
    inputs_BT,
    labels_N,
    starts_B,
    scale: float,
    *,
    precision: str = "float32",
    vocab: int | None = None,
    chunk: int | None = None,
) -> tuple[torch.Tensor, LossParts]:
    """Cross-entropy against the data. precision, vocab: see `model_output`; chunk: `data_loss`."""
    output = model_output(model, inputs_BT, precision=precision, vocab=vocab)
    loss, data_ce = data_loss(
        output.hidden, output.head, labels_N, cap=output.cap, scale=scale, chunk=chunk
    )
    return loss, LossParts(data_ce, torch.zeros_like(data_ce))


@dataclass(frozen=True)
class Distillation:
    """The mixture of data and teacher, with the teacher's model or its cached targets, and settings.

    vocab: size of the shared tokenizer; rows of a head beyond it are left out.
    """

    teacher: torch.nn.Module | TargetStore
    settings: Distill
    vocab: int | None = None
    one_shape: ClassVar[bool] = True  # of the teacher's inputs, that of the student's

    def on(self, dist: DistContext) -> Distillation:
        """A copy whose teacher is on the devices of `dist` and held in its precision."""
        if isinstance(self.teacher, TargetStore):
            return self
        output_form(self.teacher)  # probe it before it is sharded
        hold = partial(hold_frozen, precision=self.settings.precision_of_teacher)
        teacher = dist.distribute(self.teacher, hold)
        if self.settings.compile and self.one_shape:
            compile_layers(self.teacher, micro_batch_shape(self.settings, dist.size))
        return replace(self, teacher=teacher)

    def __call__(
        self, model, inputs_BT, labels_N, starts_B, scale: float
    ) -> tuple[torch.Tensor, LossParts]:
        """Mixture of the cross-entropy against the data and the teacher's term."""
        output = self._read(model, inputs_BT, self.settings.precision)
        return mixture_loss(
            output.hidden,
            output.head,
            labels_N,
            self._targets(inputs_BT, starts_B),
            cap=output.cap,
            objective=self.settings.objective,
            weight=self.settings.teacher_weight,
            temperature=self.settings.temperature,
            beta=self.settings.beta,
            scale=scale,
            chunk=self.settings.loss_chunk_tokens,
        )

    @torch.no_grad()
    def _targets(self, inputs_BT, starts_B) -> ModelOutput | PartialTargets:
        if isinstance(self.teacher, TargetStore):
            kept = self.teacher.read(starts_B.cpu())  # FSDP moves all arguments to its device
            return PartialTargets(*(moved(value, inputs_BT.device) for value in kept))
        precision = self.settings.precision_of_teacher
        if isinstance(self.teacher, ForwardWrapper):
            return self.teacher(self._read, inputs_BT, precision)
        return self._read(self.teacher, inputs_BT, precision)

    def _read(self, model, inputs_BT, precision: str) -> ModelOutput:
        return model_output(model, inputs_BT, precision=precision, vocab=self.vocab)
