"""Small models of every family that pruning supports, and the same models with units silenced."""

import copy

import numpy as np
import torch
from transformers import (
    FalconConfig,
    FalconForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    NemotronConfig,
    NemotronForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
    StableLmConfig,
    StableLmForCausalLM,
)

from capgap.pruning.families import family_of
from capgap.pruning.surgery import Kept, sizes_of, unit_of_channel

LAYERS, HIDDEN, HEADS, HEAD_DIM, NEURONS, VOCAB = 2, 48, 6, 8, 20, 128
IDS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None}


def llama_like(model_class, config_class, *, kv_heads=HEADS, **options):
    sizes = {
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": NEURONS,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": kv_heads,
        "head_dim": HEAD_DIM,
        "max_position_embeddings": 64,
    }
    return model_class(config_class(**sizes | IDS | options))


def windows(model_class, config_class, **options):
    """The first layer sees a window of 5 tokens."""
    kinds = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 5}
    return llama_like(model_class, config_class, kv_heads=3, **kinds, **options)


def falcon(**options):
    sizes = {"hidden_size": HIDDEN, "num_attention_heads": HEADS, "ffn_hidden_size": NEURONS}
    return FalconForCausalLM(
        FalconConfig(vocab_size=VOCAB, num_hidden_layers=LAYERS, **sizes, **IDS, **options)
    )


def llama(**options):
    return llama_like(LlamaForCausalLM, LlamaConfig, **options)


def gpt2(**options):
    sizes = {
        "n_embd": HIDDEN,
        "n_head": HEADS,
        "n_layer": LAYERS,
        "n_inner": NEURONS,
        "n_positions": 64,
    }
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, **sizes, **IDS, **options))


def neox(**options):
    sizes = {"hidden_size": HIDDEN, "num_attention_heads": HEADS, "intermediate_size": NEURONS}
    config = GPTNeoXConfig(vocab_size=VOCAB, num_hidden_layers=LAYERS, **sizes, **IDS, **options)
    return GPTNeoXForCausalLM(config)


def opt():
    sizes = {"hidden_size": HIDDEN, "word_embed_proj_dim": HIDDEN, "num_attention_heads": HEADS}
    ids = IDS | {"pad_token_id": 1}
    config = OPTConfig(
        vocab_size=VOCAB, num_hidden_layers=LAYERS, ffn_dim=NEURONS, max_position_embeddings=64,
        **sizes, **ids,
    )  # fmt: skip
    return OPTForCausalLM(config)


MODELS = {
    "llama-mha-tied": lambda: llama(tie_word_embeddings=True),
    "llama-gqa-untied": lambda: llama(kv_heads=3, tie_word_embeddings=False),
    "llama-mqa-biased": lambda: llama(kv_heads=1, attention_bias=True, mlp_bias=True),
    "mistral": lambda: llama_like(MistralForCausalLM, MistralConfig, kv_heads=3),
    "qwen2": lambda: llama_like(Qwen2ForCausalLM, Qwen2Config, kv_heads=3),
    "qwen3": lambda: llama_like(
        Qwen3ForCausalLM, Qwen3Config, kv_heads=3, tie_word_embeddings=True
    ),
    "gemma": lambda: llama_like(GemmaForCausalLM, GemmaConfig, kv_heads=3),
    "gemma-untied": lambda: llama_like(
        GemmaForCausalLM, GemmaConfig, kv_heads=1, tie_word_embeddings=False
    ),
    "gemma2": lambda: windows(Gemma2ForCausalLM, Gemma2Config, final_logit_softcapping=5.0),
    "gemma3": lambda: windows(Gemma3ForCausalLM, Gemma3TextConfig),
    "phi3": lambda: llama_like(Phi3ForCausalLM, Phi3Config, kv_heads=3),
    "olmo2": lambda: llama_like(Olmo2ForCausalLM, Olmo2Config, kv_heads=3),
    "granite": lambda: llama_like(
        GraniteForCausalLM,
        GraniteConfig,
        kv_heads=3,
        logits_scaling=4.0,
        residual_multiplier=0.5,
        embedding_multiplier=3.0,
        attention_multiplier=0.2,
    ),
    "stablelm": lambda: llama_like(StableLmForCausalLM, StableLmConfig, kv_heads=3),
    "stablelm-parallel": lambda: llama_like(
        StableLmForCausalLM,
        StableLmConfig,
        kv_heads=3,
        use_parallel_residual=True,
    ),
    "stablelm-biased": lambda: llama_like(StableLmForCausalLM, StableLmConfig, use_qkv_bias=True),
    "nemotron": lambda: llama_like(
        NemotronForCausalLM, NemotronConfig, kv_heads=3, tie_word_embeddings=False
    ),
    "smollm3": lambda: llama_like(
        SmolLM3ForCausalLM, SmolLM3Config, kv_heads=3, no_rope_layers=[1, 0]
    ),
    "mixtral": lambda: llama_like(
        MixtralForCausalLM,
        MixtralConfig,
        kv_heads=3,
        num_local_experts=NEURONS,
        num_experts_per_tok=2,
    ),
    "qwen3-moe": lambda: llama_like(
        Qwen3MoeForCausalLM,
        Qwen3MoeConfig,
        kv_heads=3,
        num_experts=NEURONS,
        num_experts_per_tok=3,
        moe_intermediate_size=12,
        norm_topk_prob=True,
    ),
    "falcon-new": lambda: falcon(new_decoder_architecture=True, num_kv_heads=3),
    "falcon-biased": lambda: falcon(multi_query=False, bias=True, parallel_attn=False),
    "gpt2": gpt2,
    "neox": neox,
    "neox-serial": lambda: neox(use_parallel_residual=False),
    "opt": opt,
}


def build(name, seed=0):
    """A model none of whose tensors is trivial: biases and norms are drawn too."""
    torch.manual_seed(seed)
    model = MODELS[name]()
    with torch.no_grad():
        for parameter in model.parameters():
            start = 1.0 if parameter.ndim == 1 else 0.0
            parameter.copy_(start + 0.3 * torch.randn_like(parameter))
    return model.eval()


def token_ids(sequences=2, tokens=12, seed=1):
    return torch.randint(VOCAB, (sequences, tokens), generator=torch.Generator().manual_seed(seed))


def logits(model, ids):
    with torch.no_grad():
        return model(ids, use_cache=False).logits


def kept_some(model, groups, neurons, hidden, seed=2):
    """Random units, different ones in each layer."""
    full, random = sizes_of(model).full, np.random.default_rng(seed)

    def draw(of, k):
        return np.sort(random.permutation(of)[:k])

    return Kept(
        np.stack([draw(full.groups, groups) for _ in range(LAYERS)]),
        np.stack([draw(full.neurons, neurons) for _ in range(LAYERS)]),
        draw(full.hidden, hidden),
    )


def unrouted(router, config, kept):
    """What a router would give if only the kept experts were there."""

    def hook(_module, _args, output):
        logits, weights, _ = output
        lost = torch.ones(logits.shape[-1], dtype=torch.bool)
        lost[torch.from_numpy(kept)] = False
        probs = logits.masked_fill(lost, -torch.inf).float().softmax(-1)
        top, experts = probs.topk(weights.shape[-1], dim=-1)
        if getattr(config, "norm_topk_prob", True):
            top = top / top.sum(-1, keepdim=True)
        return logits, top, experts

    router.register_forward_hook(hook)


class NormOfKept(torch.nn.Module):
    """A norm over some channels; the others stay zero."""

    def __init__(self, norm, kept):
        super().__init__()
        self.norm, self.kept = copy.deepcopy(norm), torch.from_numpy(kept)
        self.norm._forward_hooks.clear()  # this sets the other channels to zero itself
        for name, parameter in list(self.norm.named_parameters()):
            setattr(self.norm, name, torch.nn.Parameter(parameter[self.kept]))
        if isinstance(self.norm, torch.nn.LayerNorm):
            self.norm.normalized_shape = (len(kept),)

    def forward(self, x):
        out = torch.zeros_like(x)
        out[..., self.kept] = self.norm(x[..., self.kept])
        return out


def silenced(model, kept, *, norms_over_kept=True):
    """A copy of the model in which units that are not kept are multiplied by zero as it runs."""
    model, family = copy.deepcopy(model), family_of(type(model).__name__)

    def zeroing(units, of):
        mask = torch.zeros(of)
        mask[torch.from_numpy(units)] = 1
        return lambda x: x * mask.repeat_interleave(x.shape[-1] // of)

    sizes = sizes_of(model)
    full, writers = sizes.full, [model.get_submodule(n) for n in family.embeddings]
    for i, layer in enumerate(model.get_submodule(family.layers)):
        halves = [(family.attention_out, kept.groups[i], full.groups)]
        if family.experts:
            unrouted(layer.get_submodule("mlp.gate"), model.config, kept.neurons[i])
        else:
            halves.append((family.mlp_out, kept.neurons[i], full.neurons))
        for name, units, of in halves:
            zero = zeroing(units, of)
            module = layer.get_submodule(name)
            module.register_forward_pre_hook(lambda _m, args, zero=zero: (zero(args[0]),))
        writers += [layer.get_submodule(name) for name in family.writers]
    for writer in writers:
        zero = zeroing(kept.hidden, full.hidden)
        writer.register_forward_hook(lambda _m, _args, out, zero=zero: zero(out))
    for name, module in list(model.named_modules()):
        if "Norm" not in type(module).__name__ or not norms_over_kept:
            continue
        [(repeats, kind)], layer = family.kinds(f"{name}.weight")
        if kind == "hidden":
            model.set_submodule(name, NormOfKept(module, kept.hidden))
        elif kind == "groups":
            of_channel = unit_of_channel(full.groups, repeats, len(module.weight), 1)
            channels = np.flatnonzero(np.isin(of_channel, kept.groups[layer]))
            model.set_submodule(name, NormOfKept(module, channels))
    return model
