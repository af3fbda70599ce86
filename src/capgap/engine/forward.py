"""
What a loss needs of a model's forward pass: its last hidden states and its output head.
"""

# B sequences, T tokens, D hidden channels, V entries of the vocabulary

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from capgap.engine.mmap_weights import release
from capgap.engine.onednn_matmul import fast_products


def hidden_states(model: PreTrainedModel, input_ids_BT: torch.Tensor) -> torch.Tensor:
    """Last hidden states before the output head, (B T) x D.

    A backward pass belongs into the same `fast_products`.
    """
    with fast_products():
        hidden_BTD = model.base_model(input_ids=input_ids_BT, use_cache=False).last_hidden_state
    return hidden_BTD.reshape(-1, hidden_BTD.shape[-1])


def output_head(model: PreTrainedModel) -> torch.Tensor:
    """Weights of the output head, V x D."""
    return model.get_output_embeddings().weight


def hidden_and_head(
    model: PreTrainedModel,
    input_ids_BT: torch.Tensor,
    *,
    precision: str = "float32",
    vocab: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What a loss is computed from: last hidden states, (B T) x D, and output head, V x D.

    precision: float32, or bfloat16 for mixed precision: matrix products of the forward pass, hidden
    states and head. vocab: size of the tokenizer; further rows of the head, which makers add to get
    a round number, are no tokens and left out.
    """
    dtype = getattr(torch, precision)
    with torch.autocast(input_ids_BT.device.type, torch.bfloat16, enabled=dtype != torch.float32):
        hidden_ND = hidden_states(model, input_ids_BT)
    head_VD = output_head(model)
    if vocab is not None and vocab < head_VD.shape[0]:
        head_VD = head_VD[:vocab]
    return hidden_ND.to(dtype), head_VD.to(dtype)


@torch.no_grad()
def hold_frozen(model: torch.nn.Module, precision: str) -> None:
    """Hold the weights of a model, or of a part, that will not learn, as its precision computes.

    float32: all in float32. bfloat16: the matrices of products, which autocast would round anew for
    every pass, rounded once. Embeddings, norms and buffers, and so what passes from layer to layer,
    are float32 in both.
    """
    tables = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, torch.nn.Embedding)
        for parameter in module.parameters()
    }
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        matrix = parameter.ndim >= 2 and id(parameter) not in tables
        dtype = getattr(torch, precision) if matrix else torch.float32
        if parameter.dtype != dtype:
            stored, parameter.data = parameter.data, parameter.data.to(dtype)
            release(stored)


def decoder_layers(model: PreTrainedModel) -> torch.nn.ModuleList:
    """The layers of a model, which are alike."""
    depth = model.config.num_hidden_layers
    return next(
        module
        for module in model.modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == depth
    )
