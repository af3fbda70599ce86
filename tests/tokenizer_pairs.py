"""Tokenizers of several kinds, random texts, and one text in the tokens of two of them."""

import random

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from capgap.data.boundaries import boundaries
from capgap.data.encoding import Encoder
from capgap.engine.aligned_text import AlignedText, ByteStream
from capgap.engine.entry_bytes import entry_bytes

END = "<|end|>"
ALPHABETS = ["ab ", "the unionof\n  ", "äöü é ß ", "日本語の文", "🙂👩‍🚀 x", "0123456789 .,"]


def texts(seed, count=12, characters=300):
    """Random documents of several scripts."""
    draw = random.Random(seed)
    parts = [
        "".join(draw.choices(draw.choice(ALPHABETS), k=draw.randint(1, 12)))
        for _ in range(count * characters // 6)
    ]
    each = len(parts) // count
    return ["".join(parts[i * each : (i + 1) * each]) for i in range(count)]


def byte_level(vocab, trained_on, digits=False):
    model = Tokenizer(models.BPE())
    steps = [pre_tokenizers.Digits(individual_digits=True)] if digits else []
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False))
    model.pre_tokenizer, model.decoder = pre_tokenizers.Sequence(steps), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model.train_from_iterator(trained_on, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=model, eos_token=END)


def sentencepiece(vocab, trained_on):
    """As Llama 2's: a space before every text, spaces as U+2581, bytes for unknown characters."""
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    model = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    model.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    model.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=["<unk>", END, *fallback],
        show_progress=False,
        limit_alphabet=40,
    )
    model.train_from_iterator(trained_on, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=model, eos_token=END, unk_token="<unk>")


def tokenizers_of(seed):
    some = texts(seed)
    return [
        byte_level(300, some),
        byte_level(420, some),
        byte_level(340, texts(seed + 1), digits=True),
        sentencepiece(400, some),
    ]


def stream(tokenizer, documents):
    encoder = Encoder(tokenizer, boundaries(tokenizer))
    ids = np.concatenate(encoder.documents(documents))
    lengths = np.array([len(entry or b"") for entry in entry_bytes(tokenizer, "folder")])
    return ByteStream(ids, lengths, tokenizer.eos_token_id)


def aligned(first, second, documents):
    return AlignedText(stream(first, documents), stream(second, documents))
