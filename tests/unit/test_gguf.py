"""GGUF files: read back, and run by llama.cpp itself if it is installed (make test-gguf)."""

import json
import re
import urllib.request
from importlib.util import find_spec

import gguf
import numpy as np
import pytest
import torch
import transformers
from model_folders import byte_level_bpe
from tokenizers import Tokenizer, decoders, models, normalizers, trainers
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence, Split
from transformers import PreTrainedTokenizerFast

from capgap.engine.gguf_file import REGEXES, pre_tokenizer, read_words, write_gguf
from capgap.errors import CapgapError

TEXT = "Fellow citizens,  the Union isn't 1234 years old.\n\nÜber\tall that we say: union & union."
NEW_TOKENS = 24
TINY = {
    "LlamaForCausalLM": {"num_key_value_heads": 2},
    "MistralForCausalLM": {"num_key_value_heads": 2, "sliding_window": None},
    "Qwen2ForCausalLM": {"num_key_value_heads": 2},
    "Qwen3ForCausalLM": {"num_key_value_heads": 2, "head_dim": 24},
    "GemmaForCausalLM": {"num_key_value_heads": 1, "head_dim": 24},
    "GPT2LMHeadModel": {},
    "GPTNeoXForCausalLM": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25}},
}  # fmt: skip
runtime = pytest.mark.skipif(
    find_spec("xllamacpp") is None,
    reason="llama.cpp for Python (xllamacpp) is not installed; make test-gguf installs it",
)


def bytes_tokenizer():
    return byte_level_bpe([TEXT, "the union of all citizens"], 320)


def pieces_tokenizer():
    """As SentencePiece's: spaces as marks, bytes for what is unknown, a token before each text."""
    core = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    core.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    steps = [
        decoders.Replace("▁", " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
        decoders.Strip(" ", 1, 0),
    ]
    core.decoder = decoders.Sequence(steps)
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=360, special_tokens=special, max_token_length=8)
    words = re.findall(r" ?\S+", TEXT.replace("Ü", "U")) * 3 + ["the union of all citizens"]
    core.train_from_iterator(words, trainer)
    data = json.loads(core.to_str())
    data["added_tokens"] = data["added_tokens"][:3]
    core = Tokenizer.from_str(json.dumps(data))
    return PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def make(folder, name, tokenizer, tied=False, **options):
    """A random model of a class, in a folder with a tokenizer."""
    size = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    size |= {"intermediate_size": 96, "max_position_embeddings": 256, "tie_word_embeddings": tied}
    ids = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None}
    architecture = getattr(transformers, name)
    torch.manual_seed(0)
    model = architecture(architecture.config_class(**size, **ids, **TINY[name], **options))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model.eval()


def greedy(model, ids):
    ids = torch.tensor([ids])
    with torch.no_grad():
        for _ in range(NEW_TOKENS):
            ids = torch.cat([ids, model(ids).logits[:, -1].argmax(-1, keepdim=True)], 1)
    return ids[0, -NEW_TOKENS:].tolist()


class Runtime:
    """llama.cpp, holding one model."""

    def __init__(self, path):
        import xllamacpp

        settings = xllamacpp.CommonParams()
        settings.model.path, settings.n_ctx, settings.n_parallel = str(path), 256, 1
        settings.warmup, settings.cpuparams.n_threads, settings.verbosity = False, 1, -1
        self.server = xllamacpp.Server(settings)

    def ask(self, what, **question):
        request = urllib.request.Request(
            f"{self.server.listening_address}/{what}",
            json.dumps(question).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())

    def tokens(self, text, add_special=False):
        return self.ask("tokenize", content=text, add_special=add_special)["tokens"]

    def greedy(self, ids):
        return self.ask(
            "completion", prompt=ids, n_predict=NEW_TOKENS, temperature=0, top_k=1,
            return_tokens=True, ignore_eos=False, cache_prompt=False,
        )["tokens"]  # fmt: skip


@runtime
@pytest.mark.parametrize("name", TINY)
def test_llama_cpp_generates_what_transformers_does(tmp_path, name):
    tokenizer = bytes_tokenizer()
    model = make(
        tmp_path / "m", name, tokenizer, tied=name in ("GemmaForCausalLM", "GPT2LMHeadModel")
    )
    write_gguf(tmp_path / "m", tmp_path / "m.gguf")
    llama_cpp = Runtime(tmp_path / "m.gguf")
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    assert llama_cpp.tokens(TEXT) == ids
    expected = greedy(model, ids)
    if tokenizer.eos_token_id in expected:  # where llama.cpp stops
        expected = expected[: expected.index(tokenizer.eos_token_id)]
    assert len(expected) > 4
    assert llama_cpp.greedy(ids)[: len(expected)] == expected


@runtime
def test_llama_cpp_reads_sentencepiece_and_what_is_put_before_a_text(tmp_path):
    tokenizer = pieces_tokenizer()
    model = make(tmp_path / "m", "LlamaForCausalLM", tokenizer)
    write_gguf(tmp_path / "m", tmp_path / "m.gguf")
    llama_cpp = Runtime(tmp_path / "m.gguf")
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    assert llama_cpp.tokens(TEXT) == ids
    assert llama_cpp.greedy(ids)[:8] == greedy(model, ids)[:8]


@pytest.mark.parametrize("name", TINY)
def test_what_is_written_is_read_back(tmp_path, name):
    tokenizer = bytes_tokenizer()
    tokenizer.chat_template = "{{ messages[0].content }}"
    gemma = name == "GemmaForCausalLM"  # whose output head llama.cpp takes from the embedding
    model = make(tmp_path / "m", name, tokenizer, tied=gemma)
    write_gguf(tmp_path / "m", tmp_path / "m.gguf", name="small", licence="mit")
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    fields = {key: field.contents() for key, field in reader.fields.items()}
    arch = fields["general.architecture"]
    assert (fields["general.name"], fields["general.license"]) == ("small", "mit")
    assert fields[f"{arch}.block_count"] == 2
    assert fields[f"{arch}.embedding_length"] == 64
    assert fields[f"{arch}.attention.head_count"] == 4
    assert fields["tokenizer.ggml.model"] == "gpt2"
    assert fields["tokenizer.ggml.pre"] == "gpt-2"
    assert fields["tokenizer.ggml.eos_token_id"] == 0
    assert fields["tokenizer.chat_template"] == tokenizer.chat_template
    assert fields["tokenizer.ggml.tokens"] == tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    written = {t.name: t.data.reshape([*reversed(t.shape.tolist())]) for t in reader.tensors}
    assert sum(t.n_elements for t in reader.tensors) == sum(p.numel() for p in model.parameters())
    assert (
        written["token_embd.weight"] == model.get_input_embeddings().weight.detach().numpy()
    ).all()
    assert ("output.weight" in written) == (not gemma)
    if not gemma:
        head = model.get_output_embeddings().weight.detach().numpy()
        assert (written["output.weight"] == head).all()


def test_rotary_halves_of_llama_are_interleaved(tmp_path):
    model = make(tmp_path / "m", "LlamaForCausalLM", bytes_tokenizer())
    write_gguf(tmp_path / "m", tmp_path / "m.gguf")
    tensors = {t.name: t.data for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    query = model.model.layers[1].self_attn.q_proj.weight.detach().numpy()
    written = tensors["blk.1.attn_q.weight"].reshape(64, 64)
    for head in range(4):  # of 16 channels: 0, 8, 1, 9, ...
        assert (written[16 * head : 16 * head + 16 : 2] == query[16 * head : 16 * head + 8]).all()
        assert (
            written[16 * head + 1 : 16 * head + 16 : 2] == query[16 * head + 8 : 16 * head + 16]
        ).all()


@pytest.mark.parametrize("kind", ["f16", "bf16", "q8_0"])
def test_types_of_matrices(tmp_path, kind):
    model = make(tmp_path / "m", "LlamaForCausalLM", bytes_tokenizer())
    write_gguf(tmp_path / "m", tmp_path / "m.gguf", kind)
    tensors = {t.name: t for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    assert tensors["blk.0.ffn_up.weight"].tensor_type.name == kind.upper()
    assert tensors["output_norm.weight"].tensor_type.name == "F32"
    up = tensors["blk.0.ffn_up.weight"]
    values = gguf.dequantize(up.data, up.tensor_type).reshape(96, 64)
    expected = model.model.layers[0].mlp.up_proj.weight.detach().numpy()
    assert np.abs(values - expected).max() < 0.01 * np.abs(expected).max()
    assert np.abs(values - expected).max() > 0


def test_rows_that_suit_no_block_of_q8_0_stay_in_f16(tmp_path):
    make(tmp_path / "m", "LlamaForCausalLM", bytes_tokenizer())
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert config["intermediate_size"] % 32 == 0
    torch.manual_seed(0)
    architecture = transformers.LlamaForCausalLM
    architecture(transformers.LlamaConfig(**(config | {"intermediate_size": 40}))).save_pretrained(
        tmp_path / "m"
    )
    write_gguf(tmp_path / "m", tmp_path / "m.gguf", "q8_0")
    kinds = {t.name: t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    assert kinds["blk.0.ffn_down.weight"] == "F16"
    assert kinds["blk.0.ffn_up.weight"] == "Q8_0"


def test_names_of_pre_tokenizers(tmp_path):
    def named(steps):
        core = Tokenizer(models.BPE())
        core.pre_tokenizer = steps
        return pre_tokenizer(json.loads(core.to_str())["pre_tokenizer"], tmp_path)

    assert named(ByteLevel(add_prefix_space=False)) == "gpt-2"
    assert (
        named(Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]))
        == "smollm"
    )
    from tokenizers import Regex

    for regex, name in REGEXES.items():
        split = Split(Regex(regex), "isolated")
        assert named(Sequence([split, ByteLevel(add_prefix_space=False, use_regex=False)])) == name
    for other in (
        ByteLevel(add_prefix_space=True),
        Sequence([Digits(individual_digits=False), ByteLevel(add_prefix_space=False)]),
        Sequence(
            [Split(Regex(r"\d"), "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)]
        ),
    ):
        with pytest.raises(CapgapError, match="does not support how its tokenizer splits text"):
            named(other)


def test_what_llama_cpp_does_not_have_is_refused(tmp_path):
    core = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    PreTrainedTokenizerFast(tokenizer_object=core, eos_token="a").save_pretrained(tmp_path)
    with pytest.raises(CapgapError, match="a WordLevel tokenizer cannot be written as GGUF"):
        read_words(tmp_path, 1)
    config = transformers.OPTConfig(
        vocab_size=8, hidden_size=8, ffn_dim=8, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=8, word_embed_proj_dim=8,
    )  # fmt: skip
    transformers.OPTForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(
        CapgapError, match="OPTForCausalLM cannot be written as GGUF; choose one of Llama"
    ):
        write_gguf(tmp_path, tmp_path / "m.gguf")
