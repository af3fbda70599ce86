"""The config.json of the models that shipped studies name, as the cache of the hub holds them."""

import json
from pathlib import Path

import yaml

STUDIES = Path(__file__).parents[1] / "configs"
GPT2 = {
    "architectures": ["GPT2LMHeadModel"],
    "model_type": "gpt2",
    "n_positions": 1024,
    "vocab_size": 50257,
}
NEOX = {
    "architectures": ["GPTNeoXForCausalLM"], "model_type": "gpt_neox", "vocab_size": 50304,
    "max_position_embeddings": 2048, "tie_word_embeddings": False, "torch_dtype": "float16",
}  # fmt: skip
LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 32000,
    "max_position_embeddings": 4096, "tie_word_embeddings": False, "torch_dtype": "float16",
}  # fmt: skip
SMOL = LLAMA | {
    "vocab_size": 49152,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "max_position_embeddings": 8192,
}


def gpt2(layers, hidden, heads):
    return GPT2 | {"n_layer": layers, "n_embd": hidden, "n_head": heads}


def other(base, layers, hidden, heads, intermediate, kv_heads=None):
    shape = {"num_hidden_layers": layers, "hidden_size": hidden, "num_attention_heads": heads}
    shape |= {"intermediate_size": intermediate}
    return base | shape | ({"num_key_value_heads": kv_heads} if kv_heads else {})


# and the parameters without embeddings, counted by hand from the published shapes
MODELS = {
    "openai-community/gpt2": (gpt2(12, 768, 12), 85_056_000),
    "openai-community/gpt2-medium": (gpt2(24, 1024, 16), 302_311_424),
    "openai-community/gpt2-large": (gpt2(36, 1280, 20), 708_390_400),
    "openai-community/gpt2-xl": (gpt2(48, 1600, 25), 1_475_561_600),
    "EleutherAI/pythia-70m": (other(NEOX, 6, 512, 8, 2048), 18_915_328),
    "EleutherAI/pythia-160m": (other(NEOX, 12, 768, 12, 3072), 85_056_000),
    "EleutherAI/pythia-410m": (other(NEOX, 24, 1024, 16, 4096), 302_311_424),
    "EleutherAI/pythia-1b": (other(NEOX, 16, 2048, 8, 8192), 805_736_448),
    "EleutherAI/pythia-1.4b": (other(NEOX, 24, 2048, 16, 8192), 1_208_602_624),
    "EleutherAI/pythia-2.8b": (other(NEOX, 32, 2560, 32, 10240), 2_517_652_480),
    "meta-llama/Llama-2-7b-hf": (other(LLAMA, 32, 4096, 32, 11008, 32), 6_476_271_616),
    "meta-llama/Llama-2-13b-hf": (other(LLAMA, 40, 5120, 40, 13824, 40), 12_688_184_320),
    "meta-llama/Llama-2-70b-hf": (other(LLAMA, 80, 8192, 64, 28672, 8), 68_452_360_192),
    "HuggingFaceTB/SmolLM2-135M": (other(SMOL, 30, 576, 9, 1536, 3), 106_203_456),
    "HuggingFaceTB/SmolLM2-360M": (other(SMOL, 32, 960, 15, 2560, 5), 314_635_200),
    "HuggingFaceTB/SmolLM2-1.7B": (other(SMOL, 24, 2048, 32, 8192, 32), 1_610_713_088),
}


def pinned():
    """Model and commit of every teacher of the hub in the shipped studies."""
    for path in sorted(STUDIES.glob("*.yaml")):
        for teacher in yaml.safe_load(path.read_text())["teachers"].values():
            if teacher["source"] == "hub":
                yield teacher["model"], teacher["revision"]


def fill_cache(cache):
    """Write them where huggingface_hub looks for them."""
    for model, revision in pinned():
        folder = Path(cache) / f"models--{model.replace('/', '--')}" / "snapshots" / revision
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(MODELS[model][0]))
