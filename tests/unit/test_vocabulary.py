"""Trimming a vocabulary: same pieces, same logits, every text still comes back."""

import copy
import json

import numpy as np
import pytest
import torch
from model_folders import byte_level_bpe, publish_model
from pruning_models import build, logits
from transformers import AutoModelForCausalLM, AutoTokenizer

from capgap.commands import trim as trim_stage
from capgap.engine.counting import count_params
from capgap.engine.models import load_model, load_tokenizer
from capgap.errors import CapgapError
from capgap.pruning.vocabulary import kept_entries, trim
from capgap.records.run_records import Lineage

torch.set_num_threads(1)

TEXTS = [
    "the state of the union is strong, and the states are united",
    "we will build the roads and the bridges of the nation together",
    "a nation of laws; the laws of a nation. Über naïve façades: ok",
]
USED = TEXTS[:2]
STRANGE = "Ünïcode ☃ \t\n zwölf 数字 and <|endoftext|> the union"


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """A byte-level BPE tokenizer of about 330 entries."""
    folder = tmp_path_factory.mktemp("words")
    byte_level_bpe(TEXTS, 330, min_frequency=1).save_pretrained(folder)
    return folder


def copied(words, tmp_path):
    target = tmp_path / "words"
    target.mkdir()
    for path in words.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def model_for(name, entries):
    """A model with `entries` rows, whose end-of-text is token 0."""
    model = build(name)
    model.resize_token_embeddings(entries)
    with torch.no_grad():
        torch.manual_seed(5)
        for embedding in (model.get_input_embeddings(), model.get_output_embeddings()):
            embedding.weight.copy_(0.3 * torch.randn(embedding.weight.shape))
    return model.eval()


@pytest.mark.parametrize("name", ["llama-mha-tied", "llama-gqa-untied", "gpt2", "opt"])
def test_text_of_used_entries_keeps_its_pieces_and_logits(words, tmp_path, name):
    before = load_tokenizer(words)
    model = model_for(name, len(before) + 6)  # six rows of padding, as Pythia has
    original, folder = copy.deepcopy(model), copied(words, tmp_path)
    student = trim(model, folder, USED, None)
    after = load_tokenizer(folder)
    assert 257 <= len(after) < len(before)
    assert student.config.vocab_size == len(after)
    for text in USED:
        old, new = before(text)["input_ids"], after(text)["input_ids"]
        assert after.convert_ids_to_tokens(new) == before.convert_ids_to_tokens(old)
        rows = before.convert_tokens_to_ids(after.convert_ids_to_tokens(range(len(after))))
        expected = logits(original, torch.tensor([old]))[..., rows]
        torch.testing.assert_close(
            logits(student, torch.tensor([new])), expected, rtol=1e-4, atol=1e-4
        )
    eos = student.config.eos_token_id
    assert after.convert_ids_to_tokens([eos]) == ["<|endoftext|>"]
    assert student.generation_config.eos_token_id == eos


@pytest.mark.parametrize("entries", [None, 257, 270, 300])
def test_every_text_still_comes_back(words, tmp_path, entries):
    folder = copied(words, tmp_path)
    trim(model_for("llama-mha-tied", 330), folder, USED, entries)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert entries is None or len(tokenizer) <= entries
    for text in [*TEXTS, STRANGE]:
        ids = tokenizer(text)["input_ids"]
        assert max(ids) < len(tokenizer)
        assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    assert tokenizer("a<|endoftext|>b")["input_ids"].count(end) == 1
    assert tokenizer.eos_token_id == end
    assert sorted(tokenizer.get_vocab().values()) == list(range(len(tokenizer)))


def test_most_used_entries_stay_with_their_parts():
    """abc is made from ab and c; d is used least and goes first."""
    vocab = {"a": 0, "b": 1, "c": 2, "ab": 3, "abc": 4, "bc": 5, "ca": 6}
    merges = [["a", "b"], ["ab", "c"], ["b", "c"], ["c", "a"]]
    data = {"model": {"type": "BPE", "vocab": vocab, "merges": merges}, "added_tokens": []}
    counts = np.array([1, 1, 1, 0, 9, 2, 3])
    assert kept_entries(data, counts, None).tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert kept_entries(data, counts, 5).tolist() == [0, 1, 2, 3, 4]
    assert kept_entries(data, counts, 6).tolist() == [0, 1, 2, 3, 4, 6]
    assert kept_entries(data, counts, 4).tolist() == [0, 1, 2, 6]  # abc does not fit with ab
    assert kept_entries(data, counts, 4, always=[3]).tolist() == [0, 1, 2, 3]
    data["model"]["merges"] = [" ".join(pair) for pair in merges]  # as older files write them
    assert kept_entries(data, counts, 5).tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(
        CapgapError, match="of 2 entries is too small for the 3 bytes and special tokens"
    ):
        kept_entries(data, counts, 2)
    data["model"]["type"] = "Unigram"
    with pytest.raises(CapgapError, match="Unigram tokenizer cannot be trimmed"):
        kept_entries(data, counts, None)


def test_special_tokens_in_processors_and_padding_move_with_their_entries(words, tmp_path):
    folder = copied(words, tmp_path)
    data = json.loads((folder / "tokenizer.json").read_text())
    before = load_tokenizer(folder)
    last = "Ġtogether"
    old = before.convert_tokens_to_ids(last)
    data["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": last, "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {last: {"id": last, "ids": [old], "tokens": [last]}},
    }
    (folder / "tokenizer.json").write_text(json.dumps(data))
    trim(model_for("llama-mha-tied", 330), folder, USED, None)
    after = load_tokenizer(folder)
    new = after.convert_tokens_to_ids(last)
    assert new < old
    assert after("the")["input_ids"][0] == new


def test_trim_stage_publishes_a_folder_like_every_other(words, tmp_path, capsys):
    model = model_for("llama-gqa-untied", 340)
    model.generation_config.pad_token_id = None
    publish_model(model, tmp_path / "big", words, name="big")
    text = tmp_path / "text.txt"
    text.write_text("\n".join(USED), encoding="utf-8")
    args = [tmp_path / "big", "--text", text, "--entries", "300", "--out"]
    for out in ("a", "b"):
        trim_stage.main([*map(str, args), str(tmp_path / out)])
    files = [{p.name: p.read_bytes() for p in (tmp_path / out).iterdir()} for out in "ab"]
    assert files[0] == files[1]
    small = AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "a")
    assert small.config.vocab_size == len(tokenizer) <= 300
    ids = torch.tensor([tokenizer("the union")["input_ids"]])
    out = small.generate(ids, max_new_tokens=3, min_new_tokens=3)
    assert out.shape[1] == ids.shape[1] + 3
    assert Lineage.read(tmp_path / "a" / "lineage.json").params == count_params(small)
    assert f"{count_params(small).total:,} in all" in capsys.readouterr().out
    assert count_params(small).non_embedding == count_params(model).non_embedding
    with pytest.raises(CapgapError, match="raise it"):
        trim_stage.run(tmp_path / "big", USED, 200, tmp_path / "x")
    assert not (tmp_path / "x").exists()
    assert load_model(tmp_path / "big").config.vocab_size == 340
