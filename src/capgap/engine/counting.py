"""
Parameters of a model by group, and FLOPs of its forward pass.
"""

from __future__ import annotations

from transformers import PreTrainedModel

from capgap.config.shapes import forward_flops_per_token
from capgap.engine.forward import output_head
from capgap.errors import CapgapError
from capgap.records.run_records import ParamGroups


def count_params(model: PreTrainedModel) -> ParamGroups:
    """Parameters by group; a tensor that belongs to no group is refused by name."""
    groups = {"embedding": 0, "attention": 0, "mlp": 0, "norm": 0}
    for name, parameter in model.named_parameters():  # shared tensors come once
        groups[_group(name)] += parameter.numel()
    total = sum(p.numel() for p in model.parameters())
    rest = total - groups["embedding"]
    return ParamGroups(**groups, non_embedding=rest, total=total)


def _group(name: str) -> str:
    patterns = {
        "norm": ("norm", "ln_"),
        "embedding": ("embed", "wte", "wpe", "lm_head"),
        "attention": ("attn", "attention"),
        "mlp": ("mlp", "fc1", "fc2"),
    }
    for group, parts in patterns.items():
        if any(part in name for part in parts):
            return group
    raise CapgapError(f"parameter {name} belongs to no known group of parameters")


def forward_flops(model: PreTrainedModel, context: int) -> int:
    """FLOPs of one token's forward pass in sequences of `context` tokens."""
    config, params = model.config, count_params(model)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return forward_flops_per_token(
        params.attention + params.mlp + output_head(model).numel(),
        layers=config.num_hidden_layers,
        attention_width=config.num_attention_heads * head_dim,
        context=context,
    )
