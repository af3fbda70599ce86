"""Fetching teachers: what arrives is what was there, and every way to fail has its message."""

import copy
import json

import gguf
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from model_folders import byte_level_bpe
from pruning_models import HEAD_DIM, HEADS, HIDDEN, LAYERS, NEURONS, build, logits, token_ids
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from capgap.data import packages
from capgap.engine.counting import count_params
from capgap.engine.models import load_model, read_lineage
from capgap.errors import CapgapError
from capgap.records.artifacts import publish_folder
from capgap.records.reading import digest
from capgap.stages import fetch

torch.set_num_threads(1)

KV_HEADS, VOCAB = 3, 300
TEXT = "the state of the union is strong and the union of the states is strong " * 3


@pytest.fixture(scope="module")
def tokenizer():
    return byte_level_bpe([TEXT, "some other words that no one uses"], VOCAB, min_frequency=1)


@pytest.fixture(scope="module")
def model(tokenizer):
    model = build("llama-gqa-untied")
    model.resize_token_embeddings(len(tokenizer))
    return model.eval()


@pytest.fixture
def folder(tmp_path, model, tokenizer):
    path = tmp_path / "my-model"
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def params(model):
    return count_params(model).non_embedding


def run(tmp_path, *options, name="t", out="out"):
    args = ["--name", name, "--out", tmp_path / out, *options]
    fetch.main(list(map(str, args)))
    return tmp_path / out


def test_a_local_folder_arrives_whole_with_its_lineage(folder, tmp_path, model, params, capsys):
    options = ["--source", "path", "--path", folder, "--params-non-embedding", params]
    out = run(tmp_path, *options)
    arrived = load_model(out)
    assert torch.equal(logits(arrived, token_ids()), logits(model, token_ids()))
    lineage = read_lineage(out, arrived)
    assert (lineage.kind, lineage.name, lineage.params) == ("teacher", "t", count_params(model))
    assert AutoTokenizer.from_pretrained(out)(TEXT)["input_ids"]
    assert (out / "manifest.json").is_file()
    assert f"{params:,} parameters" in capsys.readouterr().out
    again = run(tmp_path, *options, out="again")
    assert (again / "manifest.json").read_bytes() == (out / "manifest.json").read_bytes()


def test_another_size_than_the_study_says_is_refused(folder, tmp_path, params):
    with pytest.raises(CapgapError, match=rf"is 1,000, but the model has {params:,}"):
        run(tmp_path, "--source", "path", "--path", folder, "--params-non-embedding", "1k")
    assert not (tmp_path / "out").exists()


def test_folders_that_lack_something_are_refused(folder, tmp_path, params):
    def refused(match):
        with pytest.raises(CapgapError, match=match):
            run(tmp_path, "--source", "path", "--path", folder, "--params-non-embedding", params)

    (folder / "tokenizer.json").rename(tmp_path / "kept.json")
    refused("no tokenizer that can be loaded")
    (tmp_path / "kept.json").rename(folder / "tokenizer.json")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    refused("pickled weights are not loaded")
    (folder / "config.json").unlink()
    refused(r"no config\.json")
    missing = ["--source", "path", "--path", tmp_path / "no", "--params-non-embedding", "1"]
    with pytest.raises(CapgapError, match="no such folder"):
        run(tmp_path, *missing)


def write_gguf(path, model, tokenizer):
    """The model as llama.cpp's converter writes it: rotary halves of each head interleaved."""

    def interleaved(weight, heads):
        rows = weight.reshape(heads, 2, HEAD_DIM // 2, -1).swapaxes(1, 2)
        return np.ascontiguousarray(rows.reshape(weight.shape))

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(NEURONS)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(VOCAB)
    entries = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(entries)
    writer.add_token_types([3, *[1] * (len(entries) - 1)])
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    names = {
        "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
        "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }  # fmt: skip
    for name, parameter in model.named_parameters():
        weight, target = parameter.detach().numpy(), name.replace("model.layers.", "blk.")
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            weight = interleaved(weight, HEADS if "q_proj" in name else KV_HEADS)
        for ours, theirs in names.items():
            target = target.replace(ours, theirs)
        writer.add_tensor(target, weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def package(tmp_path, monkeypatch, model, tokenizer):
    """An importable package with a model file; importing it is an error."""
    root = tmp_path / "site" / "tiny_llm"
    root.mkdir(parents=True)
    (root / "__init__.py").write_text("raise RuntimeError('imported')")
    write_gguf(root / "tiny.gguf", model, tokenizer)
    monkeypatch.syspath_prepend(root.parent)
    return root


def test_a_gguf_file_of_a_package_becomes_safetensors(package, tmp_path, model, params, tokenizer):
    expected = digest(package / "tiny.gguf")
    source = ["--source", "package", "--package", "tiny_llm", "--params-non-embedding", params]
    out = run(tmp_path, *source, "--file", "tiny.gguf", "--sha256", expected)
    arrived = AutoModelForCausalLM.from_pretrained(out)
    ids = token_ids()
    torch.testing.assert_close(logits(arrived, ids), logits(model, ids), rtol=1e-4, atol=1e-4)
    assert [p.name for p in out.glob("*.safetensors")] == ["model.safetensors"]
    words = AutoTokenizer.from_pretrained(out)
    assert words(TEXT)["input_ids"] == tokenizer(TEXT)["input_ids"]
    for options, message in [
        (["--file", "no.gguf"], r"holds no no\.gguf"),
        (["--file", "tiny.gguf", "--sha256", "0" * 64], "another SHA-256"),
        (["--file", "__init__.py"], r"not a \.gguf file"),
    ]:
        with pytest.raises(CapgapError, match=message):
            run(tmp_path, *source, *options, out="x")
    (package / "bad.gguf").write_bytes(b"GGUF" + bytes(64))
    with pytest.raises(CapgapError, match="cannot read this GGUF file"):
        run(tmp_path, *source, "--file", "bad.gguf", out="x")
    with pytest.raises(CapgapError, match="package no_such is not installed"):
        packages.package_folder("no_such")


def test_a_hub_model_is_one_of_its_snapshot(folder, tmp_path, monkeypatch, params):
    asked, commit = [], "0" * 40
    monkeypatch.setattr(fetch, "download_model", lambda *of: asked.append(of) or folder)
    source = ["--source", "hub", "--model", "owner/name", "--revision", commit]
    out = run(tmp_path, *source, "--params-non-embedding", params)
    assert count_params(load_model(out)).non_embedding == params
    assert asked == [("owner/name", commit)]


def test_a_trimmed_teacher_speaks_the_corpus_only(folder, tmp_path, model, params, tokenizer):
    table = pyarrow.table({"name": ["a"], "text": [TEXT]})
    with publish_folder(tmp_path / "corpus") as corpus:
        pyarrow.parquet.write_table(table, corpus / "train.parquet")
    source = ["--source", "path", "--path", folder, "--params-non-embedding", params]
    with pytest.raises(CapgapError, match="trim_vocabulary: give the corpus"):
        run(tmp_path, *source, "--trim-vocabulary", "true", out="x")
    corpus = ["--corpus", tmp_path / "corpus" / "manifest.json"]
    used = run(tmp_path, *source, *corpus, "--trim-vocabulary", "true", out="used")
    few = run(tmp_path, *source, *corpus, "--trim-vocabulary", "260", out="few")
    sizes = []
    for out in (used, few):
        arrived, words = load_model(out), AutoTokenizer.from_pretrained(out)
        assert arrived.config.vocab_size == len(words)
        assert read_lineage(out, arrived).params == count_params(arrived)
        assert count_params(arrived).non_embedding == params
        assert words.decode(words(TEXT)["input_ids"]) == TEXT
        sizes.append(len(words))
    assert sizes[1] == 260 < sizes[0] < VOCAB
    words = AutoTokenizer.from_pretrained(used)
    assert words.tokenize(TEXT) == tokenizer.tokenize(TEXT)


def test_weights_stay_in_the_type_they_are_published_in(tmp_path, model, tokenizer):
    half = copy.deepcopy(model).to(torch.bfloat16)
    half.save_pretrained(tmp_path / "half")
    tokenizer.save_pretrained(tmp_path / "half")
    out = run(tmp_path, "--source", "path", "--path", tmp_path / "half")
    stored = load_file(out / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    assert all(torch.equal(stored[name], p) for name, p in half.named_parameters())
    loaded = dict(load_model(out).named_parameters())
    assert all(torch.equal(loaded[name], p.float()) for name, p in half.named_parameters())
