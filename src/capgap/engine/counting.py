"""
Parameters of a model by group, and FLOPs of its forward pass.
"""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from capgap.config.shapes import forward_flops_per_token
from capgap.engine.forward import output_head
from capgap.records.run_records import ParamGroups


def count_params(model: PreTrainedModel) -> ParamGroups:
    """Parameters by group.

    Embeddings are look-up tables and the output head. Attention includes every layer that mixes
    tokens, also recurrences and convolutions. All other parameters except norms count as MLP.
    """
    groups = {"embedding": 0, "attention": 0, "mlp": 0, "norm": 0}
    tables = [m for m in model.modules() if isinstance(m, torch.nn.Embedding)]
    tables += [head] if (head := model.get_output_embeddings()) is not None else []
    embedding = {id(parameter) for table in tables for parameter in table.parameters()}
    for name, parameter in model.named_parameters():  # shared tensors come once
        group = "embedding" if id(parameter) in embedding else _group(name)
        groups[group] += parameter.numel()
    total = sum(p.numel() for p in model.parameters())
    rest = total - groups["embedding"]
    idle = _idle_params(model)
    active = rest - idle if idle else None
    return ParamGroups(**groups, non_embedding=rest, total=total, active=active)


def _idle_params(model: PreTrainedModel) -> int:
    """Parameters of the experts that a token is not routed to, summed over layers."""
    config = model.config
    routed = getattr(config, "num_experts_per_tok", None)
    keys = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
    experts = next((n for key in keys if (n := getattr(config, key, None))), None)
    if not routed or not experts:
        return 0
    held = sum(p.numel() for name, p in model.named_parameters() if ".experts." in name)
    return held * (experts - min(routed, experts)) // experts


def _group(name: str) -> str:
    patterns = {
        "norm": ("norm", "ln_"),
        "attention": (
            "attn",
            "attention",
            "mixer",
            "mamba",
            "conv",
            "recurrent",
            "temporal",
            "ssm",
        ),
    }
    for group, parts in patterns.items():
        if any(part in name.lower() for part in parts):
            return group
    return "mlp"


def forward_flops(model: PreTrainedModel, context: int) -> int:
    """FLOPs of one token's forward pass in sequences of `context` tokens."""
    config, params = model.config, count_params(model)
    heads = getattr(config, "num_attention_heads", None) or 0  # a model without attention has none
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // max(heads, 1)
    idle = 0 if params.active is None else params.non_embedding - params.active
    return forward_flops_per_token(
        params.attention + params.mlp - idle + output_head(model).numel(),
        layers=config.num_hidden_layers,
        attention_width=heads * head_dim,
        context=context,
    )
