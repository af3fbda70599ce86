"""
Declarations of the architectures that can be pruned; pruning uses no other knowledge of them.

Three kinds of unit can be cut: `groups` (key-value heads with their query heads, per layer),
`neurons` (of the MLP, per layer) and `hidden` (channels of the residual stream, shared by all
layers). Whole layers and entries of the vocabulary (`vocab`) can be removed, too. A tensor is declared by
the kind each of its dimensions carries, in the order of the dimensions: "groups hidden" is a matrix
whose rows belong to groups and whose columns belong to hidden channels, "-" is a dimension that
stays. A dimension lists its units one after another, each as a block of equal width; "3*groups"
lists them three times over (query, key and value side by side), "qkv*groups" first the query heads
of all groups, then their keys, then their values. In a mixture of experts the neurons are the
experts: an expert is kept or removed whole, with its row of the router. A model may lack declared
tensors; a tensor that is not declared raises an error that names it.

To add an architecture, add a `Family` and its class name to `FAMILIES`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from transformers import PreTrainedConfig

from capgap.errors import CapgapError


@dataclass(frozen=True)
class Family:
    """The tensors of an architecture. Paths are dotted; those of a layer are relative to it."""

    layers: str  # the list of layers
    embeddings: tuple[str, ...]  # modules whose outputs add up to the first residual stream
    attention_out: str  # of a layer: reads the groups side by side, writes to the residual stream
    mlp_out: str  # of a layer: reads the neurons, writes to the residual stream
    outer_embedding: dict[str, str]  # tensors outside the layers: embeddings and output head
    outer: dict[str, str]  # the other tensors outside the layers
    inner: dict[str, str]  # tensors of a layer
    # key of the configuration -> layers, vocab, hidden, heads, groups, neurons or head_dim
    config: dict[str, str]
    # modules of a layer whose outputs are added to the residual stream, if not the two above
    attention_writes: str | None = None
    mlp_writes: str | None = None
    experts: bool = False  # `mlp_out` is the module that holds all experts
    # keys of the configuration that make heads, or layers, depend on their index
    numbered_heads: tuple[str, ...] = ()
    numbered_layers: tuple[str, ...] = ()
    hidden_is_heads: bool = False  # the code requires hidden = heads x head dimension
    embeddings_times_root_hidden: bool = False  # the code multiplies them by the root of hidden

    @property
    def writers(self) -> tuple[str, str]:
        """Modules of a layer whose outputs are added to the residual stream."""
        return self.attention_writes or self.attention_out, self.mlp_writes or self.mlp_out

    @property
    def mlp_tensor(self) -> str:
        """The weight of `mlp_out`, relative to a layer."""
        return f"{self.mlp_out}.down_proj" if self.experts else f"{self.mlp_out}.weight"

    def groups(self, config: PreTrainedConfig) -> int:
        """Key-value heads of a model."""
        if getattr(config, "multi_query", False) and not config.new_decoder_architecture:  # Falcon
            return 1
        keys = [key for key, size in self.config.items() if size == "groups"]
        return getattr(config, keys[0]) if keys else config.num_attention_heads

    @property
    def norms(self) -> tuple[list[str], list[str]]:
        """Norms of the residual stream: those of a layer, and those outside the layers.

        If no norm of a layer reads the stream, those that write to it.
        """
        inner, outer = (
            [name.removesuffix(".weight") for name, kinds in tensors.items()
             if kinds == "hidden" and name.endswith(".weight")]
            for tensors in (self.inner, self.outer)
        )  # fmt: skip
        return [name for name in inner if name not in self.writers] or inner, outer

    def kinds(self, parameter: str) -> tuple[list[tuple[int | str, str]], int | None]:
        """What each dimension of a parameter carries, as (repeats, kind), and its layer if any.

        repeats: a number, or "qkv". Raises CapgapError for a tensor that is not declared.
        """
        inside = re.fullmatch(rf"{re.escape(self.layers)}\.(\d+)\.(.+)", parameter)
        if inside:
            layer, text = int(inside[1]), self.inner.get(inside[2])
        else:
            layer, text = None, (self.outer | self.outer_embedding).get(parameter)
        if text is None:
            raise CapgapError(
                f"{parameter}: pruning does not support this tensor of the architecture; "
                "declare it in capgap/pruning/families.py"
            )
        parts = [part.rpartition("*") for part in text.split()]
        return [(r if r == "qkv" else int(r or 1), kind) for r, _, kind in parts], layer


# Llama and the architectures that differ from it by biases, windows or norms inside a head.
LLAMA = Family(
    layers="model.layers",
    embeddings=("model.embed_tokens",),
    attention_out="self_attn.o_proj",
    mlp_out="mlp.down_proj",
    outer_embedding={"model.embed_tokens.weight": "vocab hidden", "lm_head.weight": "vocab hidden"},
    outer={"model.norm.weight": "hidden"},
    inner={
        "input_layernorm.weight": "hidden",
        "self_attn.q_proj.weight": "groups hidden",
        "self_attn.q_proj.bias": "groups",
        "self_attn.q_norm.weight": "-",
        "self_attn.k_proj.weight": "groups hidden",
        "self_attn.k_proj.bias": "groups",
        "self_attn.k_norm.weight": "-",
        "self_attn.v_proj.weight": "groups hidden",
        "self_attn.v_proj.bias": "groups",
        "self_attn.o_proj.weight": "hidden groups",
        "self_attn.o_proj.bias": "hidden",
        "post_attention_layernorm.weight": "hidden",
        "mlp.gate_proj.weight": "neurons hidden",
        "mlp.gate_proj.bias": "neurons",
        "mlp.up_proj.weight": "neurons hidden",
        "mlp.up_proj.bias": "neurons",
        "mlp.down_proj.weight": "hidden neurons",
        "mlp.down_proj.bias": "hidden",
    },
    config={
        "vocab_size": "vocab",
        "num_hidden_layers": "layers",
        "hidden_size": "hidden",
        "num_attention_heads": "heads",
        "num_key_value_heads": "groups",
        "head_dim": "head_dim",
        "intermediate_size": "neurons",
    },
)

# A norm between what attention and MLP put out and the residual stream.
NORMED_OUTPUTS = {
    "attention_writes": "post_attention_layernorm",
    "mlp_writes": "post_feedforward_layernorm",
}

GEMMA = replace(LLAMA, embeddings_times_root_hidden=True)

GEMMA2 = replace(
    GEMMA,
    **NORMED_OUTPUTS,
    inner=LLAMA.inner
    | {"pre_feedforward_layernorm.weight": "hidden", "post_feedforward_layernorm.weight": "hidden"},
)

# Norms of queries and keys run over all heads: those of a cut model over the heads that are left.
OLMO2 = replace(
    LLAMA,
    **NORMED_OUTPUTS,
    inner={key: kinds for key, kinds in LLAMA.inner.items() if key != "input_layernorm.weight"}
    | {
        "self_attn.q_norm.weight": "groups",
        "self_attn.k_norm.weight": "groups",
        "post_feedforward_layernorm.weight": "hidden",
    },
)

PHI3 = replace(
    LLAMA,
    inner=LLAMA.inner
    | {
        "self_attn.qkv_proj.weight": "qkv*groups hidden",
        "mlp.gate_up_proj.weight": "2*neurons hidden",
    },
)

STABLELM = replace(  # with norms that have biases; those inside heads are not declared
    LLAMA,
    outer=LLAMA.outer | {"model.norm.bias": "hidden"},
    inner={key: kinds for key, kinds in LLAMA.inner.items() if "_norm" not in key}
    | {"input_layernorm.bias": "hidden", "post_attention_layernorm.bias": "hidden"},
    config={key: size for key, size in LLAMA.config.items() if size != "head_dim"},
    hidden_is_heads=True,
)

# Minitron is one. No gate in the MLP, norms with biases.
NEMOTRON = replace(
    LLAMA,
    outer=STABLELM.outer,
    inner=LLAMA.inner
    | {"input_layernorm.bias": "hidden", "post_attention_layernorm.bias": "hidden"},
)

EXPERTS = {
    "mlp.gate.weight": "neurons hidden",  # the router
    "mlp.experts.gate_up_proj": "neurons - hidden",
    "mlp.experts.down_proj": "neurons hidden -",
}

MIXTRAL = replace(
    LLAMA,
    mlp_out="mlp.experts",
    mlp_writes="mlp",
    experts=True,
    inner={key: kinds for key, kinds in LLAMA.inner.items() if not key.startswith("mlp.")}
    | EXPERTS,
    config={key: size for key, size in LLAMA.config.items() if size != "neurons"}
    | {"num_local_experts": "neurons"},
)

FALCON = Family(
    layers="transformer.h",
    embeddings=("transformer.word_embeddings",),
    attention_out="self_attention.dense",
    mlp_out="mlp.dense_4h_to_h",
    outer_embedding={
        "transformer.word_embeddings.weight": "vocab hidden",
        "lm_head.weight": "vocab hidden",
    },
    outer={"transformer.ln_f.weight": "hidden", "transformer.ln_f.bias": "hidden"},
    inner={
        f"{norm}.{tensor}": "hidden"
        for norm in ("input_layernorm", "post_attention_layernorm", "ln_attn", "ln_mlp")
        for tensor in ("weight", "bias")
    }
    | {
        # query heads, key and value of one group lie side by side
        "self_attention.query_key_value.weight": "groups hidden",
        "self_attention.query_key_value.bias": "groups",
        "self_attention.dense.weight": "hidden groups",
        "self_attention.dense.bias": "hidden",
        "mlp.dense_h_to_4h.weight": "neurons hidden",
        "mlp.dense_h_to_4h.bias": "neurons",
        "mlp.dense_4h_to_h.weight": "hidden neurons",
        "mlp.dense_4h_to_h.bias": "hidden",
    },
    config={
        "vocab_size": "vocab",
        "num_hidden_layers": "layers",
        "hidden_size": "hidden",
        "num_attention_heads": "heads",
        "num_kv_heads": "groups",
        "ffn_hidden_size": "neurons",
    },
    hidden_is_heads=True,
    numbered_heads=("alibi",),
)

GPT2 = Family(
    layers="transformer.h",
    embeddings=("transformer.wte", "transformer.wpe"),
    attention_out="attn.c_proj",
    mlp_out="mlp.c_proj",
    outer_embedding={
        "transformer.wte.weight": "vocab hidden",
        "transformer.wpe.weight": "- hidden",
        "lm_head.weight": "vocab hidden",
    },
    outer={"transformer.ln_f.weight": "hidden", "transformer.ln_f.bias": "hidden"},
    inner={
        "ln_1.weight": "hidden",
        "ln_1.bias": "hidden",
        "attn.c_attn.weight": "hidden 3*groups",
        "attn.c_attn.bias": "3*groups",
        "attn.c_proj.weight": "groups hidden",
        "attn.c_proj.bias": "hidden",
        "ln_2.weight": "hidden",
        "ln_2.bias": "hidden",
        "mlp.c_fc.weight": "hidden neurons",
        "mlp.c_fc.bias": "neurons",
        "mlp.c_proj.weight": "neurons hidden",
        "mlp.c_proj.bias": "hidden",
    },
    config={
        "vocab_size": "vocab",
        "n_layer": "layers",
        "n_embd": "hidden",
        "n_head": "heads",
        "n_inner": "neurons",
    },
    hidden_is_heads=True,
    numbered_layers=("scale_attn_by_inverse_layer_idx",),
)

GPT_NEOX = Family(  # Pythia
    layers="gpt_neox.layers",
    embeddings=("gpt_neox.embed_in",),
    attention_out="attention.dense",
    mlp_out="mlp.dense_4h_to_h",
    outer_embedding={"gpt_neox.embed_in.weight": "vocab hidden", "lm_head.weight": "vocab hidden"},
    outer={
        "gpt_neox.final_layer_norm.weight": "hidden",
        "gpt_neox.final_layer_norm.bias": "hidden",
    },
    inner={
        "input_layernorm.weight": "hidden",
        "input_layernorm.bias": "hidden",
        "attention.query_key_value.weight": "groups hidden",  # query, key, value of one head adjoin
        "attention.query_key_value.bias": "groups",
        "attention.dense.weight": "hidden groups",
        "attention.dense.bias": "hidden",
        "post_attention_layernorm.weight": "hidden",
        "post_attention_layernorm.bias": "hidden",
        "mlp.dense_h_to_4h.weight": "neurons hidden",
        "mlp.dense_h_to_4h.bias": "neurons",
        "mlp.dense_4h_to_h.weight": "hidden neurons",
        "mlp.dense_4h_to_h.bias": "hidden",
    },
    config={
        "vocab_size": "vocab",
        "num_hidden_layers": "layers",
        "hidden_size": "hidden",
        "num_attention_heads": "heads",
        "intermediate_size": "neurons",
    },
    hidden_is_heads=True,
)

OPT = Family(
    layers="model.decoder.layers",
    embeddings=("model.decoder.embed_tokens", "model.decoder.embed_positions"),
    attention_out="self_attn.out_proj",
    mlp_out="fc2",
    outer_embedding={
        "model.decoder.embed_tokens.weight": "vocab hidden",
        "model.decoder.embed_positions.weight": "- hidden",
        "lm_head.weight": "vocab hidden",
    },
    outer={
        "model.decoder.final_layer_norm.weight": "hidden",
        "model.decoder.final_layer_norm.bias": "hidden",
    },
    inner={
        "self_attn_layer_norm.weight": "hidden",
        "self_attn_layer_norm.bias": "hidden",
        "self_attn.q_proj.weight": "groups hidden",
        "self_attn.q_proj.bias": "groups",
        "self_attn.k_proj.weight": "groups hidden",
        "self_attn.k_proj.bias": "groups",
        "self_attn.v_proj.weight": "groups hidden",
        "self_attn.v_proj.bias": "groups",
        "self_attn.out_proj.weight": "hidden groups",
        "self_attn.out_proj.bias": "hidden",
        "final_layer_norm.weight": "hidden",
        "final_layer_norm.bias": "hidden",
        "fc1.weight": "neurons hidden",
        "fc1.bias": "neurons",
        "fc2.weight": "hidden neurons",
        "fc2.bias": "hidden",
    },
    config={
        "vocab_size": "vocab",
        "num_hidden_layers": "layers",
        "hidden_size": "hidden",
        "word_embed_proj_dim": "hidden",
        "num_attention_heads": "heads",
        "ffn_dim": "neurons",
    },
    hidden_is_heads=True,
)

FAMILIES = {
    "LlamaForCausalLM": LLAMA,
    "MistralForCausalLM": LLAMA,
    "Qwen2ForCausalLM": LLAMA,
    "Qwen3ForCausalLM": LLAMA,
    "GraniteForCausalLM": LLAMA,  # with scales that do not depend on widths
    "SmolLM3ForCausalLM": LLAMA,  # without positions in some layers
    "GemmaForCausalLM": GEMMA,
    "Gemma2ForCausalLM": GEMMA2,
    "Gemma3ForCausalLM": GEMMA2,
    "Olmo2ForCausalLM": OLMO2,
    "Phi3ForCausalLM": PHI3,
    "StableLmForCausalLM": STABLELM,
    "NemotronForCausalLM": NEMOTRON,
    "MixtralForCausalLM": MIXTRAL,
    "Qwen3MoeForCausalLM": MIXTRAL,  # num_experts is an alias of its key
    "FalconForCausalLM": FALCON,
    "GPT2LMHeadModel": GPT2,
    "GPTNeoXForCausalLM": GPT_NEOX,
    "OPTForCausalLM": OPT,
}


def family_of(architecture: str) -> Family:
    """The declaration of an architecture, by its class name; CapgapError for an unknown one."""
    if architecture not in FAMILIES:
        raise CapgapError(
            f"{architecture}: pruning does not support this architecture; it supports "
            + ", ".join(sorted(FAMILIES))
            + ". Declare it in capgap/pruning/families.py"
        )
    return FAMILIES[architecture]
