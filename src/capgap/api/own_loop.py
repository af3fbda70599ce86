"""The distillation loss for a training loop of one's own, from hidden states or from logits."""

# N tokens, V vocabulary, D student channels, E teacher's

from __future__ import annotations

from typing import Literal, overload

import torch

from capgap.config import Distill
from capgap.config.study_file import check_section
from capgap.config.training_settings import Objective
from capgap.data.token_streams import IGNORED
from capgap.engine.forward import OutputForm, through_head
from capgap.engine.losses import LossParts, ModelOutput, mixture_loss
from capgap.errors import CapgapError

Head = torch.nn.Linear | torch.Tensor


def loss_settings(
    where: str,
    objective: Objective,
    teacher_weight: float,
    temperature: float,
    beta: float | None,
    chunk_tokens: int | None,
) -> Distill:
    """The loss's settings, checked; `where` begins the message of the CapgapError of a bad one."""
    given = {"objective": objective, "teacher_weight": teacher_weight, "temperature": temperature}
    return check_section(Distill, {**given, "beta": beta, "loss_chunk_tokens": chunk_tokens}, where)


@overload
def distillation_loss(
    student: torch.Tensor,
    teacher: torch.Tensor,
    labels: torch.Tensor,
    *,
    student_head: Head | None = None,
    teacher_head: Head | None = None,
    student_cap: float | None = None,
    teacher_cap: float | None = None,
    objective: Objective = "soft_ce",
    teacher_weight: float = 0.5,
    temperature: float = 1.0,
    beta: float | None = None,
    ignore_index: int = -100,
    reduction: Literal["mean", "sum"] = "mean",
    chunk_tokens: int | None = None,
    return_parts: Literal[False] = False,
) -> torch.Tensor: ...


@overload
def distillation_loss(
    student: torch.Tensor,
    teacher: torch.Tensor,
    labels: torch.Tensor,
    *,
    student_head: Head | None = None,
    teacher_head: Head | None = None,
    student_cap: float | None = None,
    teacher_cap: float | None = None,
    objective: Objective = "soft_ce",
    teacher_weight: float = 0.5,
    temperature: float = 1.0,
    beta: float | None = None,
    ignore_index: int = -100,
    reduction: Literal["mean", "sum"] = "mean",
    chunk_tokens: int | None = None,
    return_parts: Literal[True],
) -> tuple[torch.Tensor, LossParts]: ...


def distillation_loss(
    student,
    teacher,
    labels,
    *,
    student_head=None,
    teacher_head=None,
    student_cap=None,
    teacher_cap=None,
    objective="soft_ce",
    teacher_weight=0.5,
    temperature=1.0,
    beta=None,
    ignore_index=-100,
    reduction="mean",
    chunk_tokens=None,
    return_parts=False,
):
    """(1 - w) CE(student, labels) + w tau^2 D(teacher, student), in nats per token.

    Two forms, which may differ between student and teacher:

    - hidden states (..., D) with the output head they enter, V x D weights or a `torch.nn.Linear`.
      Logits exist for `chunk_tokens` tokens at a time, so memory does not grow with tokens x V;
    - logits (..., V), if no head is given.

    Args:
        student: hidden states or logits, of any leading shape; gradients flow into it and its head.
        teacher: the same of the teacher, same leading shape and V; no gradients.
        labels: (...), int64, the token that follows each position. Unlike the models of
            transformers, nothing is shifted here.
        student_head, teacher_head: output heads. They are rounded to the type of the hidden states.
        student_cap, teacher_cap: the model's `final_logit_softcapping`, if it has one; raw logits
            are wanted then.
        objective: D, with p the teacher's and q the student's distribution. soft_ce: -sum p log q
            (arXiv 2311.07052); forward_kl: sum p log(p / q), with the same gradient; reverse_kl:
            sum q log(q / p); jensen_shannon: beta KL(p, m) + (1 - beta) KL(q, m) about
            m = beta p + (1 - beta) q (arXiv 2306.13649).
        teacher_weight: w, from 0 to 1.
        temperature: tau of p and q in D; tau^2 keeps the size of its gradient (Hinton et al. 2015).
        beta: of jensen_shannon, between 0 and 1; no other objective takes it.
        ignore_index: tokens with this label count in neither part.
        reduction: mean over the tokens that count (0 if none does), or their sum. With gradient
            accumulation, take the sum and divide by the tokens of the whole step.
        chunk_tokens: tokens whose logits are held at once; by V and the device if None.
        return_parts: also return (data_ce, teacher_term), reduced alike and detached. teacher_term
            is tau^2 D; neither part is weighted.

    Returns:
        A scalar tensor of type float32; with `return_parts`, a pair.

    Raises:
        CapgapError: shapes, labels or settings that do not fit together; the message names them.

    Source: `capgap.engine.losses`, which has the formulas and computes gradients with the loss.
    """
    settings = loss_settings(
        "distillation_loss", objective, teacher_weight, temperature, beta, chunk_tokens
    )
    if reduction not in ("mean", "sum"):
        raise CapgapError(f"distillation_loss: reduction is {reduction!r}; it is mean or sum")
    learnt = _output("student", student, student_head, student_cap)
    taught = _output("teacher", teacher, teacher_head, teacher_cap)
    if student.shape[:-1] != labels.shape or teacher.shape[:-1] != labels.shape:
        raise CapgapError(
            f"distillation_loss: student is {_shape(student)}, teacher {_shape(teacher)} and labels "
            f"{_shape(labels)}; all need the same leading shape, which is that of the labels"
        )
    if learnt.vocab != taught.vocab:
        raise CapgapError(
            f"distillation_loss: the student has {learnt.vocab} logits and the teacher {taught.vocab}; "
            "both need the same vocabulary: leave out the rows that pad one of them"
        )
    labels_N = labels.reshape(-1)
    counted_N = labels_N != ignore_index
    if ignore_index != IGNORED:
        labels_N = labels_N.where(counted_N, IGNORED)
    kept = labels_N[counted_N]
    counted = len(kept)
    if counted and not (kept.amin() >= 0 and kept.amax() < learnt.vocab):
        raise CapgapError(
            f"distillation_loss: labels go from {kept.amin().item()} to {kept.amax().item()}, but there "
            f"are {learnt.vocab} logits; tokens that do not count have the label {ignore_index}"
        )
    scale = 1 / max(1, counted) if reduction == "mean" else 1.0
    loss, sums = loss_of(settings, learnt, taught, labels_N, scale)
    if not return_parts:
        return loss
    return loss, LossParts(*(scale * part for part in sums))


def loss_of(
    settings: Distill,
    student: ModelOutput,
    teacher: ModelOutput,
    labels_N: torch.Tensor,
    scale: float,
) -> tuple[torch.Tensor, LossParts]:
    """The loss of some tokens and its parts, which are neither weighted nor scaled, outside of autocast."""
    with torch.autocast(labels_N.device.type, enabled=False):
        return mixture_loss(
            student.hidden,
            student.head,
            labels_N,
            teacher,
            cap=student.cap,
            objective=settings.objective,
            weight=settings.teacher_weight,
            temperature=settings.temperature,
            beta=settings.beta,
            scale=scale,
            chunk=settings.loss_chunk_tokens,
        )


def _output(name: str, states: torch.Tensor, head: Head | None, cap: float | None) -> ModelOutput:
    """Hidden states with a head, or logits, of N tokens; the teacher's without gradients."""
    if not (torch.is_tensor(states) and states.is_floating_point() and states.ndim >= 1):
        raise CapgapError(
            f"distillation_loss: {name} must be a floating-point tensor (..., channels), got "
            f"{_shape(states)}"
        )
    states_ND = states.reshape(-1, states.shape[-1])
    frozen = name == "teacher"
    if frozen:
        states_ND = states_ND.detach()
    if head is None:
        return ModelOutput(states_ND, None, cap)
    weight, bias = (head, None) if torch.is_tensor(head) else (head.weight, head.bias)
    if weight.ndim != 2 or weight.shape[1] != states_ND.shape[1]:
        raise CapgapError(
            f"distillation_loss: {name}_head is {_shape(weight)}, but {name} has "
            f"{states_ND.shape[1]} channels; the head is vocabulary x channels"
        )
    output = through_head(states_ND, weight, bias, form=OutputForm(cap=cap))
    return output._replace(head=output.head.detach()) if frozen else output


def _shape(value) -> str:
    return " x ".join(map(str, value.shape)) if torch.is_tensor(value) else type(value).__name__
