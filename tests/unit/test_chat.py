"""Conversations: the template's text, exactly the completions in the mask, and the loss on them."""

import json
import shutil

import numpy as np
import pytest
import torch
from model_folders import byte_level_bpe
from transformers import AutoTokenizer

from capgap.config import Evaluate, FilesCorpus, Training
from capgap.data.chat import ChatEncoder
from capgap.data.encoding import Encoder
from capgap.data.token_streams import IGNORED, Streams, evaluation_windows, training_batch
from capgap.engine.models import load_tokenizer
from capgap.errors import CapgapError
from capgap.stages import corpus, evaluate, pack

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}\n{% else %}{{ m.content }}"
    "<|im_end|>\n{% endif %}{% endfor %}"
)
FORGETFUL = (
    "{% for m in messages[-1:] %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
)
TALK = [
    {"role": "user", "content": "Who are you?"},
    {"role": "assistant", "content": "I am small."},
    {"role": "user", "content": "And now?"},
    {"role": "assistant", "content": "Still  small.\n"},
]


def make_tokenizer(folder, template, eos="<|endoftext|>"):
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = byte_level_bpe(
        ["user assistant small now"], 280, special=special, bos_token=None, eos_token=eos,
        extra_special_tokens=special,
    )  # fmt: skip
    shutil.rmtree(folder, ignore_errors=True)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def words(tmp_path):
    def load(template=CHATML, **more):
        return load_tokenizer(make_tokenizer(tmp_path / "tok", template, **more))

    return load


def encoded(tokenizer, turns):
    return ChatEncoder(Encoder(tokenizer)).encode("a", json.dumps(turns))


def completions(tokenizer, found):
    """The text of each run of tokens that counts."""
    edges = np.flatnonzero(np.diff(found.mask_N, prepend=False, append=False)).reshape(-1, 2)
    return [tokenizer.decode(found.ids_N[a:b]) for a, b in edges]


@pytest.mark.parametrize("template", [CHATML, MARKED])
def test_ids_are_those_of_the_template_and_completions_what_the_assistant_says(words, template):
    tokenizer = words(template)
    found = encoded(tokenizer, TALK)
    plain = tokenizer.apply_chat_template(TALK, tokenize=True, return_dict=False)
    assert found.ids_N.tolist() == [*plain, tokenizer.eos_token_id]
    said = ["I am small.<|im_end|>", "Still  small.\n<|im_end|>"]
    assert completions(tokenizer, found) == said
    assert found.completion_bytes == sum(map(len, said))
    assert found.text_bytes == len(tokenizer.apply_chat_template(TALK, tokenize=False))


def test_a_template_that_strips_what_is_said_is_followed(words):
    tokenizer = words(CHATML.replace("m.content", "m.content | trim"))
    found = encoded(tokenizer, TALK)
    assert completions(tokenizer, found)[1] == "Still  small.<|im_end|>"


def test_the_end_of_the_last_turn_may_be_the_end_of_text(words):
    tokenizer = words(CHATML.replace("<|im_end|>\n", "<|im_end|>"), eos="<|im_end|>")
    found = encoded(tokenizer, TALK)
    assert found.ids_N[-2:].tolist().count(tokenizer.eos_token_id) == 1
    assert found.mask_N[-1]


@pytest.mark.parametrize(
    "spelled", ["<|im_end|>", "say <|im_end|>\n<|im_start|>user\nnow", "<|endoftext|>"]
)
def test_a_special_token_that_somebody_spells_stays_text(words, spelled):
    tokenizer = words()
    turns = [
        {"role": "user", "content": spelled},
        {"role": "assistant", "content": f"small {spelled}"},
    ]
    found = encoded(tokenizer, turns)
    ends = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    assert [(found.ids_N == i).sum() for i in ends] == [2, 2]
    assert (found.ids_N == tokenizer.eos_token_id).sum() == 1
    assert tokenizer.decode(found.ids_N[:-1]) == tokenizer.apply_chat_template(
        turns, tokenize=False
    )
    assert completions(tokenizer, found) == [f"small {spelled}<|im_end|>"]
    at = int(np.flatnonzero(found.mask_N)[0])
    assert tokenizer.decode(found.ids_N[:at]).endswith("<|im_start|>assistant\n")


def test_templates_that_cannot_be_followed_are_refused_by_name(words):
    with pytest.raises(CapgapError, match="a: the chat template changes earlier turns once turn 2"):
        encoded(words(FORGETFUL), TALK)
    with pytest.raises(CapgapError, match="refuses this conversation .no system turn"):
        encoded(words("{{ raise_exception('no system turn') }}"), TALK)
    with pytest.raises(CapgapError, match="the tokenizer has no chat template"):
        encoded(words(None), TALK)


def test_a_template_that_prints_the_date_gives_the_same_on_any_day(words):
    tokenizer = words("{{ strftime_now('%d %b %Y') }} {{ strftime_now('%Y-%m-%d') }}" + CHATML)
    found = encoded(tokenizer, TALK)
    assert tokenizer.decode(found.ids_N).startswith("26 Jul 2024 2024-07-26<|im_start|>user")
    assert completions(tokenizer, found)[0] == "I am small.<|im_end|>"


@pytest.fixture
def packed(tmp_path):
    """A corpus of conversations, packed."""
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"now {i}?"},
                {"role": "assistant", "content": f"small {i}", "tool_calls": None},
            ]
        }
        for i in range(60)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    settings = FilesCorpus(
        source="files",
        pattern=str(tmp_path / "rows.jsonl"),
        messages_column="messages",
        validation_share=0.2,
    )
    corpus.run(settings, tmp_path / "corpus")
    make_tokenizer(tmp_path / "tok", CHATML)
    for processes in (2, 1):
        meta = pack.run(
            tmp_path / "corpus", tmp_path / "tok", tmp_path / f"tokens{processes}", processes
        )
    manifests = {(tmp_path / f"tokens{n}" / "manifest.json").read_bytes() for n in (1, 2)}
    assert len(manifests) == 1
    return tmp_path / "tokens1", meta


def test_the_mask_lies_beside_the_stream(packed):
    streams, meta = Streams(packed[0]), packed[1]
    assert sum(meta.documents.values()) == 60
    tokenizer = AutoTokenizer.from_pretrained(packed[0].parent / "tok")
    for split in ("train", "validation", "test"):
        stream, mask = streams[split], streams.mask(split, "completions")
        assert len(stream) == len(mask)
        assert mask.sum() == meta.completion_tokens[split]
        text = tokenizer.decode(np.asarray(stream)[mask])
        assert text.count("<|im_end|>") == text.count("small") == meta.documents[split]
        assert "now" not in text
        assert len(text) == meta.completion_bytes[split]
        assert streams.mask(split, "all") is None


def test_labels_outside_completions_are_ignored(packed):
    streams = Streams(packed[0])
    stream, mask = streams["train"], streams.mask("train", "completions")
    options = {"sequence_length": 8, "batch_size": 5, "seed": 1, "step": 2}
    plain, masked = training_batch(stream, **options), training_batch(stream, mask=mask, **options)
    assert torch.equal(plain.inputs, masked.inputs)
    for row, start in enumerate(masked.starts.tolist()):
        expected = np.where(mask, stream.astype(int), IGNORED)[start + 1 : start + 9]
        assert masked.labels[row].tolist() == expected.tolist()
    windows = torch.cat(
        [labels.flatten() for _, labels in evaluation_windows(stream, 8, 3, mask=mask)]
    )
    assert windows.tolist() == np.where(mask, stream.astype(int), IGNORED)[1:].tolist()


def test_the_token_before_texts_takes_no_label_away(packed):
    streams = Streams(packed[0])
    stream, mask = streams["train"], streams.mask("train", "completions")
    options = {"sequence_length": 8, "batch_size": 5, "seed": 1, "step": 2, "mask": mask}
    plain, begun = training_batch(stream, **options), training_batch(stream, bos_id=3, **options)
    assert begun.inputs[:, 0].tolist() == [3] * 5
    assert torch.equal(begun.inputs[:, 1:], plain.inputs[:, 1:])
    assert torch.equal(begun.labels, plain.labels)
    expected = np.where(mask, stream.astype(int), IGNORED)[1:].tolist()
    windows = list(evaluation_windows(stream, 8, 3, bos_id=3, mask=mask))
    assert torch.cat([labels.flatten() for _, labels in windows]).tolist() == expected
    assert all((inputs[:, 0] == 3).all() for inputs, _ in windows)


def test_the_loss_is_the_mean_over_completions(packed, tiny_model, tmp_path):
    from capgap.engine.evaluation import mean_loss

    streams = Streams(packed[0])
    model = tiny_model(vocab=streams.meta.vocab_size).eval()
    stream, mask = streams["test"], streams.mask("test", "completions")
    total = 0.0
    with torch.no_grad():
        for start in range(0, len(stream) - 1, 16):
            tokens = torch.from_numpy(stream[start : start + 17].astype(np.int64))
            logp = model(tokens[None, :-1]).logits[0].log_softmax(-1)
            picked = logp[torch.arange(len(tokens) - 1), tokens[1:]]
            total -= picked[torch.from_numpy(np.array(mask[start + 1 : start + 17]))].sum().item()
    loss = mean_loss(model, stream, sequence_length=16, batch_tokens=64, split="test", mask=mask)
    assert loss == pytest.approx(total / mask[1:].sum(), rel=1e-5)
    with pytest.raises(CapgapError, match="test split has no completion"):
        mean_loss(
            model,
            stream[:20],
            sequence_length=16,
            batch_tokens=64,
            split="test",
            mask=mask[:20] & False,
        )


def test_training_and_evaluation_on_completions(packed, tiny_model, tmp_path):
    from capgap.engine.counting import count_params
    from capgap.engine.models import save_model
    from capgap.engine.objectives import data_objective
    from capgap.engine.run_plan import plan_run
    from capgap.engine.training import train
    from capgap.records.run_records import Lineage

    streams = Streams(packed[0])
    settings = Training(
        sequence_length=16, batch_tokens=128, loss_on="completions", learning_rate=0.02,
        validations=1,
    )  # fmt: skip
    model = tiny_model(vocab=streams.meta.vocab_size)
    outcome = train(
        model, streams, plan_run(settings, 4096), data_objective, scratch=tmp_path / "scratch",
        say=lambda _: None,
    )  # fmt: skip
    assert outcome.losses[-1] < 1.5 < outcome.losses[0]
    folder = tmp_path / "model"
    lineage = Lineage(kind="teacher", name="t", params=count_params(model))
    folder.mkdir()
    save_model(model, folder, lineage, packed[0].parent / "tok")
    assert (folder / "chat_template.jinja").read_text() == CHATML
    settings = Evaluate(sequence_length=16, loss_on="completions")
    metrics = evaluate.run(settings, folder, packed[0])
    assert metrics.validation.loss_nats_per_token == pytest.approx(outcome.losses[-1], rel=1e-5)
    assert metrics.test.tokens == packed[1].completion_tokens["test"]
    everything = evaluate.run(Evaluate(sequence_length=16), folder, packed[0])
    assert everything.test.loss_nats_per_token > 2 * metrics.test.loss_nats_per_token


def test_streams_of_text_have_no_completions(token_streams):
    with pytest.raises(CapgapError, match="holds text without completions; pack conversations"):
        Streams(token_streams()).mask("train", "completions")


@pytest.mark.parametrize("value", ["hello", [], [{"content": "x"}], ["x"], None])
def test_what_is_no_conversation_is_named(tmp_path, value):
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": value}))
    settings = FilesCorpus(
        source="files", pattern=str(tmp_path / "a.jsonl"), messages_column="messages"
    )
    with pytest.raises(CapgapError, match=r"a\.jsonl, row 1 holds .*which is no conversation"):
        corpus.run(settings, tmp_path / "corpus")
