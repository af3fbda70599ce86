"""
A small random model of every causal-language-model class of transformers, and how its loss is had.

`python tests/small_models.py` writes the table of docs/models.md anew.
"""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from transformers import CONFIG_MAPPING, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from capgap.engine.forward import OutputForm, output_form
from capgap.errors import CapgapError

DOCS = Path(__file__).parents[1] / "docs" / "models.md"
START, END = "<!-- table of all classes -->", "<!-- end of the table -->"
MOST_PARAMETERS = 20_000_000
SIZES = {
    32: "hidden_size d_model n_embd dim emb_dim embed_dim embedding_size d_embed word_embed_proj_dim",
    48: "intermediate_size ffn_dim d_inner n_inner decoder_ffn_dim encoder_ffn_dim dim_feedforward "
    "ffn_hidden_size d_ff feed_forward_size",
    2: "num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers "
    "num_decoder_layers num_encoder_layers num_key_value_heads num_kv_heads num_experts_per_tok",
    4: "num_attention_heads n_head n_heads num_heads decoder_attention_heads rotary_dim "
    "encoder_attention_heads num_decoder_attention_heads num_encoder_attention_heads "
    "num_local_experts num_experts n_routed_experts moe_num_experts mamba_n_heads",
    8: "head_dim qk_nope_head_dim qk_rope_head_dim v_head_dim state_size mamba_d_state "
    "attention_head_size",
    64: "n_positions max_position_embeddings n_ctx max_seq_len mamba_d_ssm",
    16: "moe_intermediate_size shared_expert_intermediate_size q_lora_rank kv_lora_rank mamba_d_head",
    1: "n_group topk_group",
    512: "vocab_size",
}
SMALL = {key: value for value, keys in SIZES.items() for key in keys.split()}
LATENT = {"num_key_value_heads": 4}  # attention through a latent vector has no grouped heads
SCALED = {"logits_scaling": 8.0}
OTHERS = {  # by model type; None leaves out a key of SMALL
    **dict.fromkeys(
        "axk1 axk2 deepseek_v2 deepseek_v3 deepseek_v32 glm4_moe_lite glm_moe_dsa longcat_flash "
        "minicpm3 youtu".split(),
        LATENT,
    ),
    **dict.fromkeys("granite granitemoe granitemoeshared granitemoehybrid".split(), SCALED),
    "cohere_compass_text": {},
    "cwm": {"bos_token_id": 1, "eos_token_id": 2},
    "dots1": {"n_shared_experts": 1},
    "falcon": {"head_dim": None},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 4, "head_dim": 16, "n_groups": 1},
    "modernbert-decoder": {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
    "prophetnet": {"num_hidden_layers": None},
    "reformer": {"axial_pos_embds": False, "attn_layers": ["local", "local"]},
    "xlnet": {"max_position_embeddings": None},
    "xlstm": {"v_head_dim": None},
    "zamba": {"layers_block_type": ["mamba", "hybrid"], "layer_types": ["mamba", "hybrid"]},
    "zamba2": {"layers_block_type": ["mamba", "hybrid"], "layer_types": ["mamba", "hybrid"]},
    "zaya": {"num_experts_per_tok": 1},
}


def classes() -> dict[str, str]:
    """Every class of transformers for causal language modelling, with its model type."""
    found = {}
    for kind, names in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items():
        for name in [names] if isinstance(names, str) else names:
            if name not in found or kind.endswith("_text"):
                found[name] = kind
    return dict(sorted(found.items()))


def build_small(name: str, seed: int = 0) -> PreTrainedModel:
    """A random model of a class; any exception of transformers if it cannot be built small."""
    kind = classes()[name]
    make, model_class = CONFIG_MAPPING[kind], getattr(transformers, name)
    plain, others = make(), OTHERS.get(kind, {})
    settings = {key: size for key, size in SMALL.items() if hasattr(type(plain)(), key)} | others
    settings = {key: value for key, value in settings.items() if value is not None}
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = getattr(plain, key, None)
        if key not in others and isinstance(value, int) and value >= SMALL["vocab_size"]:
            settings[key] = None
    if hasattr(plain, "is_decoder"):
        settings["is_decoder"] = True
    config = make(**settings)
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in model_class(config).parameters())
    if size > MOST_PARAMETERS:
        raise ValueError("a wrapper of several models whose parts this test does not make small")
    torch.manual_seed(seed)
    model = model_class(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def describe(form: OutputForm) -> str:
    """How a loss is computed, as the table has it."""
    if form.dense:
        return "from the logits of the whole forward pass"
    parts = ["fused"]
    parts += [f"scale {form.scale:.4g}"] if form.scale != 1 else []
    parts += [f"soft cap {form.cap:.4g}"] if form.cap is not None else []
    return ", ".join(parts)


def verdict(name: str) -> str:
    """What the table has for a class."""
    try:
        model = build_small(name)
    except Exception as error:  # of any kind: configurations check themselves in many ways
        reason = str(error).strip().splitlines()[0]
        if "library but it was not found" in reason:  # which one, depends on what is installed
            return "not tested: needs a library for images that capgap does not install"
        return f"not tested: {reason[:100].strip()}"
    try:
        form = output_form(model)
    except CapgapError as error:
        return "refused: " + str(error).removeprefix(f"{name}: ").split("; take")[0]
    biased = not form.dense and model.get_output_embeddings().bias is not None
    return describe(form) + (", bias of the head" if biased else "")


def table() -> str:
    """The table of all classes."""
    rows = ["| class | loss |", "|---|---|"]
    rows += [f"| `{name}` | {verdict(name)} |" for name in classes()]
    return "\n".join(rows)


if __name__ == "__main__":
    before, _, rest = DOCS.read_text(encoding="utf-8").partition(START)
    after = rest.partition(END)[2]
    DOCS.write_text(f"{before}{START}\n\n{table()}\n\n{END}{after}", encoding="utf-8")
