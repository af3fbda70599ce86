"""
A model folder as one GGUF file, which llama.cpp and what is built on it run.

Tensors are named and laid out as llama.cpp's own converter does it: rotary halves of Llama are
interleaved, fused projections of GPT-NeoX taken apart, those of GPT-2 transposed, and 1 is added to
the norms of Gemma. The converter recognises a tokenizer by a hash of its output for one text, which
fails for tokenizers trained here; so the pre-tokenizer is read from tokenizer.json.
"""

# V vocabulary

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors import safe_open
from transformers import AutoConfig, PreTrainedConfig

from capgap.errors import CapgapError

TYPES = {
    "f32": gguf.GGMLQuantizationType.F32,
    "f16": gguf.GGMLQuantizationType.F16,
    "bf16": gguf.GGMLQuantizationType.BF16,
    "q8_0": gguf.GGMLQuantizationType.Q8_0,
}
FILE_TYPES = {
    "f32": gguf.LlamaFileType.ALL_F32,
    "f16": gguf.LlamaFileType.MOSTLY_F16,
    "bf16": gguf.LlamaFileType.MOSTLY_BF16,
    "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
}
ARCHITECTURES = {
    "LlamaForCausalLM": gguf.MODEL_ARCH.LLAMA,
    "MistralForCausalLM": gguf.MODEL_ARCH.LLAMA,
    "Qwen2ForCausalLM": gguf.MODEL_ARCH.QWEN2,
    "Qwen3ForCausalLM": gguf.MODEL_ARCH.QWEN3,
    "GemmaForCausalLM": gguf.MODEL_ARCH.GEMMA,
    "GPT2LMHeadModel": gguf.MODEL_ARCH.GPT2,
    "GPTNeoXForCausalLM": gguf.MODEL_ARCH.GPTNEOX,
}
SKIPPED = re.compile(
    r"\.(attn|attention)\.(bias|masked_bias|rotary_emb\.inv_freq)$|rotary_emb\.inv_freq$"
)

# llama.cpp's name of a pre-tokenizer by its regular expression in tokenizer.json.
GPT2_SPLIT = {"type": "ByteLevel"}
DIGITS = {"type": "Digits"}
REGEXES = {
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+": "llama-bpe",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+": "qwen2",
}


def write_gguf(
    model: Path, out: Path, kind: str = "f32", name: str = "", licence: str = ""
) -> None:
    """Write the model of a folder, with its tokenizer, as a GGUF file.

    kind: type of the matrices, a key of TYPES; q8_0 falls back to f16 for rows that are no multiple
    of 32. Raises CapgapError for an architecture or a tokenizer that llama.cpp does not have.
    """
    config, arch, words = check_gguf(model)
    writer = gguf.GGUFWriter(out, gguf.MODEL_ARCH_NAMES[arch])
    writer.add_type(gguf.GGUFType.MODEL)
    if name:
        writer.add_name(name)
    if licence:
        writer.add_license(licence)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_file_type(FILE_TYPES[kind])
    _add_shape(writer, arch, config)
    words.add_to(writer)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    tied = config.tie_word_embeddings
    for source, tensor in _tensors(model):
        if SKIPPED.search(source) or (tied and source in ("lm_head.weight", "embed_out.weight")):
            continue
        for part, values in _laid_out(arch, config, source, tensor):
            target = names.get_name(part, try_suffixes=(".weight", ".bias"))
            if target is None:
                raise CapgapError(f"{model}: llama.cpp has no name for the tensor {source}")
            array = values.to(torch.float32).contiguous().numpy()
            stored = _stored_type(kind, target, array)
            writer.add_tensor(target, gguf.quantize(array, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def check_gguf(model: Path) -> tuple[PreTrainedConfig, gguf.MODEL_ARCH, Words]:
    """Configuration, architecture and tokenizer of a folder; CapgapError if llama.cpp lacks one."""
    config = AutoConfig.from_pretrained(model, local_files_only=True)
    architecture = (config.architectures or ["?"])[0]
    if architecture not in ARCHITECTURES:
        raise CapgapError(
            f"{model}: {architecture} cannot be written as GGUF; choose one of "
            + ", ".join(ARCHITECTURES)
        )
    return config, ARCHITECTURES[architecture], read_words(model, config.vocab_size)


def _stored_type(kind: str, target: str, array: np.ndarray) -> gguf.GGMLQuantizationType:
    """Vectors, and the positions of GPT-2, stay in float32 as llama.cpp needs them."""
    if array.ndim == 1 or target.startswith("position_embd"):
        return TYPES["f32"]
    if kind == "q8_0" and array.shape[-1] % 32:
        return TYPES["f16"]
    return TYPES[kind]


def _tensors(model: Path) -> Iterator[tuple[str, torch.Tensor]]:
    for path in sorted(model.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in sorted(file.keys()):
                yield name, file.get_tensor(name)


def _add_shape(writer: gguf.GGUFWriter, arch: gguf.MODEL_ARCH, config) -> None:
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_vocab_size(config.vocab_size)
    writer.add_head_count(heads)
    if arch == gguf.MODEL_ARCH.GPT2:
        writer.add_feed_forward_length(config.n_inner or 4 * config.hidden_size)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
        return
    writer.add_feed_forward_length(config.intermediate_size)
    rope = config.rope_parameters
    if rope.get("rope_type", "default") not in ("default", "linear"):
        raise CapgapError(
            f"rotary positions of type {rope['rope_type']} cannot be written as GGUF; only default "
            "and linear can"
        )
    if rope.get("rope_type") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_rope_dimension_count(int(head_dim * rope.get("partial_rotary_factor", 1.0)))
    if arch == gguf.MODEL_ARCH.GPTNEOX:
        writer.add_parallel_residual(config.use_parallel_residual)
        writer.add_layer_norm_eps(config.layer_norm_eps)
        return
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)


def _laid_out(
    arch: gguf.MODEL_ARCH, config, name: str, tensor: torch.Tensor
) -> Iterator[tuple[str, torch.Tensor]]:
    """A tensor as llama.cpp has it, by the names that gguf maps."""
    if arch == gguf.MODEL_ARCH.LLAMA and re.search(r"self_attn\.[qk]_proj\.", name):
        heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
        halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
        tensor = halves.swapaxes(1, 2).reshape(tensor.shape)
    elif arch == gguf.MODEL_ARCH.GEMMA and name.endswith("norm.weight"):
        tensor = tensor.float() + 1
    elif arch == gguf.MODEL_ARCH.GPT2:
        if re.search(r"(c_attn|c_proj|c_fc)\.weight$", name):
            tensor = tensor.T
        name = name if name.startswith(("transformer.", "lm_head")) else f"transformer.{name}"
    elif arch == gguf.MODEL_ARCH.GPTNEOX and "query_key_value" in name:
        heads = config.num_attention_heads
        parts = tensor.reshape(heads, 3, -1, *tensor.shape[1:])  # query, key, value of each head
        tensor = parts.swapaxes(0, 1).reshape(tensor.shape)
    yield name, tensor


# --- tokenizers -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Words:
    """A tokenizer as GGUF writes it down."""

    model: str  # gpt2 for bytes and merges, llama for SentencePiece
    pre: str
    tokens_V: list[str]
    types_V: list[int]
    merges: list[str]
    scores_V: list[float]
    special: dict[str, int]  # bos, eos, unk, pad
    chat_template: str | None
    bos_first: bool
    space_first: bool

    def add_to(self, writer: gguf.GGUFWriter) -> None:
        """Write it."""
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens_V)
        writer.add_token_types(self.types_V)
        if self.model == "gpt2":
            writer.add_token_merges(self.merges)
        else:
            writer.add_token_scores(self.scores_V)
            writer.add_add_space_prefix(self.space_first)
        for kind, token in self.special.items():
            getattr(writer, f"add_{kind}_token_id")(token)
        writer.add_add_bos_token(self.bos_first)
        writer.add_add_eos_token(False)
        if self.chat_template:
            writer.add_chat_template(self.chat_template)


def read_words(folder: Path, rows: int) -> Words:
    """The tokenizer of a folder, padded to the `rows` of the embedding.

    Raises CapgapError for one that llama.cpp cannot follow.
    """
    from capgap.engine.models import load_tokenizer

    tokenizer = load_tokenizer(folder)
    data = json.loads(tokenizer.backend_tokenizer.to_str())
    if data["model"]["type"] != "BPE":
        raise CapgapError(
            f"{folder}: a {data['model']['type']} tokenizer cannot be written as GGUF, only "
            "byte-pair encodings (BPE)"
        )
    vocab = data["model"]["vocab"]
    texts = {i: text for text, i in vocab.items()}
    types = dict.fromkeys(texts, gguf.TokenType.NORMAL)
    pieces = bool(data["model"].get("byte_fallback"))
    for i, text in texts.items() if pieces else ():
        if re.fullmatch("<0x[0-9A-F]{2}>", text):
            types[i] = gguf.TokenType.BYTE
    for token in data["added_tokens"]:
        texts[token["id"]] = token["content"]
        kind = gguf.TokenType.CONTROL if token["special"] else gguf.TokenType.USER_DEFINED
        types[token["id"]] = kind
    merges = [m if isinstance(m, str) else " ".join(m) for m in data["model"]["merges"]]
    rank = {merge.replace(" ", ""): -float(i) for i, merge in reversed([*enumerate(merges, 1)])}
    size = max(rows, 1 + max(texts))
    special = {
        kind: getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "unk", "pad")
    }
    if pieces and special["unk"] is not None:
        types[special["unk"]] = gguf.TokenType.UNKNOWN
    added = tokenizer("a")["input_ids"]
    first = tokenizer.backend_tokenizer.encode("a", add_special_tokens=False).tokens[0]
    return Words(
        model="llama" if pieces else "gpt2",
        pre="default" if pieces else pre_tokenizer(data["pre_tokenizer"], folder),
        tokens_V=[texts.get(i, f"[PAD{i}]") for i in range(size)],
        types_V=[int(types.get(i, gguf.TokenType.UNUSED)) for i in range(size)],
        merges=merges,
        scores_V=[rank.get(texts.get(i, ""), 0.0) for i in range(size)] if pieces else [],
        special={kind: i for kind, i in special.items() if i is not None},
        chat_template=tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else None,
        bos_first=bool(added) and special["bos"] is not None and added[0] == special["bos"],
        space_first=first.startswith("▁"),
    )


def pre_tokenizer(data: dict | None, folder: Path) -> str:
    """llama.cpp's name for the pre-tokenizer, which splits text into words before bytes are merged."""
    steps = data["pretokenizers"] if data and data["type"] == "Sequence" else [data or {}]
    kinds = [step.get("type") for step in steps]
    own_split = kinds[-1:] == ["ByteLevel"] and steps[-1].get("use_regex", True)
    if kinds and kinds[-1] == "ByteLevel" and steps[-1].get("add_prefix_space"):
        own_split = False
        kinds = ["a space before the text"]
    if own_split and kinds == ["ByteLevel"]:
        return "gpt-2"
    if own_split and kinds == ["Digits", "ByteLevel"] and steps[0]["individual_digits"]:
        return "smollm"
    if kinds == ["Split", "ByteLevel"] and not steps[1].get("use_regex", True):
        known = REGEXES.get(steps[0]["pattern"].get("Regex"))
        if known:
            return known
    raise CapgapError(
        f"{folder}: llama.cpp does not support how its tokenizer splits text "
        f"({', '.join(map(str, kinds))}), so a GGUF file would tokenize text differently; "
        "run the folder itself with transformers"
    )
