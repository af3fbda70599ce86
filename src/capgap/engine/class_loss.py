"""
The distillation loss of a teacher whose vocabulary is another one.

At tokens before which both models have read the same text, student and teacher are compared in classes of
entries (`entry_classes`). The logit of a class is the log of the sum of the exponentials of its entries'
logits, so its softmax is the sum of their probabilities, and the teacher's term is the ordinary one
(`losses.mixture_loss`) of these logits. Such a token counts

  (1 - w) CE(student, data) + w (tau^2 D(classes of the teacher, classes of the student) + R),

where R = -log q(entry | its class) - log Q is learnt from the data: which entry of its class follows, and that
one with a class does (Q). R is 0 if every entry of the student is a class of its own.

At tokens inside an entry of the teacher, both are compared in what this entry may go on with
(`continuations`), given that it goes on, and that it does is learnt from the data (R = -log Q):

  (1 - w) CE(student, data) + w (tau^2 D(continuations of the teacher, continuations of the student) + R).

Any other token counts CE(student, data) in full. If the data follow the teacher, the expected gradient of
soft_ce and forward_kl (at tau = 1) is then not biased by where the boundaries meet, though that depends on
what follows. If all entries are classes and
all tokens are taught, this is the ordinary loss.
"""

# N tokens of all sequences, C tokens of a chunk, M of these that are taught, I inside a teacher's entry,
# V entries, W of the teacher, K classes or continuations, U entries of the teacher in order

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch.autograd.function import once_differentiable

from capgap.config import Distill
from capgap.config.shapes import class_chunk_tokens
from capgap.engine.continuations import ROOT, Continuations
from capgap.engine.entry_classes import NO_CLASS, EntryClasses
from capgap.engine.losses import IGNORED, LossParts, ModelOutput, mixture_loss
from capgap.engine.onednn_matmul import use_onednn

# Least share of a continuation in the probability of its node: below it, a difference of sums is rounding error.
LEAST_SHARE = 1e-6
# Logit of a continuation that other nodes have: so far below the others that its probability is exactly
# zero, but finite, so that zero times it is zero.
ABSENT = -1e4


class Term(NamedTuple):
    """The part of the loss that has the weight of the teacher, for some tokens."""

    value: torch.Tensor  # the teacher's term, summed over tokens
    rest: torch.Tensor  # what is learnt from the data in addition (R), summed over tokens
    grad_MV: torch.Tensor  # of both for the student's logits


class Pool:
    """Logits of classes from logits of entries. classes: of every entry, NO_CLASS for none; count: K."""

    def __init__(self, classes: np.ndarray, count: int):
        self.count = count
        self.class_V = torch.from_numpy(np.where(classes == NO_CLASS, count, classes))
        self.own = bool(np.array_equal(classes, np.arange(count)))  # entry i is class i
        self.single = len(classes) == count == len(np.unique(classes[classes != NO_CLASS]))
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

    def term(
        self,
        student_IV: torch.Tensor,
        teacher_IW: torch.Tensor,
        nodes_I: torch.Tensor,
        settings: Distill,
    ) -> Term:
        """The part of the loss that has the weight of the teacher."""
        _, token, _, _, first = self.arrays
        nodes_IK, absent_IK = _ranges(first[nodes_I], first[nodes_I + 1])
        vocab = student_IV.shape[1]
        token_IK = token[nodes_IK].masked_fill_(absent_IK, vocab)  # a column beyond the entries
        mine_IK = student_IV.gather(1, token_IK.clamp_max(vocab - 1))
        mine_IK.masked_fill_(absent_IK, ABSENT)
        theirs_IK = self._teacher(teacher_IW, nodes_I, nodes_IK).masked_fill_(absent_IK, ABSENT)
        value, grad_IK = _teacher_term(mine_IK, theirs_IK, settings)
        all_I1, these_I1 = (torch.logsumexp(z, 1, keepdim=True) for z in (student_IV, mine_IK))
        grad_IV = torch.nn.functional.pad((student_IV - all_I1).exp_(), (0, 1))
        grad_IV.scatter_add_(1, token_IK, grad_IK - (mine_IK - these_I1).exp_())
        return Term(value, (all_I1 - these_I1).sum(), grad_IV[:, :vocab])

    def _teacher(
        self, logits_IW: torch.Tensor, nodes_I: torch.Tensor, nodes_IK: torch.Tensor
    ) -> torch.Tensor:
        """The teacher's logits of continuations, I x K, from those of the entries of their nodes."""
        entries, _, low, high, _ = self.arrays
        places_IU, absent_IU = _ranges(low[nodes_I], high[nodes_I])
        of_node_IU = logits_IW.gather(1, entries[places_IU]).masked_fill_(absent_IU, -torch.inf)
        p_IU = torch.softmax(of_node_IU, 1, dtype=torch.float64)
        below_IU = torch.nn.functional.pad(p_IU.cumsum(1), (1, 0))  # of the entries before each
        starts_IK, stops_IK = (
            (of[nodes_IK] - low[nodes_I, None]).clamp_(0, below_IU.shape[1] - 1)
            for of in (low, high)
        )
        mass_IK = below_IU.gather(1, stops_IK) - below_IU.gather(1, starts_IK)
        return mass_IK.clamp_min_(LEAST_SHARE).log_().to(logits_IW.dtype)


def _ranges(start_I: torch.Tensor, stop_I: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A row with the numbers from each start up to its stop, and the mask of the padding."""
    places = torch.arange(int((stop_I - start_I).max()), device=start_I.device)
    absent = places >= (stop_I - start_I)[:, None]
    return (start_I[:, None] + places).masked_fill_(absent, 0), absent


@dataclass(frozen=True)
class Pools:
    """Both models' pools, for tokens that begin at a common boundary."""

    student: Pool
    teacher: Pool

    def to(self, device: torch.device) -> Pools:
        """The same on a device."""
        return Pools(self.student.to(device), self.teacher.to(device))

    def term(
        self,
        student_MV: torch.Tensor,
        teacher_MW: torch.Tensor,
        labels_M: torch.Tensor,
        settings: Distill,
    ) -> Term:
        """The part of the loss that has the weight of the teacher; all labels have a class."""
        mine_MK = self.student.logits(student_MV)
        value, grad_MK = _teacher_term(mine_MK, self.teacher.logits(teacher_MW), settings)
        if self.student.single:
            grad_MV = self.student.spread(student_MV, mine_MK, grad_MK)
            return Term(value, value.new_zeros(()), grad_MV)
        labels_M1 = labels_M.unsqueeze(1)
        class_M1 = self.student.class_V[labels_M1]
        all_M1, these_M1 = (torch.logsumexp(z, 1, keepdim=True) for z in (student_MV, mine_MK))
        own_M1, entry_M1 = mine_MK.gather(1, class_M1), student_MV.gather(1, labels_M1)
        grad_MK = grad_MK - (mine_MK - these_M1).exp_()
        grad_MK.scatter_add_(1, class_M1, torch.ones_like(own_M1))
        grad_MV = self.student.spread(student_MV, mine_MK, grad_MK)
        grad_MV.add_((student_MV - all_M1).exp_())
        grad_MV.scatter_add_(1, labels_M1, -torch.ones_like(own_M1))
        return Term(value, (all_M1 - these_M1 + own_M1 - entry_M1).sum(), grad_MV)

    @classmethod
    def of(cls, classes: EntryClasses, vocab: int, teacher_vocab: int) -> Pools:
        """The pools of two vocabularies, limited to entries for which the heads have rows."""
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
        labels_M: torch.Tensor,
        nodes_M: torch.Tensor,
        settings: Distill,
    ) -> Term:
        """The part of the loss that has the weight of the teacher; the nodes are all ROOT or none is."""
        if nodes_M[0] == ROOT:
            return self.pools.term(student_MV, teacher_MW, labels_M, settings)
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
        chunk = settings.loss_chunk_tokens or class_chunk_tokens(
            max(output.vocab, teacher.vocab), hidden_ND.is_cuda
        )
        wide = torch.promote_types(hidden_ND.dtype, torch.float32)
        logits_CV = output.buffer(min(chunk, max(tokens, 1)))
        grad_hidden_ND = torch.empty_like(hidden_ND)
        grad_head_VD = None if head_VD is None else torch.zeros_like(head_VD, dtype=wide)
        # of CE of all tokens, of the teacher's term, of R and CE of tokens that are not taught
        sums = hidden_ND.new_zeros(3, dtype=torch.float32)
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
                term = comparison.term(
                    logits[here_M], theirs_MW, labels_C1[here_M, 0], nodes_C[here_M], settings
                )
                sums[1] += term.value.float()
                sums[2] += term.rest.float()
                grad_CV[here_M] += term.grad_MV.mul_(weight)
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
        ce, term, from_data = sums
        return scale * ((1 - weight) * ce + weight * (term + from_data)), sums

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
    unclassed_N = comparison.pools.student.class_V[labels_N] == comparison.pools.student.count
    rows_N = rows_N.masked_fill(unclassed_N & (nodes_N == ROOT), -1)  # an event that no class is
    loss, sums = _ClassLoss.apply(
        *student, labels_N, teacher, rows_N, nodes_N, comparison, settings, scale
    )
    return loss, LossParts(*sums[:2])
