"""How the tokens of each kind of work go through the models, which decides their speed on a GPU."""

from __future__ import annotations

from capgap.config import Distill, Evaluate, Prune, TargetsStage, Training
from capgap.cost.architectures import Model
from capgap.cost.roofline import Pass, Shape


def trained(
    settings: Training, model: Model, teacher: Model | None = None, processes: int = 1
) -> Pass:
    """Training; teacher: online, in distillation."""
    own = settings.batch_tokens // processes
    tokens = min(settings.micro_batch_tokens or own, own)
    distills = isinstance(settings, Distill)
    shape = Shape(
        tokens,
        settings.sequence_length,
        chunk=settings.loss_chunk_tokens,
        objective=settings.objective if distills else "soft_ce",
        cached=distills and settings.teacher_targets != "online",
    )
    return Pass(
        "train",
        model,
        shape,
        settings.precision,
        teacher=teacher,
        teacher_precision=settings.precision_of_teacher if distills else settings.precision,
        batch_tokens=own,
        compiled=settings.compile,
        checkpointed=settings.activation_checkpointing,
    )


def measured(
    model: Model, settings: Evaluate | TargetsStage | Training, batch_tokens: int | None = None
) -> Pass:
    """A forward pass over text, for its loss or for the teacher's targets."""
    length, tokens = settings.sequence_length, batch_tokens or settings.batch_tokens
    return Pass("evaluate", model, Shape(max(tokens, length), length), settings.precision)


def scored(model: Model, settings: Prune, batch_tokens: int) -> Pass:
    """A forward pass, and each layer again with its backward pass."""
    length = settings.sequence_length
    return Pass("score", model, Shape(max(batch_tokens, length), length), settings.precision)
