"""Continuations of held-out text: which token follows, which prompts, and what the stage records."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from model_folders import END, byte_level_bpe, publish_model

from capgap.config import FilesCorpus, SampleStage
from capgap.config.shapes import LlamaShape
from capgap.data.boundaries import boundaries
from capgap.data.encoding import Encoder
from capgap.data.prompts import prompts
from capgap.engine.models import llama_config, load_tokenizer, new_model
from capgap.engine.sampling import continuations, pick
from capgap.engine.streaming import load_frozen
from capgap.errors import CapgapError
from capgap.stages import corpus, pack, sample

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SENTENCES = [f"Sentence number {i} of this document says that {i} is a number." for i in range(60)]


class Fixed:
    """Random numbers that are given."""

    def __init__(self, *values):
        self.values = list(values)

    def random(self):
        return self.values.pop(0)


def test_a_token_is_looked_up_in_the_cumulative_distribution():
    logits = np.log([0.2, 0.5, 0.3])
    draws = [0.0, 0.19, 0.21, 0.69, 0.71, 0.999]
    assert [pick(logits, 1.0, Fixed(u)) for u in draws] == [0, 0, 1, 1, 2, 2]
    # at temperature 1/2 probabilities are squared: 4, 25 and 9 of 38
    assert [pick(logits, 0.5, Fixed(u)) for u in (4.1 / 38, 28.9 / 38, 29.1 / 38)] == [1, 1, 2]
    assert pick(logits, 0.0, Fixed()) == 1  # greedy draws nothing


def counting(next_of):
    """A model whose most probable next token is a function of the last one."""

    def call(input_ids, use_cache):
        logits = torch.zeros(1, input_ids.shape[1], 6)
        logits[0, -1, next_of[int(input_ids[0, -1])]] = 5.0
        return SimpleNamespace(logits=logits)

    call.eval = lambda: None
    call.device = torch.device("cpu")
    return call


def test_a_continuation_ends_with_the_end_of_text_and_is_no_longer_than_asked():
    model = counting({1: 2, 2: 3, 3: 0})
    settings = {"temperature": 0.0, "draws": [Fixed(), Fixed()], "vocab": 6, "end_id": 0}
    prompts = [np.array([5, 1]), np.array([3])]
    assert continuations(model, prompts, new_tokens=9, **settings) == [[2, 3], []]
    assert continuations(model, prompts, new_tokens=1, **settings) == [[2], []]


def test_rows_of_the_head_that_are_no_tokens_are_never_chosen():
    model = counting({1: 5})
    settings = {"temperature": 0.0, "draws": [Fixed()], "vocab": 5, "end_id": 9}
    assert continuations(model, [np.array([1])], new_tokens=1, **settings) == [[0]]


def make_words(folder, template=None):
    special = [END, "<|im_start|>", "<|im_end|>"]
    words = byte_level_bpe(
        SENTENCES, 300, special=special, bos_token=None, extra_special_tokens=special
    )
    if template:
        words.chat_template = template
    words.save_pretrained(folder)
    return folder


def make_corpus(root, suffix, texts, column=None):
    """Published corpus whose test split has several of the documents."""
    (root / "in").mkdir()
    for i, text in enumerate(texts):
        (root / f"in/{i:02}.{suffix}").write_text(text)
    settings = FilesCorpus(
        source="files",
        pattern=str(root / f"in/*.{suffix}"),
        validation_share=0.1,
        test_share=0.4,
        **({"messages_column": column} if column else {}),
    )
    corpus.run(settings, root / "corpus")
    return root / "corpus"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Corpus, token streams and two random models with one tokenizer."""
    root = tmp_path_factory.mktemp("world")
    make_corpus(root, "txt", [" ".join([f"Document {i}.", *SENTENCES]) for i in range(12)])
    make_words(root / "words")
    pack.run(root / "corpus", root / "words", root / "tokens")
    words = load_tokenizer(root / "words")
    for seed in (0, 1):
        shape = LlamaShape(1, 16, 2, 2, 8, 32, vocab=len(words), tied=True)
        end = words.eos_token_id
        model = new_model(llama_config(shape, max_positions=128, bos_id=end, eos_id=end), seed=seed)
        publish_model(model, root / f"model-{seed}", root / "words", name=f"t{seed}")
    return root


@pytest.fixture
def encoder(world):
    words = load_tokenizer(world / "words")
    return Encoder(words, boundaries(words))


def test_prompts_begin_with_sentences_and_are_spread_over_the_documents(world, encoder):
    found = prompts(world / "corpus", encoder, count=3, prompt_tokens=10, new_tokens=6)
    assert len({prompt.document for prompt in found}) == 3
    for prompt in found:
        assert len(prompt.spoken) == 10
        assert len(prompt.follows) == 6
        text = encoder.tokenizer.decode([*prompt.spoken, *prompt.follows])
        assert text.startswith(("Sentence number", "Document"))
        assert any(text[:20] in sentence for sentence in SENTENCES) or text.startswith("Document")


def test_documents_shorter_than_a_prompt_give_half_of_themselves(world, encoder):
    found = prompts(world / "corpus", encoder, count=2, prompt_tokens=100_000, new_tokens=5)
    whole = {" ".join([f"Document {i}.", *SENTENCES]) for i in range(12)}
    for prompt in found:
        text = encoder.tokenizer.decode(prompt.spoken)
        [document] = [one for one in whole if one.startswith(text)]
        assert len(prompt.spoken) == len(encoder.documents([document])[0]) // 2 or (
            len(encoder.documents([document])[0]) // 2 - len(prompt.spoken) == 1
        )
        assert len(prompt.follows) == 5
    assert len(found) == 2


def test_documents_without_two_tokens_are_refused_by_the_key(tmp_path):
    make_corpus(tmp_path, "txt", ["a"] * 12)
    words = load_tokenizer(make_words(tmp_path / "words"))
    encoder = Encoder(words, boundaries(words))
    with pytest.raises(CapgapError, match=r"sample\.prompts: .* fewer than two tokens each"):
        prompts(tmp_path / "corpus", encoder, count=2, prompt_tokens=4, new_tokens=5)


def run(world, models=("model-0", "model-1"), **settings):
    folders = [world / name for name in models]
    settings = SampleStage(**{"prompts": 2, "prompt_tokens": 8, "new_tokens": 12} | settings)
    return sample.run(settings, folders, world / "corpus", world / "tokens")


def test_a_repetition_gives_the_same_bytes_and_another_seed_others(world):
    first = run(world)
    assert run(world).to_json() == first.to_json()
    other = run(world, seed=1)
    assert [m.texts for m in other.models] != [m.texts for m in first.models]
    assert other.prompts == first.prompts  # which are a function of the text alone


def test_models_share_prompts_and_random_numbers(world):
    twice = run(world, models=("model-0", "model-0"))
    assert twice.models[0].texts == twice.models[1].texts
    both = run(world)
    assert both.models[0].texts == twice.models[0].texts  # whoever else is sampled
    assert both.models[0].texts != both.models[1].texts
    assert [m.lineage.name for m in both.models] == ["t0", "t1"]


def test_a_model_whose_layers_lie_on_disk_writes_the_same(world, tmp_path):
    written = []
    for stream in (False, True):
        model = load_frozen(world / "model-0", "float32", stream=stream, scratch=tmp_path)
        written.append(
            continuations(
                model,
                [np.arange(5), np.arange(9)],
                new_tokens=6,
                temperature=1.0,
                draws=[np.random.Generator(np.random.Philox(key=[0, i])) for i in range(2)],
                vocab=300,
                end_id=-1,
            )
        )
    assert written[0] == written[1]
    assert [len(ids) for ids in written[0]] == [6, 6]


def test_a_model_writes_until_its_positions_end(world):
    first = run(world, new_tokens=130)
    assert first.models == run(world, new_tokens=120).models  # 8 + 120 are all that there are
    shorter = run(world, new_tokens=119)
    assert [m.texts for m in shorter.models] != [m.texts for m in first.models]
    with pytest.raises(CapgapError, match=r"sample\.prompt_tokens: 129 is longer than the 128"):
        run(world, prompt_tokens=128)


def test_conversations_are_continued_by_the_template(tmp_path):
    talks = [
        json.dumps(
            {
                "messages": [
                    {"role": "user", "content": f"Which number is {i}?"},
                    {"role": "assistant", "content": f"Sentence number {i}."},
                    {"role": "user", "content": "And now?"},
                ]
            }
        )
        for i in range(40)
    ]
    make_corpus(tmp_path, "jsonl", ["\n".join(talks[i::4]) for i in range(4)], "messages")
    words = load_tokenizer(make_words(tmp_path / "words", CHATML))
    found = prompts(
        tmp_path / "corpus",
        Encoder(words, boundaries(words)),
        count=2,
        prompt_tokens=3,
        new_tokens=50,
    )
    assert len(found) == 2
    for prompt in found:
        number = words.decode(prompt.follows).split()[-1].split(".")[0]
        assert words.decode(prompt.ids) == (
            f"<|im_start|>user\nWhich number is {number}?<|im_end|>\n<|im_start|>assistant\n"
        )
        assert words.decode(prompt.follows) == f"Sentence number {number}.<|im_end|>"
