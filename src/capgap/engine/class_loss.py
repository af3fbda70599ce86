"""
The distillation loss of a teacher whose vocabulary is another one.

Student and teacher are compared in classes of entries (`entry_classes`), at the tokens before which both
have read the same text. The logit of a class is the log of the sum of the exponentials of its entries'
logits, so its softmax is the sum of their probabilities, and the teacher's term is the ordinary one
(`losses.mixture_loss`) of these logits. A taught token counts

  (1 - w) CE(student, data) + w tau^2 D(classes of the teacher, classes of the student),

and any other token CE(student, data) in full: if the data follow the teacher, the expected gradient of
soft_ce and forward_kl is then not biased by where the boundaries meet. If all entries are classes and
all tokens are taught, this is the ordinary loss.
"""

# N tokens of all sequences, C tokens of a chunk, M of these that are taught, V entries, K classes

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.autograd.function import once_differentiable

from capgap.config import Distill
from capgap.config.shapes import chunk_tokens
from capgap.engine.entry_classes import NO_CLASS, EntryClasses
from capgap.engine.losses import IGNORED, LossParts, ModelOutput, mixture_loss
from capgap.engine.onednn_matmul import use_onednn


class Pool:
    """Logits of classes from logits of entries. classes: of every entry, NO_CLASS for none; count: K."""

    def __init__(self, classes: np.ndarray, count: int):
        self.class_V = torch.from_numpy(np.where(classes == NO_CLASS, count, classes))
        self.own = bool(np.array_equal(classes, np.arange(count)))  # every entry is a class
        members = np.flatnonzero(classes != NO_CLASS)
        members = members[np.argsort(classes[members], kind="stable")]
        sizes = np.bincount(classes[members], minlength=count)
        starts, self.groups = np.cumsum(sizes) - sizes, []  # of classes of about the same size
        width = 1
        while (sizes > width // 2).any():
            chosen = np.flatnonzero((sizes > width // 2) & (sizes <= width))
            place = starts[chosen, None] + np.minimum(np.arange(width), sizes[chosen, None] - 1)
            empty = np.arange(width) >= sizes[chosen, None]
            if len(chosen):
                parts = (chosen, members[place], empty)
                self.groups.append(tuple(map(torch.from_numpy, parts)))
            width *= 2

    def to(self, device: torch.device) -> Pool:
        """The same on a device."""
        if self.class_V.device != device:
            self.class_V = self.class_V.to(device)
            self.groups = [tuple(part.to(device) for part in group) for group in self.groups]
        return self

    def logits(self, logits_MV: torch.Tensor) -> torch.Tensor:
        """Logits of the classes, M x K."""
        if self.own:
            return logits_MV.clone()
        pooled_MK = logits_MV.new_empty(len(logits_MV), sum(len(g[0]) for g in self.groups))
        for classes, members, empty in self.groups:
            each = logits_MV[:, members]
            pooled_MK[:, classes] = (
                each[..., 0]
                if members.shape[1] == 1
                else torch.logsumexp(each.masked_fill_(empty, -torch.inf), -1)
            )
        return pooled_MK

    def spread(
        self, logits_MV: torch.Tensor, pooled_MK: torch.Tensor, grad_MK: torch.Tensor
    ) -> torch.Tensor:
        """The gradient for the entries, M x V, from the one for the classes: each gets its share."""
        if self.own:
            return grad_MK
        none_M1 = torch.full_like(pooled_MK[:, :1], torch.inf)
        of_entry = torch.cat([pooled_MK, none_M1], 1)[:, self.class_V]
        share_MV = (logits_MV - of_entry).exp_()
        return share_MV.mul_(torch.cat([grad_MK, torch.zeros_like(none_M1)], 1)[:, self.class_V])


@dataclass(frozen=True)
class Pools:
    """Both models' pools."""

    student: Pool
    teacher: Pool

    @classmethod
    def of(cls, classes: EntryClasses, vocab: int, teacher_vocab: int) -> Pools:
        """Of two vocabularies, as far as the heads have rows for their entries."""
        sides = (classes.student[:vocab], classes.teacher[:teacher_vocab])
        both = np.intersect1d(*sides)
        names = np.full(classes.count + 1, NO_CLASS)
        names[both[both != NO_CLASS]] = np.arange((both != NO_CLASS).sum())
        return cls(*(Pool(names[side], int(names.max()) + 1) for side in sides))


class _ClassLoss(torch.autograd.Function):
    """The loss and its gradients, by chunks of tokens."""

    @staticmethod
    @use_onednn()
    def forward(ctx, hidden_ND, head_VD, cap, labels_N, teacher, rows_N, pools, settings, scale):
        output = ModelOutput(hidden_ND, head_VD, cap)
        weight, tokens = settings.teacher_weight, len(hidden_ND)
        chunk = settings.loss_chunk_tokens or chunk_tokens(max(output.vocab, teacher.vocab))
        wide = torch.promote_types(hidden_ND.dtype, torch.float32)
        logits_CV = output.buffer(min(chunk, max(tokens, 1)))
        grad_hidden_ND = torch.empty_like(hidden_ND)
        grad_head_VD = None if head_VD is None else torch.zeros_like(head_VD, dtype=wide)
        sums = hidden_ND.new_zeros(3, dtype=torch.float32)  # all CE, teacher's term, CE untaught
        for start in range(0, tokens, chunk):
            part = slice(start, min(start + chunk, tokens))
            logits = output.read_chunk(part, logits_CV)[0].to(wide)
            rows_C, labels_C1 = rows_N[part], labels_N[part].unsqueeze(1)
            taught_M = (rows_C >= 0).nonzero().squeeze(1)
            own_MV = logits[taught_M]
            pooled_MK = pools.student.logits(own_MV)
            theirs_MK = pools.teacher.logits(
                teacher.keep(rows_C[taught_M]).logits(slice(None)).to(wide)
            )
            value, grad_MK = _teacher_term(pooled_MK, theirs_MK, settings)
            ce_C1 = torch.logsumexp(logits, 1, keepdim=True) - logits.gather(1, labels_C1)
            share_C1 = torch.ones_like(ce_C1)
            share_C1[taught_M] = 1 - weight
            sums += torch.stack([ce_C1.sum(), value, ce_C1.sum() - ce_C1[taught_M].sum()]).float()
            grad_CV = torch.softmax(logits, 1).mul_(share_C1)
            grad_CV.scatter_add_(1, labels_C1, -share_C1)
            grad_CV[taught_M] += pools.student.spread(own_MV, pooled_MK, grad_MK).mul_(weight)
            if cap is not None:
                grad_CV *= 1 - (logits / cap).square_()
            grad_CV = grad_CV.to(hidden_ND.dtype)
            if head_VD is None:
                grad_hidden_ND[part] = grad_CV
                continue
            torch.mm(grad_CV, head_VD, out=grad_hidden_ND[part])
            grad_head_VD += grad_CV.T @ hidden_ND[part]
        ctx.scale, ctx.grads = scale, (grad_hidden_ND, grad_head_VD)
        ctx.mark_non_differentiable(sums)
        ce, term, untaught = sums
        return scale * ((1 - weight) * ce + weight * (term + untaught)), sums

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_loss, _sums):
        grad_hidden_ND, grad_head_VD = ctx.grads
        ctx.grads = None
        factor = grad_loss * ctx.scale
        if grad_head_VD is not None:
            grad_head_VD = grad_head_VD.mul_(factor).to(grad_hidden_ND.dtype)
        return grad_hidden_ND.mul_(factor), grad_head_VD, *(None,) * 7


def _teacher_term(
    student_MK: torch.Tensor, teacher_MK: torch.Tensor, settings: Distill
) -> tuple[torch.Tensor, torch.Tensor]:
    """The teacher's term of the ordinary loss, summed over tokens, and its gradient (M x K)."""
    with torch.enable_grad():
        leaf_MK = student_MK.detach().requires_grad_()
        labels_M = torch.zeros(len(leaf_MK), dtype=torch.int64, device=leaf_MK.device)
        loss, parts = mixture_loss(
            leaf_MK,
            None,
            labels_M,
            ModelOutput(teacher_MK, None),
            objective=settings.objective,
            weight=1.0,
            temperature=settings.temperature,
            beta=settings.beta,
            chunk=max(1, len(leaf_MK)),
        )
        (grad_MK,) = torch.autograd.grad(loss, leaf_MK)
    return parts.teacher_term, grad_MK


def class_loss(
    student: ModelOutput,
    labels_N: torch.Tensor,
    teacher: ModelOutput,
    rows_N: torch.Tensor,
    pools: Pools,
    settings: Distill,
    *,
    scale: float = 1.0,
) -> tuple[torch.Tensor, LossParts]:
    """The loss summed over tokens and multiplied by `scale`, with its parts, nats.

    teacher: its output for any tokens; rows: which of them stands for each of the student's, -1 for
    none. Tokens with the label IGNORED do not count. settings: objective, beta, teacher_weight,
    temperature and loss_chunk_tokens are read.
    """
    kept_N = labels_N != IGNORED
    if not kept_N.all():
        student, labels_N, rows_N = student.keep(kept_N), labels_N[kept_N], rows_N[kept_N]
    loss, sums = _ClassLoss.apply(
        student.hidden, student.head, student.cap, labels_N, teacher, rows_N, pools, settings, scale
    )
    return loss, LossParts(*sums[:2])
