"""
Causal attention on a CPU by full matmuls, for short sequences.

PyTorch's CPU kernel works on tiles that are too small for oneDNN (see `onednn_matmul`). Up to some
hundred tokens it is faster to multiply all queries of a head by all its keys at once, although half
of the scores are masked, and to keep the scores for the backward pass. At 1,024 tokens PyTorch's
kernel is faster again.
"""

# B sequences, T tokens, H heads of queries, K heads of keys and values, G = H / K, D channels a head

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch
from torch.autograd.function import once_differentiable
from transformers import modeling_utils
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from capgap.config.shapes import WHOLE_ATTENTION
from capgap.engine.onednn_matmul import onednn_in_use


class WholeAttention(torch.autograd.Function):
    """softmax(scale Q K^T + mask) V and its gradients; queries of one key share a product."""

    @staticmethod
    def forward(ctx, query_BHTD, key_BKTD, value_BKTD, scale):
        """The outputs, B x H x T x D, with a causal mask."""
        batch, heads, length, width = query_BHTD.shape
        sets = batch * key_BKTD.shape[1]
        groups = heads // key_BKTD.shape[1]
        query = query_BHTD.reshape(sets, groups * length, width)  # (B K) (G T) D
        key, value = (x.reshape(sets, length, width) for x in (key_BKTD, value_BKTD))
        make = _mask.__wrapped__ if torch.compiler.is_compiling() else _mask
        mask = make(length, groups, query.dtype)
        weights = torch.baddbmm(mask, query, key.transpose(1, 2), alpha=scale)  # (B K) (G T) T
        torch.softmax(weights, 2, out=weights)
        ctx.save_for_backward(query, key, value, weights)
        ctx.scale = scale
        return torch.bmm(weights, value).view(batch, heads, length, width)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_BHTD):
        """Gradients by query, key and value."""
        query, key, value, weights = ctx.saved_tensors
        batch, _, length, width = grad_BHTD.shape
        kept = (batch, len(key) // max(batch, 1), length, width)
        grad = grad_BHTD.reshape(query.shape)
        grad_value = torch.bmm(weights.transpose(1, 2), grad)
        grad_scores = torch.bmm(grad, value.transpose(1, 2))
        torch._softmax_backward_data(grad_scores, weights, 2, weights.dtype, grad_input=grad_scores)  # pyright: ignore[reportPrivateImportUsage]
        grad_query = torch.baddbmm(query, grad_scores, key, beta=0, alpha=ctx.scale)
        grad_key = torch.baddbmm(key, grad_scores.transpose(1, 2), query, beta=0, alpha=ctx.scale)
        return grad_query.view(grad_BHTD.shape), grad_key.view(kept), grad_value.view(kept), None


@lru_cache(4)
def _mask(length: int, groups: int, dtype: torch.dtype) -> torch.Tensor:
    """0 for visible tokens and -inf for later ones, for G queries a key: 1 x (G T) x T."""
    mask = torch.full((length, length), -torch.inf, dtype=dtype).triu(1)
    return mask.repeat(groups, 1).unsqueeze(0)


@contextmanager
def whole_attention() -> Iterator[None]:
    """Within this context every model's sdpa attention is computed by `attend`."""
    # takes precedence over the library's own function, which stays unchanged
    modeling_utils.ALL_ATTENTION_FUNCTIONS["sdpa"] = attend
    try:
        yield
    finally:
        del modeling_utils.ALL_ATTENTION_FUNCTIONS["sdpa"]


def attend(module, query, key, value, attention_mask, dropout=0.0, scaling=None, **options):
    """Attention as transformers calls it.

    Outside of `use_onednn`, and for long sequences or other masks, PyTorch's kernel is used.
    """
    length = query.shape[2]
    plain = attention_mask is None and not dropout and _causal(module, options)
    here = query.device.type == "cpu" and query.dtype == key.dtype == torch.float32
    here = here and onednn_in_use() and not torch.is_autocast_enabled("cpu")
    alike = key.shape == value.shape and key.shape[2] == length  # one token sees its cache
    if not (plain and here and alike and 1 < length <= WHOLE_ATTENTION):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
    scale = query.shape[3] ** -0.5 if scaling is None else scaling
    return WholeAttention.apply(query, key, value, scale).transpose(1, 2).contiguous(), None


def _causal(module, options: dict) -> bool:
    """Whether the mask is plain causal and scores are not modified."""
    if any(options.get(key) is not None for key in ("softcap", "position_bias", "cache")):
        return False
    causal = options.get("is_causal")
    return getattr(module, "is_causal", True) if causal is None else causal
