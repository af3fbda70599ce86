"""
The distillation loss, from hidden states to gradients, without holding full logits.

The objective of arXiv 2311.07052: (1 - w) CE(student, data) + w CE(student, teacher), where the
second term is the cross-entropy of the student under the teacher's distribution. It is not a KL
divergence: the two differ by the teacher's entropy, which does not depend on the student.

Both terms are cross-entropies against a known target, so the gradient with respect to the
student's logits is (softmax(logits) - target) and can be written down while the chunk's logits
are at hand. Memory grows with the chunk, not with tokens x vocabulary.
"""

# N tokens of all sequences, C tokens of a chunk, V vocabulary, D student channels, E teacher's

from __future__ import annotations

from typing import NamedTuple

import torch

CHUNK_TOKENS = 1024


class LossParts(NamedTuple):
    """Sums over tokens, in nats; detached, for the log."""

    data_ce: torch.Tensor  # cross-entropy against the data
    teacher_ce: torch.Tensor  # cross-entropy against the teacher's distribution, times tau^2


class Signal(NamedTuple):
    """What the teacher says about N tokens: its hidden states (N x E) and output head (V x E)."""

    hidden: torch.Tensor
    head: torch.Tensor


class _Data(torch.autograd.Function):
    """Cross-entropy against the data; separate from `_Mixture`, for pretraining needs no teacher
    and must not change when the distillation loss does."""

    @staticmethod
    def forward(ctx, hidden_ND, head_VD, labels_N, scale):
        grad_hidden_ND = torch.empty_like(hidden_ND)
        grad_head_VD = torch.zeros_like(head_VD)
        data_ce = hidden_ND.new_zeros((), dtype=torch.float32)
        for start in range(0, hidden_ND.shape[0], CHUNK_TOKENS):
            part = slice(start, start + CHUNK_TOKENS)
            labels_C1 = labels_N[part].unsqueeze(1)
            logits_CV = hidden_ND[part] @ head_VD.T
            logits_CV -= logits_CV.amax(1, keepdim=True)  # the loss does not see a shift
            data_ce -= logits_CV.gather(1, labels_C1).sum()
            grad_CV = logits_CV.exp_()
            sum_C1 = grad_CV.sum(1, keepdim=True)
            data_ce += sum_C1.log().sum()
            grad_CV /= sum_C1
            grad_CV.scatter_add_(1, labels_C1, torch.full_like(sum_C1, -1.0)).mul_(scale)
            torch.mm(grad_CV, head_VD, out=grad_hidden_ND[part])
            grad_head_VD.addmm_(grad_CV.T, hidden_ND[part])
        ctx.save_for_backward(grad_hidden_ND, grad_head_VD)
        ctx.mark_non_differentiable(data_ce)
        return scale * data_ce, data_ce

    @staticmethod
    def backward(ctx, grad_loss, _data):
        grad_hidden_ND, grad_head_VD = ctx.saved_tensors
        return grad_hidden_ND * grad_loss, grad_head_VD * grad_loss, None, None


class _Mixture(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_ND, head_VD, labels_N, signal, weight, temperature, scale):
        grad_hidden_ND = torch.empty_like(hidden_ND)
        grad_head_VD = torch.zeros_like(head_VD)
        data_ce = hidden_ND.new_zeros((), dtype=torch.float32)
        teacher_ce = hidden_ND.new_zeros((), dtype=torch.float32)
        for start in range(0, hidden_ND.shape[0], CHUNK_TOKENS):
            part = slice(start, start + CHUNK_TOKENS)
            labels_C1 = labels_N[part].unsqueeze(1)
            logits_CV = hidden_ND[part] @ head_VD.T
            logits_CV -= logits_CV.amax(1, keepdim=True)  # the loss does not see a shift
            teacher_CV = signal.hidden[part] @ signal.head.T
            target_CV = torch.softmax(teacher_CV / temperature, 1)
            if temperature == 1:
                teacher_ce -= torch.dot(target_CV.view(-1), logits_CV.view(-1))
            else:
                log_soft_CV = torch.log_softmax(logits_CV / temperature, 1)
                teacher_ce -= temperature**2 * torch.dot(target_CV.view(-1), log_soft_CV.view(-1))
            data_ce -= logits_CV.gather(1, labels_C1).sum()
            grad_CV = logits_CV.exp_()
            sum_C1 = grad_CV.sum(1, keepdim=True)
            log_sum = sum_C1.log().sum()
            data_ce += log_sum
            grad_CV /= sum_C1
            minus_one_C1 = torch.full_like(sum_C1, -1.0)
            if temperature == 1:
                teacher_ce += log_sum
                grad_CV.sub_(target_CV, alpha=weight)
                grad_CV.scatter_add_(1, labels_C1, minus_one_C1 * (1 - weight))
            else:
                grad_CV.scatter_add_(1, labels_C1, minus_one_C1).mul_(1 - weight)
                grad_CV.add_(log_soft_CV.exp_().sub_(target_CV), alpha=weight * temperature)
            grad_CV.mul_(scale)
            torch.mm(grad_CV, head_VD, out=grad_hidden_ND[part])
            grad_head_VD.addmm_(grad_CV.T, hidden_ND[part])
        ctx.save_for_backward(grad_hidden_ND, grad_head_VD)
        ctx.mark_non_differentiable(data_ce, teacher_ce)
        return scale * ((1 - weight) * data_ce + weight * teacher_ce), data_ce, teacher_ce

    @staticmethod
    def backward(ctx, grad_loss, _data, _teacher):
        grad_hidden_ND, grad_head_VD = ctx.saved_tensors
        return grad_hidden_ND * grad_loss, grad_head_VD * grad_loss, None, None, None, None, None


def data_loss(
    hidden_ND: torch.Tensor, head_VD: torch.Tensor, labels_N: torch.Tensor, *, scale: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy against the data, summed over tokens: (times `scale`, plain and detached)."""
    return _Data.apply(hidden_ND, head_VD, labels_N, scale)


def mixture_loss(
    hidden_ND: torch.Tensor,
    head_VD: torch.Tensor,
    labels_N: torch.Tensor,
    signal: Signal,
    *,
    weight: float = 0.5,
    temperature: float = 1.0,
    scale: float = 1.0,
) -> tuple[torch.Tensor, LossParts]:
    """Distillation loss summed over tokens and multiplied by `scale`, with its parts.

    `scale` is one over the tokens of the optimizer step for a mean loss. With temperature tau both
    distributions of the teacher's term are softened and the term is multiplied by tau^2 (Hinton et
    al. 2015).
    """
    loss, data_ce, teacher_ce = _Mixture.apply(
        hidden_ND, head_VD, labels_N, signal, weight, temperature, scale
    )
    return loss, LossParts(data_ce, teacher_ce)


@torch.no_grad()
def data_ce_sum(hidden_ND: torch.Tensor, head_VD: torch.Tensor, labels_N: torch.Tensor) -> float:
    """Cross-entropy against the data summed over tokens, nats, accumulated in double precision."""
    total = 0.0
    for start in range(0, hidden_ND.shape[0], CHUNK_TOKENS):
        part = slice(start, start + CHUNK_TOKENS)
        logits_CV = hidden_ND[part] @ head_VD.T
        loss_C = torch.logsumexp(logits_CV, 1) - logits_CV.gather(1, labels_N[part, None])[:, 0]
        total += loss_C.double().sum().item()
    return total
