"""
The distillation loss of a teacher whose vocabulary is another one.

At tokens before which both models have read the same text, student and teacher are compared in classes of
entries (`entry_classes`). The logit of a class is the log of the sum of the exponentials of its entries'
logits, so its softmax is the sum of their probabilities, and the teacher's term is the ordinary one
(`losses.mixture_loss`) of these logits. Such a token counts

  (1 - w) CE(student, data) + w tau^2 D(classes of the teacher, classes of the student).

At tokens inside an entry of the teacher, both are compared in what this entry may go on with
(`continuations`), given that it goes on, and the student's probability Q that it does is learnt from the data:

  (1 - w) CE(student, data) + w (tau^2 D(continuations of the teacher, continuations of the student) - log Q).

Any other token counts CE(student, data) in full. If the data follow the teacher, the expected gradient of
soft_ce and forward_kl (at tau = 1) is then not biased by where the boundaries meet, though that depends on
what follows. If all entries are classes and
all tokens are taught, this is the ordinary loss.
"""

# N tokens of all sequences, C tokens of a chunk, M of these that are taught, I inside a teacher's entry,
# V entries, W of the teacher, K classes or continuations, U entries of the teacher in order

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.autograd.function import once_differentiable

from capgap.config import Distill
from capgap.config.shapes import chunk_tokens
from capgap.engine.continuations import ROOT, Continuations
from capgap.engine.entry_classes import NO_CLASS, EntryClasses
from capgap.engine.losses import IGNORED, LossParts, ModelOutput, mixture_loss
from capgap.engine.onednn_matmul import use_onednn

# Least share of a continuation in the probability of all: below it, a difference of sums is rounding error.
LEAST_SHARE = 1e-6
# Logit of a continuation that other nodes have: so far below the others that its probability is exactly
# zero, but finite, so that zero times it is zero.
ABSENT = -1e4


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


class Inside:
    """Logits of continuations from logits of entries, for tokens that begin inside a teacher's entry."""

    def __init__(self, tree: Continuations):
        self.device = torch.device("cpu")
        arrays = (tree.entries, tree.token, tree.low, tree.high, tree.first)
        self.arrays = tuple(map(torch.from_numpy, arrays))

    def to(self, device: torch.device) -> Inside:
        """The same on a device."""
        if self.device != device:
            self.arrays = tuple(array.to(device) for array in self.arrays)
            self.device = device
        return self

    def _continued(self, nodes_I: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The nodes that continue each node, I x K, and which of these places are none."""
        first = self.arrays[-1]
        counts_I = first[nodes_I + 1] - first[nodes_I]
        places_K = torch.arange(int(counts_I.max()), device=nodes_I.device)
        absent_IK = places_K >= counts_I[:, None]
        return (first[nodes_I, None] + places_K).masked_fill_(absent_IK, ROOT), absent_IK

    def term(
        self,
        student_IV: torch.Tensor,
        teacher_IW: torch.Tensor,
        nodes_I: torch.Tensor,
        settings: Distill,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The teacher's term, summed over tokens, and its gradient, I x V."""
        nodes_IK, absent_IK = self._continued(nodes_I)
        vocab = student_IV.shape[1]
        token_IK = self.arrays[1][nodes_IK].masked_fill_(
            absent_IK, vocab
        )  # a column beyond the entries
        mine_IK = student_IV.gather(1, token_IK.clamp_max(vocab - 1)).masked_fill_(
            absent_IK, ABSENT
        )
        theirs_IK = self._teacher(teacher_IW, nodes_IK, absent_IK)
        value, grad_IK = _teacher_term(mine_IK, theirs_IK, settings)
        all_I1, these_I1 = (torch.logsumexp(z, 1, keepdim=True) for z in (student_IV, mine_IK))
        grad_IK = grad_IK - (mine_IK - these_I1).exp_()  # with the likelihood of "one of these"
        grad_IV = torch.nn.functional.pad((student_IV - all_I1).exp_(), (0, 1))
        grad_IV.scatter_add_(1, token_IK, grad_IK)
        return value + (all_I1 - these_I1).sum(), grad_IV[:, :vocab]

    def _teacher(
        self, logits_IW: torch.Tensor, nodes_IK: torch.Tensor, absent_IK: torch.Tensor
    ) -> torch.Tensor:
        """The teacher's logits of continuations, I x K."""
        entries, _, low, high, _ = self.arrays
        p_IU = torch.softmax(logits_IW[:, entries], 1, dtype=torch.float64)
        below_IU = p_IU.new_zeros(len(p_IU), len(entries) + 1)  # sums of the entries before each
        torch.cumsum(p_IU, 1, out=below_IU[:, 1:])
        mass_IK = below_IU.gather(1, high[nodes_IK]) - below_IU.gather(1, low[nodes_IK])
        mass_IK.masked_fill_(absent_IK, 0)
        least_I1 = LEAST_SHARE * mass_IK.sum(1, keepdim=True) + torch.finfo(torch.float64).tiny
        logs_IK = torch.maximum(mass_IK, least_I1).log_().to(logits_IW.dtype)
        return logs_IK.masked_fill_(absent_IK, ABSENT)


@dataclass(frozen=True)
class Pools:
    """Both models' pools, for tokens that begin at a common boundary."""

    student: Pool
    teacher: Pool

    def to(self, device: torch.device) -> Pools:
        """The same on a device."""
        return Pools(self.student.to(device), self.teacher.to(device))

    def term(
        self, student_MV: torch.Tensor, teacher_MW: torch.Tensor, settings: Distill
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The teacher's term, summed over tokens, and its gradient, M x V."""
        mine_MK = self.student.logits(student_MV)
        value, grad_MK = _teacher_term(mine_MK, self.teacher.logits(teacher_MW), settings)
        return value, self.student.spread(student_MV, mine_MK, grad_MK)

    @classmethod
    def of(cls, classes: EntryClasses, vocab: int, teacher_vocab: int) -> Pools:
        """Of two vocabularies, as far as the heads have rows for their entries."""
        sides = (classes.student[:vocab], classes.teacher[:teacher_vocab])
        both = np.intersect1d(*sides)
        names = np.full(classes.count + 1, NO_CLASS)
        names[both[both != NO_CLASS]] = np.arange((both != NO_CLASS).sum())
        return cls(*(Pool(names[side], int(names.max()) + 1) for side in sides))


@dataclass(frozen=True)
class Comparison:
    """What both models predict of, at a common boundary and inside a teacher's entry."""

    pools: Pools
    inside: Inside

    def to(self, device: torch.device) -> Comparison:
        """The same on a device."""
        return Comparison(self.pools.to(device), self.inside.to(device))

    def term(
        self,
        student_MV: torch.Tensor,
        teacher_MW: torch.Tensor,
        nodes_M: torch.Tensor,
        settings: Distill,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The teacher's term and its gradient, for tokens whose nodes are all ROOT or none."""
        if nodes_M[0] == ROOT:
            return self.pools.term(student_MV, teacher_MW, settings)
        return self.inside.term(student_MV, teacher_MW, nodes_M, settings)


class _ClassLoss(torch.autograd.Function):
    """The loss and its gradients, by chunks of tokens."""

    @staticmethod
    @use_onednn()
    def forward(
        ctx,
        hidden_ND,
        head_VD,
        cap,
        labels_N,
        teacher,
        rows_N,
        nodes_N,
        comparison,
        settings,
        scale,
    ):
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
            rows_C, nodes_C = rows_N[part], nodes_N[part]
            labels_C1 = labels_N[part].unsqueeze(1)
            ce_C1 = torch.logsumexp(logits, 1, keepdim=True) - logits.gather(1, labels_C1)
            share_C1 = torch.where(rows_C < 0, 1.0, 1 - weight).to(wide).unsqueeze(1)
            grad_CV = torch.softmax(logits, 1).mul_(share_C1)
            grad_CV.scatter_add_(1, labels_C1, -share_C1)
            sums[0] += ce_C1.sum().float()
            sums[2] += ce_C1[rows_C < 0].sum().float()
            for here_C in (nodes_C == ROOT, nodes_C > ROOT):
                here_M = (here_C & (rows_C >= 0)).nonzero().squeeze(1)
                if not len(here_M):
                    continue
                theirs_MW = teacher.keep(rows_C[here_M]).logits(slice(None)).to(wide)
                value, grad_MV = comparison.term(
                    logits[here_M], theirs_MW, nodes_C[here_M], settings
                )
                sums[1] += value.float()
                grad_CV[here_M] += grad_MV.mul_(weight)
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
        return grad_hidden_ND.mul_(factor), grad_head_VD, *(None,) * 8


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
    nodes_N: torch.Tensor,
    comparison: Comparison,
    settings: Distill,
    *,
    scale: float = 1.0,
) -> tuple[torch.Tensor, LossParts]:
    """The loss summed over tokens and multiplied by `scale`, with its parts, nats.

    teacher: its output for any tokens. rows: which of them stands for each of the student's, -1 for none.
    nodes: where in the teacher's entry the token begins (`Continuations`), ROOT at a common boundary.
    Tokens with the label IGNORED do not count. settings: objective, beta, teacher_weight, temperature
    and loss_chunk_tokens are read.
    """
    kept_N = labels_N != IGNORED
    if not kept_N.all():
        student = student.keep(kept_N)
        labels_N, rows_N, nodes_N = labels_N[kept_N], rows_N[kept_N], nodes_N[kept_N]
    loss, sums = _ClassLoss.apply(
        *student, labels_N, teacher, rows_N, nodes_N, comparison, settings, scale
    )
    return loss, LossParts(*sums[:2])
