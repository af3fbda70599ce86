"""Where texts begin and end for a tokenizer, ids with holes, and chat templates that travel."""

import json
import math

import numpy as np
import pytest
import torch
from model_folders import byte_level_bpe, publish_model
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from tokenizers.processors import TemplateProcessing
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from capgap.commands import trim
from capgap.config import Evaluate, FilesCorpus, Prune
from capgap.data.boundaries import boundaries, vocabulary_size
from capgap.data.token_streams import Streams, evaluation_windows, training_batch
from capgap.engine.counting import count_params
from capgap.engine.models import load_model, load_tokenizer
from capgap.errors import CapgapError
from capgap.pruning.solver import Target
from capgap.stages import corpus, evaluate, fetch, pack, prune, score

torch.set_num_threads(1)

TEXTS = [f"the {word} of the union is strong and the {word} stands " * 4 for word in "abcdefghij"]
BOS, EOS = "<s>", "</s>"


def make_tokenizer(folder, template=None, vocab=300, extra=()):
    special = [BOS, EOS]
    tokenizer = byte_level_bpe(
        TEXTS, vocab, special=special, min_frequency=1, bos_token=BOS, eos_token=EOS
    )
    if template:
        pairs = [(token, tokenizer.convert_tokens_to_ids(token)) for token in special]
        processor = TemplateProcessing(single=template, special_tokens=pairs)
        tokenizer.backend_tokenizer.post_processor = processor
    if extra:
        tokenizer.add_tokens(list(extra))
    folder.mkdir(exist_ok=True)
    tokenizer.save_pretrained(folder)
    return tokenizer


@pytest.fixture
def texts(tmp_path):
    (tmp_path / "texts").mkdir()
    for number, text in enumerate(TEXTS):
        (tmp_path / "texts" / f"{number}.txt").write_text(text)
    settings = FilesCorpus(
        source="files", pattern=f"{tmp_path}/texts/*.txt", validation_share=0.1, test_share=0.1
    )
    corpus.run(settings, tmp_path / "corpus")
    return tmp_path / "corpus"


def make_model(folder, rows, tokenizer, seed=0):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=rows, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
        bos_token_id=0, eos_token_id=1, pad_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    publish_model(model, folder, tokenizer)
    return model


@pytest.mark.parametrize(
    ("template", "before", "after"),
    [
        (None, [], [1]),
        (f"{BOS} $A", [0], [1]),
        (f"{BOS} $A {EOS}", [0], [1]),
        (f"{BOS} {BOS} $A", [0, 0], [1]),
        (f"$A {EOS} {BOS}", [], [1, 0, 1]),
    ],
)
def test_documents_begin_and_end_as_the_post_processor_has_it(
    tmp_path, texts, template, before, after
):
    make_tokenizer(tmp_path / "tok", template)
    words = load_tokenizer(tmp_path / "tok")
    assert boundaries(words) == (before, after)
    meta = pack.run(texts, tmp_path / "tok", tmp_path / "tokens")
    assert meta.bos_id == (before[0] if len(before) == 1 else None)
    plain = [words(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    stream = Streams(tmp_path / "tokens")["test"].tolist()
    assert stream in [[*before, *ids, *after] for ids in plain]


def test_a_setting_of_the_tokenizer_decides_where_its_file_does_not(tmp_path):
    """Llama's and Gemma's classes put the token there by add_bos_token."""
    make_tokenizer(tmp_path / "tok", f"{BOS} $A")
    assert boundaries(load_tokenizer(tmp_path / "tok")).bos_id == 0


def test_every_window_begins_with_the_token_before_texts():
    stream = np.arange(10, 60)
    for bos_id, first in ((None, None), (3, 3)):
        batch = training_batch(
            stream, sequence_length=8, batch_size=4, seed=0, step=0, bos_id=bos_id
        )
        starts = batch.starts.numpy()
        expected = stream[starts] if first is None else np.full(4, first)
        assert (batch.inputs[:, 0].numpy() == expected).all()
        assert (batch.inputs[:, 1:].numpy() == stream[starts[:, None] + np.arange(1, 8)]).all()
        assert (batch.labels.numpy() == stream[starts[:, None] + np.arange(1, 9)]).all()
        windows = list(evaluation_windows(stream, 8, 2, bos_id))
        labels = torch.cat([labels.flatten() for _, labels in windows])
        assert labels.tolist() == stream[1:].tolist()  # each predicted once, as without it
        heads = torch.cat([inputs[:, 0] for inputs, _ in windows])
        assert heads.tolist() == (stream[:-1:8].tolist() if first is None else [first] * 7)


def test_held_out_loss_is_that_of_each_text_after_its_first_token(tmp_path, texts):
    """As lm-eval counts it: every token of the text given the token before texts and those before."""
    make_tokenizer(tmp_path / "tok", f"{BOS} $A")
    rows = pack.run(texts, tmp_path / "tok", tmp_path / "tokens").vocab_size
    model = make_model(tmp_path / "m", rows, tmp_path / "tok")
    stream = torch.tensor(Streams(tmp_path / "tokens")["test"].astype(np.int64))
    assert stream[0] == 0
    with torch.no_grad():
        logits = model(input_ids=stream[None, :-1]).logits[0]
    nats = torch.nn.functional.cross_entropy(logits, stream[1:]).item()
    settings = Evaluate(sequence_length=len(stream) - 2, batch_tokens=1024)
    found = evaluate.run(settings, tmp_path / "m", tmp_path / "tokens").test
    assert found.tokens == len(stream) - 1
    with torch.no_grad():  # the last window predicts one token, after the token before texts
        first, last = (model(input_ids=part[None]).logits[0] for part in (stream[:-2], stream[:1]))
    parts = torch.cat([first, last])
    expected = torch.nn.functional.cross_entropy(parts, stream[1:]).item()
    assert found.loss_nats_per_token == pytest.approx(expected, abs=1e-5)
    assert abs(expected - nats) < 0.2


# --- ids with holes, and beyond the embedding ---------------------------------------------------


def with_hole(folder):
    """The largest id is 10 above what their number suggests."""
    path = folder / "tokenizer.json"
    data = json.loads(path.read_text())
    last = max(data["model"]["vocab"], key=data["model"]["vocab"].get)
    data["model"]["vocab"][last] += 10
    path.write_text(json.dumps(data))
    return data["model"]["vocab"][last]


def test_a_tokenizer_with_holes_in_its_ids_has_as_many_entries_as_its_largest_id(tmp_path, texts):
    make_tokenizer(tmp_path / "tok")
    largest = with_hole(tmp_path / "tok")
    words = load_tokenizer(tmp_path / "tok")
    assert vocabulary_size(words) == largest + 1 > len(words)
    meta = pack.run(texts, tmp_path / "tok", tmp_path / "tokens")
    assert meta.vocab_size == largest + 1
    model = make_model(tmp_path / "m", largest + 5, tmp_path / "tok")
    stream = torch.tensor(Streams(tmp_path / "tokens")["test"].astype(np.int64))
    with torch.no_grad():
        logits = model(input_ids=stream[None, :-1]).logits[0, :, : largest + 1]
    expected = torch.nn.functional.cross_entropy(logits[:-1], stream[1:-1]).item()
    settings = Evaluate(sequence_length=len(stream) - 2, batch_tokens=1024)
    found = evaluate.run(settings, tmp_path / "m", tmp_path / "tokens").test
    tail = found.loss_nats_per_token * found.tokens - expected * (found.tokens - 1)
    with torch.no_grad():
        alone = model(input_ids=stream[None, -2:-1]).logits[0, :, : largest + 1]
    assert tail == pytest.approx(
        torch.nn.functional.cross_entropy(alone, stream[-1:]).item(), abs=1e-3
    )
    params = trim.run(tmp_path / "m", TEXTS, None, tmp_path / "trimmed")
    assert params.embedding < count_params(model).embedding
    load_model(tmp_path / "trimmed")


def test_added_tokens_beyond_the_embedding_are_refused_only_where_they_are_used(tmp_path, texts):
    make_tokenizer(tmp_path / "tok", extra=["<|pad|>", "<|image|>"])
    rows = vocabulary_size(load_tokenizer(tmp_path / "tok")) - 2
    make_model(tmp_path / "m", rows, tmp_path / "tok")
    settings = Evaluate(sequence_length=16, batch_tokens=1024)
    meta = pack.run(texts, tmp_path / "tok", tmp_path / "tokens")
    assert meta.largest_id < rows < meta.vocab_size
    loss = evaluate.run(settings, tmp_path / "m", tmp_path / "tokens").test.loss_nats_per_token
    assert math.isfinite(loss)
    make_model(tmp_path / "small", meta.largest_id, tmp_path / "tok")
    with pytest.raises(
        CapgapError, match=rf"{meta.largest_id} entries.*ids up to {meta.largest_id}"
    ):
        evaluate.run(settings, tmp_path / "small", tmp_path / "tokens")


# --- what travels with a model ------------------------------------------------------------------

TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"


def test_a_chat_template_travels(tmp_path, texts):
    words = make_tokenizer(tmp_path / "tok", f"{BOS} $A")
    words.chat_template = TEMPLATE
    words.save_pretrained(tmp_path / "tok")
    assert (tmp_path / "tok" / "chat_template.jinja").is_file()
    model = make_model(tmp_path / "m", 300, tmp_path / "tok")
    size = count_params(model).non_embedding
    options = ["--source", "path", "--path", tmp_path / "m", "--params-non-embedding", size]
    fetch.main(list(map(str, ["--name", "t", "--out", tmp_path / "fetched", *options])))
    pack.run(texts, tmp_path / "fetched", tmp_path / "tokens")
    settings = Prune(calibration_sequences=4, sequence_length=16)
    score.run(settings.scoring(), tmp_path / "fetched", tmp_path / "tokens", tmp_path / "scores")
    prune.run(
        settings.cutting(), tmp_path / "fetched", tmp_path / "scores",
        Target("params", size // 2), tmp_path / "pruned",
    )  # fmt: skip
    trim.run(tmp_path / "pruned", TEXTS, None, tmp_path / "trimmed")
    for name in ("m", "fetched", "pruned", "trimmed"):
        found = PreTrainedTokenizerFast.from_pretrained(tmp_path / name)
        chat = found.apply_chat_template([{"role": "a", "content": "b"}], tokenize=False)
        assert chat == "a: b\n", name
        assert boundaries(found).bos_id is not None, name


def sentencepiece_folder(folder, kind, tokenizer_class):
    """A folder with a model and a SentencePiece model alone, as the first Llamas came."""
    make_tokenizer(folder.parent / "words")
    make_model(folder, 300, folder.parent / "words")
    for name in ("tokenizer.json", "manifest.json"):
        (folder / name).unlink()
    SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_prefix=str(folder / "tokenizer"), vocab_size=300, hard_vocab_limit=False,
        model_type=kind, byte_fallback=True, normalization_rule_name="identity", minloglevel=2,
        remove_extra_whitespaces=False, add_dummy_prefix=tokenizer_class == "LlamaTokenizer",
    )  # fmt: skip
    (folder / "tokenizer.vocab").unlink()
    settings = {"tokenizer_class": tokenizer_class, "bos_token": BOS, "eos_token": EOS}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"add_bos_token": True}))


def fetched(source, out):
    fetch.main(["--name", "t", "--source", "path", "--path", str(source), "--out", str(out)])
    return load_tokenizer(out)


@pytest.mark.parametrize("tokenizer_class", ["LlamaTokenizer", "GemmaTokenizer"])
def test_fetch_converts_a_sentencepiece_model(tmp_path, tokenizer_class):
    sentencepiece_folder(tmp_path / "m", "bpe", tokenizer_class)
    words = fetched(tmp_path / "m", tmp_path / "fetched")
    original = SentencePieceProcessor(model_file=str(tmp_path / "m" / "tokenizer.model"))
    for text in (*TEXTS, "Größe, 日本\n\n\tx  y"):
        assert words(text, add_special_tokens=False)["input_ids"] == original.encode(text)
        assert words.decode(original.encode(text)) == text
    assert boundaries(words) == ([original.bos_id()], [original.eos_id()])


def test_a_sentencepiece_model_that_is_converted_to_another_one_is_refused(tmp_path):
    """Llama's class makes merges of the pieces of a unigram model, without a word."""
    sentencepiece_folder(tmp_path / "m", "unigram", "LlamaTokenizer")
    with pytest.raises(
        CapgapError, match=r"tokenizer\.model: converted by LlamaTokenizer, .* instead of \["
    ):
        fetched(tmp_path / "m", tmp_path / "fetched")
    (tmp_path / "m" / "tokenizer.model").write_bytes(b"no model")
    with pytest.raises(CapgapError, match=r"tokenizer\.model is damaged: not a SentencePiece"):
        fetched(tmp_path / "m", tmp_path / "fetched")


def test_a_folder_without_any_tokenizer_is_refused(tmp_path):
    """Llama's class alone would be a tokenizer of three entries."""
    sentencepiece_folder(tmp_path / "m", "bpe", "LlamaTokenizer")
    (tmp_path / "m" / "tokenizer.model").unlink()
    with pytest.raises(
        CapgapError, match=r"no file of a tokenizer .tokenizer\.json, tokenizer\.model"
    ):
        fetched(tmp_path / "m", tmp_path / "fetched")


def test_a_spoilt_file_of_a_tokenizer_is_named(tmp_path):
    make_tokenizer(tmp_path / "tok")
    (tmp_path / "tok" / "tokenizer_config.json").write_text("{")
    with pytest.raises(CapgapError, match=r"tok/tokenizer_config\.json is damaged: not JSON"):
        load_tokenizer(tmp_path / "tok")
    (tmp_path / "tok" / "tokenizer.json").write_text('{"model": {}}')
    (tmp_path / "tok" / "tokenizer_config.json").write_text("{}")
    with pytest.raises(CapgapError, match=r"tok/tokenizer\.json holds no tokenizer"):
        load_tokenizer(tmp_path / "tok")


def test_a_folder_with_a_sentencepiece_model_alone_is_refused_by_name(tmp_path):
    make_tokenizer(tmp_path / "tok")
    make_model(tmp_path / "m", 300, tmp_path / "tok")
    (tmp_path / "m" / "tokenizer.json").unlink()
    (tmp_path / "m" / "manifest.json").unlink()
    (tmp_path / "m" / "tokenizer.model").write_bytes(b"\x0a\x0e\x0a\x05<unk>\x15\x00\x00\x00\x00")
    for use in (
        lambda: load_tokenizer(tmp_path / "m"),
        lambda: prune.main([str(tmp_path / "m"), "--params", "3k", "--out", str(tmp_path / "p")]),
    ):
        with pytest.raises(CapgapError, match=r"tokenizer\.model: a SentencePiece.*capgap fetch"):
            use()
