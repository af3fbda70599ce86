"""Splits hold their shares, by whole documents if they fit and by paragraphs if not."""

import numpy as np
import pytest

from capgap.config import FilesCorpus
from capgap.data.splits import assign, place
from capgap.data.text_store import split_texts, text_batches
from capgap.errors import CapgapError
from capgap.stages import corpus

SHARES = [0.1, 0.05]


def no_cut(*_):
    return None


def splits_of(names, sizes, shares=SHARES, cut=no_cut):
    places = np.array([place(name) for name in names], np.uint64)
    return assign(places, np.array(sizes), shares, cut)


def test_whole_documents_reach_the_share_and_are_stable():
    names = [f"d{i}" for i in range(200)]
    splits = splits_of(names, [100] * 200).splits
    assert np.bincount(splits).tolist() == [170, 20, 10]
    more = splits_of([*names, "new"], [100] * 201).splits
    assert (splits != more[:200]).sum() <= 4
    assert (splits_of(names[::-1], [100] * 200).splits[::-1] == splits).all()


def test_every_split_gets_a_document_even_of_three():
    assert sorted(splits_of("abc", [5, 5, 5], [0.01, 0.01]).splits) == [0, 1, 2]


def test_a_document_that_exceeds_a_share_by_half_is_cut_or_left_to_training():
    sizes = [10] * 20 + [10_000]
    names = [f"d{i}" for i in range(21)]
    whole = splits_of(names, sizes)
    assert whole.splits[20] == 0
    cut = splits_of(names, sizes, cut=lambda _, start, least, wanted, most: start + wanted)
    assert cut.splits[20] == 0
    [pieces] = cut.pieces.values()
    held = {s: sum(b - a for a, b, split in pieces if split == s) for s in (0, 1, 2)}
    held = {s: n + 10 * int((cut.splits[:20] == s).sum()) for s, n in held.items()}
    assert sum(held.values()) == sum(sizes)
    assert held[1] == pytest.approx(0.1 * sum(sizes), rel=0.1)
    assert held[2] == pytest.approx(0.05 * sum(sizes), rel=0.1)
    assert [a for a, _, _ in pieces[1:]] == [b for _, b, _ in pieces[:-1]]


def test_a_single_document_fills_all_splits():
    found = splits_of(["a"], [1000], cut=lambda _, start, least, wanted, most: start + wanted)
    assert found.pieces == {0: [(0, 100, 1), (100, 150, 2), (150, 1000, 0)]}


def write(folder, texts):
    folder.mkdir(exist_ok=True)
    for name, text in texts.items():
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")
    return FilesCorpus(source="files", pattern=f"{folder}/*.txt")


def test_fourteen_short_texts_and_a_long_one(tmp_path, capsys):
    short = {f"s{i:02d}": f"Speech {i}.\n" for i in range(14)}
    long = "\n\n".join(f"Paragraph {i}: " + f"words of it {i} " * 20 for i in range(1500))
    settings = write(tmp_path / "texts", {**short, "long": long})
    corpus.main(
        ["--source", "files", "--pattern", settings.pattern, "--out", str(tmp_path / "corpus")]
    )
    said = capsys.readouterr().out
    assert "1 document(s) longer than the share of a split were cut at the border" in said
    assert "warning" not in said
    sizes = {
        s: sum(map(len, split_texts(tmp_path / "corpus", s)))
        for s in ("train", "validation", "test")
    }
    total = sum(map(len, short.values())) + len(long)
    assert sum(sizes.values()) == total
    for split in ("validation", "test"):
        assert sizes[split] / total == pytest.approx(0.03, rel=0.15)
    pieces = {
        name: text
        for split in sizes
        for names, texts in text_batches(tmp_path / "corpus", split)
        for name, text in zip(names, texts, strict=True)
        if name.startswith("long")
    }
    assert "".join(text for _, text in sorted(pieces.items())) == long
    assert all(text.endswith("\n\n") for _, text in sorted(pieces.items())[:-1])


def test_a_missed_share_is_a_warning(tmp_path):
    texts = {f"s{i}": f"Short {i}." for i in range(14)} | {"long": "no border " * 5000}
    record = corpus.run(write(tmp_path / "texts", texts), tmp_path / "corpus")
    assert record.documents_cut == 0
    assert record.bytes["train"] >= 50_000
    [first, second] = corpus.notes(record)
    assert first.startswith("warning: validation holds 0.2")
    assert "instead of 3.00%" in first
    assert second.startswith("warning: test holds")


def test_too_few_documents_are_refused(tmp_path):
    settings = write(tmp_path / "texts", {"a": "one line", "b": "another"})
    with pytest.raises(CapgapError, match=r"only 2 document\(s\) with text in .* would be empty"):
        corpus.run(settings, tmp_path / "corpus")
    with pytest.raises(CapgapError, match=r"corpus\.pattern: .*no matches no file; files end in"):
        corpus.run(FilesCorpus(source="files", pattern=f"{tmp_path}/*.no"), tmp_path / "corpus")
    assert not (tmp_path / "corpus").exists()
