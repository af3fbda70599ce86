"""The objective of a student whose teacher has another tokenizer: `class_loss` on aligned windows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from capgap.engine.aligned_text import AlignedText
from capgap.engine.class_loss import Comparison, class_loss
from capgap.engine.forward import model_output
from capgap.engine.losses import LossParts, ModelOutput
from capgap.engine.objectives import Distillation
from capgap.engine.parallel import ForwardWrapper


@dataclass(frozen=True, kw_only=True)
class CrossTokenizer(Distillation):
    """The mixture of data and a teacher that reads the same text in other tokens.

    text: the training text of both. vocab, teacher_vocab: entries of either tokenizer; rows of a head
    beyond them are left out.
    """

    text: AlignedText
    comparison: Comparison
    teacher_vocab: int
    one_shape: ClassVar[bool] = (
        False  # aligned windows differ in length, so its layers are not compiled
    )

    def __call__(
        self, model, inputs_BT, labels_N, starts_B, scale: float
    ) -> tuple[torch.Tensor, LossParts]:
        """Mixture of the cross-entropy against the data and the teacher's term."""
        device = inputs_BT.device
        windows = self.text.windows(starts_B.cpu().numpy(), inputs_BT.shape[1])
        return class_loss(
            self._read(model, inputs_BT, self.settings.precision),
            labels_N.to(device),
            self._teacher_output(windows.inputs.to(device)),
            windows.rows.to(device),
            windows.nodes.to(device),
            self.comparison.to(device),
            self.settings,
            scale=scale,
        )

    @torch.no_grad()
    def _teacher_output(self, inputs_BL: torch.Tensor) -> ModelOutput:
        precision = self.settings.precision_of_teacher
        if isinstance(self.teacher, ForwardWrapper):
            return self.teacher(self._read_teacher, inputs_BL, precision)
        return self._read_teacher(self.teacher, inputs_BL, precision)

    def _read_teacher(self, model, inputs_BL, precision: str) -> ModelOutput:
        return model_output(model, inputs_BL, precision=precision, vocab=self.teacher_vocab)
