"""
The distillation loss, from hidden states to gradients, without holding full logits.

(1 - w) CE(student, data) + w tau^2 D(teacher, student), with p = softmax(teacher / tau) and
q = softmax(student / tau):

  soft_ce         -sum p log q: the objective of arXiv 2311.07052. Not a divergence: it exceeds
                  forward_kl by the teacher's entropy, which does not depend on the student
  forward_kl      sum p log(p / q); same gradient as soft_ce
  reverse_kl      sum q log(q / p)
  jensen_shannon  beta KL(p, m) + (1 - beta) KL(q, m), m = beta p + (1 - beta) q (arXiv 2306.13649)

Softening multiplies the gradient by 1 / tau^2, hence the factor (Hinton et al. 2015). The gradient
of each part with respect to the student's logits has a closed form, so it is computed chunk by chunk
of tokens, and memory grows with the chunk, not with tokens x vocabulary. On a CPU a chunk is
processed in blocks of rows that fit into the cache, on a GPU as a whole, by one kernel if there is
Triton (`loss_kernel`).
"""

# N tokens of all sequences, C tokens of a chunk, R tokens of a block, K entries of partial targets,
# V vocabulary, D student channels, E teacher's

from __future__ import annotations

from functools import partial
from typing import NamedTuple, get_args

import torch
from torch.autograd.function import once_differentiable

from capgap.config.shapes import chunk_tokens, gpu_chunk_tokens
from capgap.config.training_settings import Objective
from capgap.data.token_streams import IGNORED
from capgap.engine.device_path import add_product_, by_cache, moved
from capgap.engine.onednn_matmul import dot, use_onednn

ROW_ELEMENTS = 2**17  # elements of a block, half a megabyte; two blocks fit into a core's own cache
LEAST_ROWS = 8  # rows of a block; with fewer the calls cost more than the cache saves
COLUMNS = 1024  # of the head that a CPU multiplies by at once, so that they stay in its cache
OBJECTIVES = get_args(Objective)


class LossParts(NamedTuple):
    """Sums over tokens, in nats; detached, for the log."""

    data_ce: torch.Tensor  # cross-entropy against the data
    teacher_term: torch.Tensor  # the objective's term, times tau^2


class ModelOutput(NamedTuple):
    """The factors of the logits of N tokens, which are cap x tanh(hidden head^T / cap).

    Without a head, `hidden` holds the logits before the cap. Without a cap, logits are not capped.
    """

    hidden: torch.Tensor  # N x E, or N x V without a head
    head: torch.Tensor | None  # V x E
    cap: float | None = None  # final_logit_softcapping

    @property
    def vocab(self) -> int:
        """Entries of the vocabulary that have a logit."""
        return self.hidden.shape[1] if self.head is None else self.head.shape[0]

    def keep(self, rows_N: torch.Tensor) -> ModelOutput:
        """The output for some of the tokens."""
        return self._replace(hidden=self.hidden[rows_N])

    def buffer(self, tokens: int) -> torch.Tensor:
        """An empty buffer for the logits of a chunk."""
        return self.hidden.new_empty(tokens, self.vocab)

    def read_chunk(self, part: slice, buffer_CV: torch.Tensor) -> list[torch.Tensor]:
        """Logits of a chunk, written into the given buffer."""
        return [cap_(_logits(self.hidden[part], self.head, buffer_CV), self.cap)]

    @torch.no_grad()
    def logits(self, part: slice) -> torch.Tensor:
        """Logits of a chunk (C x V), without gradients."""
        return self.read_chunk(part, self.buffer(len(self.hidden[part])))[0]


def cap_(logits: torch.Tensor, cap: float | None) -> torch.Tensor:
    """Turn logits into cap x tanh(logits / cap), in place; nothing happens without a cap."""
    return logits if cap is None else logits.div_(cap).tanh_().mul_(cap)


class PartialTargets(NamedTuple):
    """K masses in the vocabulary for each of N tokens, of sum 1, at the loss's temperature.

    An entry may repeat, as draws do: its masses add up.
    """

    ids: torch.Tensor  # N x K, int64
    masses: torch.Tensor  # N x K

    def keep(self, rows_N: torch.Tensor) -> PartialTargets:
        """The targets of some of the tokens."""
        return PartialTargets(*(value[rows_N] for value in self))

    def buffer(self, tokens: int) -> None:
        """Partial targets need no buffer."""

    def read_chunk(self, part: slice, buffer: None) -> list[torch.Tensor]:
        """The targets of a chunk."""
        return [value[part] for value in self]


class Term(NamedTuple):
    """The teacher's term of the loss and its weight; beta is used by jensen_shannon only."""

    objective: str
    weight: float
    temperature: float
    beta: float | None


class _Fused(torch.autograd.Function):
    """Weighted sums over tokens and their gradients, by chunks.

    `differentiate` turns the logits of a block into the gradient and returns its sums. There is one
    for the data alone, so that pretraining does not rerun when the distillation loss changes, and
    one for the mixture. `kernel` does the same for a whole chunk in one operation, or is None.
    """

    @staticmethod
    @use_onednn()
    def forward(
        ctx,
        hidden_ND,
        head_VD,
        cap,
        labels_N,
        targets,
        differentiate,
        kernel,
        weights,
        scale,
        chunk,
    ):
        tokens = hidden_ND.shape[0]
        vocab = ModelOutput(hidden_ND, head_VD).vocab
        wide = torch.promote_types(hidden_ND.dtype, torch.float32)
        chunk = _even(tokens, chunk)
        rows = max(LEAST_ROWS, ROW_ELEMENTS // vocab) if by_cache(hidden_ND) else chunk
        logits_CV = hidden_ND.new_empty(chunk, vocab)
        buffer_CV = targets.buffer(chunk) if targets else None
        grad_hidden_ND = torch.empty_like(hidden_ND)
        widened, wanted = (
            wide != hidden_ND.dtype,
            ctx.needs_input_grad[1],
        )  # scoring freezes the head
        grad_head_VD = None
        if wanted:
            grad_head_VD = (torch.zeros_like if widened else torch.empty_like)(head_VD, dtype=wide)
        sums = hidden_ND.new_zeros(len(weights), dtype=torch.float32)
        for start in range(0, max(tokens, 1), chunk):
            part = slice(start, min(start + chunk, tokens))
            grad_CV = _logits(hidden_ND[part], head_VD, logits_CV)
            chunk_targets = targets.read_chunk(part, buffer_CV) if targets else []
            if kernel is not None:
                sums += kernel(grad_CV, labels_N[part], chunk_targets, cap)
            for first in range(0, 0 if kernel else part.stop - start, rows):
                block = slice(first, first + rows)
                logits_RV = cap_(grad_CV[block].to(wide), cap)
                slope_RV = None if cap is None else 1 - (logits_RV / cap).square_()
                labels_R1 = labels_N[part][block].unsqueeze(1)
                sums += differentiate(logits_RV, labels_R1, [t[block] for t in chunk_targets])
                if slope_RV is not None:
                    logits_RV *= slope_RV
                if widened:
                    grad_CV[block] = logits_RV
            if head_VD is None:
                grad_hidden_ND[part] = grad_CV
                continue
            torch.mm(grad_CV, head_VD, out=grad_hidden_ND[part])
            if wanted and widened:
                add_product_(grad_head_VD, grad_CV.T, hidden_ND[part])
            elif wanted:  # the first chunk overwrites what an empty tensor holds
                grad_head_VD.addmm_(grad_CV.T, hidden_ND[part], beta=min(start, 1))
        ctx.scale, ctx.dtype = scale, hidden_ND.dtype
        ctx.grads = grad_hidden_ND, grad_head_VD  # held by nothing else, so given away uncopied
        ctx.mark_non_differentiable(sums)
        return scale * sum(w * s for w, s in zip(weights, sums, strict=True)), sums

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_loss, _sums):
        grad_hidden_ND, grad_head_VD = ctx.grads
        ctx.grads = None
        factor = grad_loss * ctx.scale
        if grad_head_VD is not None:
            grad_head_VD = grad_head_VD.mul_(factor).to(ctx.dtype)
        none = (None,) * 8
        return grad_hidden_ND.mul_(factor), grad_head_VD, *none


def _even(tokens: int, most: int) -> int:
    """Size of the chunks if as few as allowed share the tokens evenly; a small last one is slow."""
    chunks = max(1, -(-tokens // most))
    return max(1, -(-tokens // chunks))


def _logits(
    hidden_CD: torch.Tensor, head_VD: torch.Tensor | None, buffer_CV: torch.Tensor
) -> torch.Tensor:
    """Logits of a chunk before any cap, written into the first rows of the given buffer."""
    out_CV = buffer_CV[: hidden_CD.shape[0]]
    if head_VD is None:
        return out_CV.copy_(hidden_CD)
    vocab = head_VD.shape[0]
    columns = COLUMNS if by_cache(hidden_CD) else vocab
    for first in range(0, vocab, columns):
        part = slice(first, first + columns)
        torch.mm(hidden_CD, head_VD[part].T, out=out_CV[:, part])
    return out_CV


def _differentiate_data(logits_RV, labels_R1, targets) -> torch.Tensor:
    """Turn logits into the gradient of the cross-entropy against the data; returns its sum, nats."""
    label_R1 = logits_RV.gather(1, labels_R1)
    log_sum_R1 = _softmax_(logits_RV)
    logits_RV.scatter_add_(1, labels_R1, torch.full_like(label_R1, -1.0))
    return (log_sum_R1 - label_R1).sum().float()


def _differentiate_mixture(logits_RV, labels_R1, targets, term: Term) -> torch.Tensor:
    """Turn logits into the gradient of the mixture; returns the sums of its two parts, nats."""
    weight, tau = term.weight, term.temperature
    label_R1 = logits_RV.gather(1, labels_R1)
    if tau == 1:
        teacher, log_sum_R1 = _teacher_term(logits_RV, targets, term, 1 - weight, weight)
    else:
        soft_RV = logits_RV / tau
        teacher, _ = _teacher_term(soft_RV, targets, term, 0.0, weight * tau)
        teacher *= tau**2
        log_sum_R1 = _softmax_(logits_RV)
        logits_RV.mul_(1 - weight).add_(soft_RV)
    logits_RV.scatter_add_(1, labels_R1, torch.full_like(label_R1, weight - 1))
    return torch.stack([(log_sum_R1 - label_R1).sum(), teacher]).float()


def _softmax_(logits_RV: torch.Tensor) -> torch.Tensor:
    """Turn logits into probabilities; returns the log-sum-exp of every row (R x 1).

    One fused pass, which is much faster on a CPU than exponentials, their sum and a division.
    """
    largest_R1 = logits_RV.amax(1, keepdim=True)
    return _log_sum(largest_R1, torch.softmax(logits_RV, 1, out=logits_RV))


def _log_sum(largest_R1: torch.Tensor, probs_RV: torch.Tensor) -> torch.Tensor:
    """Logs of the sums of exponentials (R x 1), from the largest logit and the largest probability,
    which is never too small for a logarithm."""
    return largest_R1 - probs_RV.amax(1, keepdim=True).log_()


def _teacher_term(
    logits_RV, targets, term: Term, plain: float, taught: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Turn logits into plain x softmax + taught x gradient of the teacher's term.

    Returns the sum of the term and the log of the softmax's denominator (R x 1).
    """
    if len(targets) > 1:
        return _sparse_cross_entropy(logits_RV, *targets, plain, taught)
    teacher_RV = targets[0].to(logits_RV.dtype)
    if term.temperature != 1:
        teacher_RV /= term.temperature
    if term.objective in ("soft_ce", "forward_kl"):
        return _cross_entropy(logits_RV, teacher_RV, plain, taught, term.objective == "forward_kl")
    return _divergence(logits_RV, teacher_RV, plain, taught, term.beta)


def _cross_entropy(logits_RV, teacher_RV, plain, taught, less_entropy: bool):
    """-sum p log q, less the entropy of p for the forward KL divergence; gradient q - p."""
    if less_entropy:  # sum p log(p / q) = sum p (teacher - logits) - their logs of sums
        gap_RV = teacher_RV - logits_RV
        log_sum_teacher_R1 = _softmax_(teacher_RV)
        value = dot(teacher_RV, gap_RV) - log_sum_teacher_R1.sum()
    else:
        value = -dot(torch.softmax(teacher_RV, 1, out=teacher_RV), logits_RV)
    log_sum_R1 = _softmax_(logits_RV)
    if plain + taught != 1:
        logits_RV *= plain + taught
    logits_RV.sub_(teacher_RV, alpha=taught)
    return value + log_sum_R1.sum(), log_sum_R1


def _divergence(logits_RV, teacher_RV, plain, taught, beta: float | None):
    """Reverse KL, sum q log(q/p); with beta, Jensen-Shannon about m = beta p + (1 - beta) q.

    Both are share x sum q r + (terms of p and m): gradient share x q (r - sum q r), with r = log(q/p)
    and share 1 for the reverse KL, log(q/m) and 1 - beta for Jensen-Shannon, whose part of p is
    beta sum p log(p/m).
    """
    q_RV = torch.softmax(logits_RV, 1)
    log_sum_R1 = _log_sum(logits_RV.amax(1, keepdim=True), q_RV)
    if beta is None:
        share, rest = 1.0, 0.0
        logits_RV -= teacher_RV
        logits_RV -= log_sum_R1 - _softmax_(teacher_RV)
    else:
        share = 1 - beta
        p_RV = torch.softmax(teacher_RV, 1)
        log_m_RV = torch.lerp(q_RV, p_RV, beta)
        log_m_RV.clamp_min_(torch.finfo(log_m_RV.dtype).tiny).log_()
        logits_RV.sub_(log_sum_R1).sub_(log_m_RV)
        teacher_RV -= _log_sum(teacher_RV.amax(1, keepdim=True), p_RV)
        rest = beta * dot(p_RV, teacher_RV.sub_(log_m_RV))
    weighted_RV = torch.mul(q_RV, logits_RV, out=teacher_RV)
    inner_R1 = weighted_RV.sum(1, keepdim=True)
    taught *= share
    torch.addcmul(weighted_RV.mul_(taught), q_RV, plain - taught * inner_R1, out=logits_RV)
    return share * inner_R1.sum() + rest, log_sum_R1


def _sparse_cross_entropy(logits_RV, ids_RK, masses_RK, plain, taught):
    """-sum_k m_k log q_k: the cross-entropy under a target of K masses, whose sum is 1."""
    value = -dot(masses_RK, logits_RV.gather(1, ids_RK))
    log_sum_R1 = _softmax_(logits_RV)
    if plain + taught != 1:
        logits_RV *= plain + taught
    logits_RV.scatter_add_(1, ids_RK, masses_RK * -taught)
    return value + log_sum_R1.sum(), log_sum_R1


def data_loss(
    hidden_ND: torch.Tensor,
    head_VD: torch.Tensor | None,
    labels_N: torch.Tensor,
    *,
    cap: float | None = None,
    scale: float = 1.0,
    chunk: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy against the data, summed over tokens: (times `scale`, plain and detached).

    hidden, head, cap: a `ModelOutput`. labels: on any device; nothing waits for a GPU if they are on
    the CPU. chunk: tokens whose logits are held at once, by default `chunk_by_device`.
    """
    labels_N, rows_N = _counted(labels_N, hidden_ND.device)
    if rows_N is not None:
        hidden_ND = hidden_ND[rows_N]
    kernels = loss_kernels(hidden_ND)
    loss, sums = _Fused.apply(
        hidden_ND,
        head_VD,
        cap,
        labels_N,
        None,
        _differentiate_data,
        kernels and kernels.data_,
        (1.0,),
        scale,
        chunk or chunk_by_device(ModelOutput(hidden_ND, head_VD)),
    )
    return loss, sums[0]


def chunk_by_device(output: ModelOutput) -> int:
    """Tokens whose logits a loss holds at once: few on a CPU, many on a GPU."""
    return (chunk_tokens if by_cache(output.hidden) else gpu_chunk_tokens)(output.vocab)


def loss_kernels(hidden_ND: torch.Tensor):
    """The module of the loss's kernels if these hidden states are on a GPU for which it has some."""
    if hidden_ND.device.type != "cuda":
        return None
    from capgap.engine import loss_kernel  # Triton comes with PyTorch for a GPU alone

    return loss_kernel if loss_kernel.possible(hidden_ND) else None


def _counted(
    labels_N: torch.Tensor, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The labels that are not ignored, and their rows if these are not all; on the device."""
    kept_N = labels_N != IGNORED
    if kept_N.all():
        return moved(labels_N, device), None
    rows_N = kept_N.nonzero().squeeze(1)
    return moved(labels_N[rows_N], device), moved(rows_N, device)


def mixture_loss(
    hidden_ND: torch.Tensor,
    head_VD: torch.Tensor | None,
    labels_N: torch.Tensor,
    targets: ModelOutput | PartialTargets,
    *,
    cap: float | None = None,
    objective: str = "soft_ce",
    weight: float = 0.5,
    temperature: float = 1.0,
    beta: float | None = None,
    scale: float = 1.0,
    chunk: int | None = None,
) -> tuple[torch.Tensor, LossParts]:
    """Distillation loss summed over tokens and multiplied by `scale`, with its parts.

    hidden, head, cap, labels, chunk: see `data_loss`; those of the student. objective: soft_ce,
    forward_kl, reverse_kl or jensen_shannon, which alone takes a beta between 0 and 1; partial targets
    allow soft_ce alone. `scale` is one over the tokens of the optimizer step for a mean loss. Tokens with the label IGNORED count in neither part. Raises ValueError for an unknown objective
    or one that partial targets or beta do not allow.
    """
    if objective not in OBJECTIVES:
        raise ValueError(f"objective is {objective!r}; it must be one of {', '.join(OBJECTIVES)}")
    if (beta is not None) != (objective == "jensen_shannon") or not 0 < (beta or 0.5) < 1:
        raise ValueError(f"{objective} with beta {beta}: jensen_shannon alone takes 0 < beta < 1")
    if isinstance(targets, PartialTargets) and objective != "soft_ce":
        raise ValueError(f"partial targets allow the objective soft_ce, not {objective}")
    labels_N, rows_N = _counted(labels_N, hidden_ND.device)
    if rows_N is not None:
        hidden_ND, targets = hidden_ND[rows_N], targets.keep(rows_N)
    term = Term(objective, weight, temperature, beta)
    kernels = None if isinstance(targets, PartialTargets) else loss_kernels(hidden_ND)
    if kernels and objective not in kernels.KINDS:
        kernels = None
    loss, sums = _Fused.apply(
        hidden_ND,
        head_VD,
        cap,
        labels_N,
        targets,
        partial(_differentiate_mixture, term=term),
        kernels and partial(kernels.mixture_, term=term),
        (1 - weight, weight),
        scale,
        chunk or chunk_by_device(ModelOutput(hidden_ND, head_VD)),
    )
    return loss, LossParts(*sums)


@torch.no_grad()
@use_onednn()
def data_ce_sum(
    hidden_ND: torch.Tensor,
    head_VD: torch.Tensor | None,
    labels_N: torch.Tensor,
    *,
    cap: float | None = None,
) -> float:
    """Cross-entropy against the data summed over tokens, nats, accumulated in double precision.

    hidden, head, cap: a `ModelOutput`. Only sums of the logits are kept, so on a CPU the vocabulary
    is processed in parts whose logits stay in the cache.
    """
    tokens, vocab = hidden_ND.shape[0], ModelOutput(hidden_ND, head_VD).vocab
    on_cpu = by_cache(hidden_ND)
    chunk = _even(tokens, chunk_tokens(1) if on_cpu else gpu_chunk_tokens(vocab))
    entries = min(vocab, COLUMNS) if on_cpu else vocab
    wide = torch.promote_types(hidden_ND.dtype, torch.float32)
    space = hidden_ND.new_empty(chunk * entries)
    total = hidden_ND.new_zeros((), dtype=torch.float64)
    for start in range(0, tokens, chunk):
        hidden_CD, labels_C1 = (
            hidden_ND[start : start + chunk],
            labels_N[start : start + chunk, None],
        )
        label_C1 = log_sum_C1 = None
        for first in range(0, vocab, entries):
            part = slice(first, min(first + entries, vocab))
            width = part.stop - part.start
            logits_CP = space[: len(hidden_CD) * width].view(len(hidden_CD), width)
            if head_VD is None:
                logits_CP.copy_(hidden_CD[:, part])
            else:
                torch.mm(hidden_CD, head_VD[part].T, out=logits_CP)
            logits_CP = cap_(logits_CP.to(wide), cap)
            here_C1 = labels_C1 - first
            found_C1 = logits_CP.gather(1, here_C1.clamp(0, width - 1))
            highest_C1 = logits_CP.amax(1, keepdim=True)
            sum_C1 = logits_CP.sub_(highest_C1).exp_().sum(1, keepdim=True).log_() + highest_C1
            if first == 0:
                label_C1, log_sum_C1 = found_C1, sum_C1
                continue
            inside_C1 = (here_C1 >= 0) & (here_C1 < width)
            label_C1 = torch.where(inside_C1, found_C1, label_C1)
            log_sum_C1 = torch.logaddexp(log_sum_C1, sum_C1)
        total += (log_sum_C1 - label_C1).double().sum()
    return total.item()
