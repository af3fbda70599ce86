"""A given student: its vocabulary is mapped exactly to the study's, or refused by name."""

import copy
import json

import numpy as np
import pytest
import torch
from model_folders import END, byte_level_bpe, publish_model
from pruning_models import build, logits

from capgap.engine.counting import count_params
from capgap.engine.models import load_model, load_tokenizer, read_lineage
from capgap.errors import CapgapError
from capgap.pruning.vocabulary import trim
from capgap.pruning.vocabulary_mapping import rows_by_entry, with_tokenizer
from capgap.stages import given

torch.set_num_threads(1)

TEXTS = ["the state of the union is strong", "we will build the roads of the nation together"]


def tokenizer_at(folder, texts=TEXTS, entries=300):
    """A byte-level BPE tokenizer in a folder."""
    byte_level_bpe(texts, entries, min_frequency=1).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return tokenizer_at(tmp_path_factory.mktemp("words"))


def changed(words, folder, change):
    """A copy of a tokenizer with an edited tokenizer.json."""
    folder.mkdir()
    for path in words.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    data = json.loads((folder / "tokenizer.json").read_text())
    change(data)
    (folder / "tokenizer.json").write_text(json.dumps(data))
    return folder


def permute(data):
    """Give every entry another id."""
    vocab = data["model"]["vocab"]
    moved = {entry: (i + 7) % len(vocab) for entry, i in vocab.items()}
    data["model"]["vocab"] = dict(sorted(moved.items(), key=lambda pair: pair[1]))
    for token in data["added_tokens"]:
        token["id"] = moved[token["content"]]


def model_for(name, words):
    model = build(name)
    entries = len(load_tokenizer(words))
    model.resize_token_embeddings(entries)
    end = load_tokenizer(words).eos_token_id
    model.config.eos_token_id = model.generation_config.eos_token_id = end
    with torch.no_grad():
        torch.manual_seed(5)
        for table in (model.get_input_embeddings(), model.get_output_embeddings()):
            table.weight.copy_(0.3 * torch.randn(table.weight.shape))
    return model.eval()


@pytest.mark.parametrize("name", ["llama-mha-tied", "llama-gqa-untied", "gpt2"])
def test_other_ids_give_the_same_logits_of_the_same_entries(words, tmp_path, name):
    own = changed(words, tmp_path / "own", permute)
    model = model_for(name, own)
    mapped = with_tokenizer(copy.deepcopy(model), own, words)
    mine, study = load_tokenizer(own), load_tokenizer(words)
    rows = [mine.get_vocab()[entry] for entry in study.convert_ids_to_tokens(range(len(study)))]
    assert rows != sorted(rows)
    for text in TEXTS:
        there, here = mine(text)["input_ids"], study(text)["input_ids"]
        expected = logits(model, torch.tensor([there]))[..., rows]
        torch.testing.assert_close(logits(mapped, torch.tensor([here])), expected)
    assert mapped.config.eos_token_id == study.eos_token_id
    assert count_params(mapped) == count_params(model)


def test_entries_that_the_study_lacks_lose_their_rows(words, tmp_path):
    """The study's tokenizer is the student's, trimmed to a text."""
    trimmed = changed(words, tmp_path / "study", lambda data: None)
    trim(model_for("llama-mha-tied", words), trimmed, TEXTS[:1], None)
    model = model_for("llama-mha-tied", words)
    mapped = with_tokenizer(copy.deepcopy(model), words, trimmed)
    mine, study = load_tokenizer(words), load_tokenizer(trimmed)
    assert mapped.config.vocab_size == len(study) < len(mine)
    rows = [mine.get_vocab()[entry] for entry in study.convert_ids_to_tokens(range(len(study)))]
    there, here = mine(TEXTS[0])["input_ids"], study(TEXTS[0])["input_ids"]
    expected = logits(model, torch.tensor([there]))[..., rows]
    torch.testing.assert_close(logits(mapped, torch.tensor([here])), expected)


def test_the_same_tokenizer_changes_nothing(words):
    model = model_for("llama-mha-tied", words)
    assert with_tokenizer(model, words, words) is model


def test_last_entries_may_be_missing_and_others_not(words, tmp_path):
    def add(data):
        data["added_tokens"].append({**data["added_tokens"][0], "content": "<|user|>", "id": 300})

    more = changed(words, tmp_path / "more", add)
    entries = len(load_tokenizer(words))
    np.testing.assert_array_equal(rows_by_entry(words, more, entries), np.arange(entries))
    swapped = changed(more, tmp_path / "swapped", permute_with_added)
    with pytest.raises(CapgapError, match=r"lacks 1 of the 301 entries .*'<\|user\|>'"):
        rows_by_entry(words, swapped, entries)


def permute_with_added(data):
    """The added token takes id 0, and the others the next ones."""
    data["model"]["vocab"] = {entry: i + 1 for entry, i in data["model"]["vocab"].items()}
    for token in data["added_tokens"]:
        token["id"] = 0 if token["content"] == "<|user|>" else token["id"] + 1


def merge_otherwise(data):
    first, second, *rest = data["model"]["merges"]
    data["model"]["merges"] = [second, first, *rest]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (merge_otherwise, "its tokenizer merges otherwise than the study's"),
        (lambda d: d.update(normalizer={"type": "NFC"}), "cuts a text otherwise .*normalizer"),
        (
            lambda d: d["pre_tokenizer"].update(add_prefix_space=True),
            "cuts a text otherwise .*pre_tokenizer",
        ),
        (
            lambda d: d["model"].update(byte_fallback=True),
            "differs from the study's in byte_fallback",
        ),
        (
            lambda d: d.update(
                model={"type": "WordLevel", "vocab": {"a": 0, END: 1}, "unk_token": "a"}
            ),
            "not to or from WordLevel",
        ),
    ],
)
def test_a_tokenizer_that_cuts_otherwise_is_refused(words, tmp_path, change, reason):
    own = changed(words, tmp_path / "own", change)
    with pytest.raises(CapgapError, match=reason):
        rows_by_entry(own, words, 300)


def test_a_vocabulary_of_another_text_is_refused(words, tmp_path):
    other = tokenizer_at(tmp_path, ["quite other words, zebra zebra zebra zoo zoo"])
    with pytest.raises(CapgapError, match="its vocabulary lacks|merges otherwise"):
        rows_by_entry(other, words, 300)


def test_the_stage_writes_an_init_and_checks_its_size(words, tmp_path):
    model = model_for("llama-mha-tied", words)
    publish_model(model, tmp_path / "model", words, name="x", seed=3)
    size = str(count_params(model).non_embedding)
    with pytest.raises(CapgapError, match="the study counts on 5"):
        given.run(tmp_path / "model", words, "mine", "5", tmp_path / "wrong")
    made = given.run(tmp_path / "model", words, "mine", None, tmp_path / "init")
    assert (made.kind, made.init, made.seed) == ("init", "given-mine", 3)
    init = load_model(tmp_path / "init")
    assert read_lineage(tmp_path / "init", init) == made
    assert size == str(made.params.non_embedding)
    for one, two in zip(
        init.parameters(), load_model(tmp_path / "model").parameters(), strict=True
    ):
        assert torch.equal(one, two)
