import os
import shutil
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_CACHE"] = tempfile.mkdtemp(prefix="capgap-hub-")  # shared with subprocesses
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
from hub_configs import fill_cache
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from capgap.engine.models import tokenizer_digest
from capgap.records.artifacts import publish_folder
from capgap.records.paths import SPLITS, TOKENS_RECORD
from capgap.records.run_records import TokenStreams

fill_cache(os.environ["HF_HUB_CACHE"])


def pytest_unconfigure():
    shutil.rmtree(os.environ["HF_HUB_CACHE"], ignore_errors=True)


def write_tokenizer(folder, vocab=64):
    """The tokenizer of `token_streams`: a word an entry."""
    words = WordLevel({f"w{number}": number for number in range(vocab)}, unk_token="w0")
    Tokenizer(words).save(str(folder / "tokenizer.json"))


@pytest.fixture
def tokenizer_file():
    """Function that puts the tokenizer of `token_streams` into a folder."""
    return write_tokenizer


@pytest.fixture
def token_streams(tmp_path):
    """Function that writes token streams of a small repeating language and returns their folder."""

    def write(vocab=64, tokens=6000, seed=0):
        random = np.random.default_rng(seed)
        folder_out = tmp_path / "tokens"
        lengths = {"train": tokens, "validation": 700, "test": 701}
        made = tmp_path / "words"
        made.mkdir(exist_ok=True)
        write_tokenizer(made, vocab)
        with publish_folder(folder_out) as folder:
            for split in SPLITS:
                steps = random.integers(1, 4, lengths[split])
                np.save(folder / f"{split}.npy", (np.cumsum(steps) % vocab).astype(np.uint16))
            meta = TokenStreams(
                vocab_size=vocab,
                tokenizer_sha256=tokenizer_digest(made),
                documents=dict.fromkeys(SPLITS, 1),
                tokens=lengths,
                bytes={split: 3 * n for split, n in lengths.items()},
            )
            (folder / TOKENS_RECORD).write_text(meta.to_json())
        return folder_out

    return write


@pytest.fixture
def tiny_model():
    """Function that makes a small random Llama."""
    from capgap.config.shapes import LlamaShape
    from capgap.engine.models import llama_config, new_model

    def make(seed=0, vocab=64, hidden=24, heads=3, layers=2, tied=True):
        shape = LlamaShape(layers, hidden, heads, heads, hidden // heads, 40, vocab, tied)
        config = llama_config(shape, max_positions=128, bos_id=0, eos_id=0)
        return new_model(config, seed)

    return make


@pytest.fixture
def runs_table(tmp_path):
    """Write a frame (or text) as runs.csv and return its path."""

    def write(runs):
        path = tmp_path / "runs.csv"
        text = runs if isinstance(runs, str) else runs.to_csv(index=False)
        path.write_text(text, encoding="utf-8")
        return path

    return write
