"""Loss of a model on held-out text: every token but the first is predicted exactly once."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch

from capgap.data.token_streams import (
    IGNORED,
    check_long_enough,
    evaluation_batches,
    evaluation_windows,
)
from capgap.engine.forward import model_output
from capgap.engine.losses import data_ce_sum
from capgap.engine.parallel import ONE_PROCESS, DistContext
from capgap.engine.streaming import ready
from capgap.errors import CapgapError


@torch.no_grad()
def mean_loss(
    model,
    stream: np.ndarray,
    *,
    sequence_length: int,
    batch_tokens: int,
    split: str,
    precision: str = "float32",
    vocab: int | None = None,
    bos_id: int | None = None,
    compute: Callable | None = None,
    mask: np.ndarray | None = None,
    dist: DistContext = ONE_PROCESS,
) -> float:
    """Mean cross-entropy of the next token, nats per token.

    Windows of `sequence_length` tokens follow one another without overlap, so a token sees between
    none and `sequence_length` - 1 tokens before it. bos_id: first of every window, see
    `token_streams.begin`. precision, vocab: see `model_output`.
    compute: the forward wrapper if the model is distributed. mask: tokens of the stream that count,
    all if None. dist: the processes that share the windows; all get the same sum, which is added in the
    order of the windows, whatever their number. Raises CapgapError if none counts.
    """

    def summed(model, inputs_BT, labels_N) -> float:
        output = model_output(model, inputs_BT, precision=precision, vocab=vocab)
        hidden_ND = output.hidden
        if mask is not None:
            counted_N = labels_N != IGNORED
            hidden_ND, labels_N = hidden_ND[counted_N], labels_N[counted_N]
            if not len(labels_N):
                return 0.0
        return data_ce_sum(hidden_ND, output.head, labels_N, cap=output.cap)

    check_long_enough(stream, sequence_length, split)
    counted = len(stream) - 1 if mask is None else int(mask[1:].sum())
    if counted == 0:
        raise CapgapError(
            f"the {split} split has no completion among its first {len(stream):,} tokens, so there is "
            "no loss on completions; raise validation_tokens, or set loss_on to all"
        )
    was_training = model.training
    model.eval()
    sums: list[float] = []
    batch_size = max(1, batch_tokens // sequence_length)
    windows = evaluation_windows(stream, sequence_length, batch_size, bos_id, mask)
    for inputs_BT, labels_BT in ready(model, dist.deal(windows)):
        moved = inputs_BT.to(model.device), labels_BT.reshape(-1).to(model.device)
        sums.append(compute(summed, *moved) if compute else summed(model, *moved))
    model.train(was_training)
    batches = evaluation_batches(len(stream), sequence_length, batch_size)
    return sum(dist.in_order(sums, batches)) / counted


def bits_per_byte(loss_nats_per_token: float, tokens: int, text_bytes: int) -> float:
    """Loss per UTF-8 byte of text, comparable across tokenizers."""
    return loss_nats_per_token * tokens / (math.log(2) * text_bytes)
