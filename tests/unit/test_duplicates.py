"""Exact and near duplicates across splits."""

import random

import numpy as np
import pytest

from capgap.data.duplicates import BINS, EMPTY, _similarity, find_duplicates, sketch
from capgap.data.text_store import TextWriter

WORDS = [f"word{i}" for i in range(3000)]


def text(seed, length=400):
    return " ".join(random.Random(seed).choices(WORDS, k=length))


def changed(original, positions):
    words = original.split()
    for position in positions:
        words[position] = "other"
    return " ".join(words)


def store(folder, **splits):
    folder.mkdir(exist_ok=True)
    for split in ("train", "validation", "test"):
        with TextWriter(folder / f"{split}.parquet") as file:
            for name, body in splits[split].items():
                file.append(name, body, len(body))
    return folder


def jaccard(first, second):
    runs = [
        {tuple(w[i : i + 5]) for i in range(len(w) - 4)} for w in (first.split(), second.split())
    ]
    return len(runs[0] & runs[1]) / len(runs[0] | runs[1])


def test_the_estimate_is_the_jaccard_similarity_of_runs_of_five_words():
    errors = []
    for seed in range(30):
        one = text(seed)
        other = changed(one, range(0, 400, 40))
        bins = sketch([one, other]).bins_NK
        errors.append(_similarity(*bins) - jaccard(one, other))
    assert abs(np.mean(errors)) < 0.03
    assert np.std(errors) < 0.09


def test_capitals_spaces_and_punctuation_do_not_matter_for_near_duplicates():
    one = text(1)
    other = one.upper().replace(" ", ",\n ")
    first, second = sketch([one, other]).bins_NK
    assert (first == second).all()
    assert (sketch(["a b c", "ä"]).bins_NK == EMPTY).all()  # no run of five words


def test_a_sketch_does_not_depend_on_its_neighbours():
    texts = [text(seed, 50) for seed in range(8)]
    together = sketch(texts)
    for i, alone in enumerate(map(sketch, zip(texts, strict=True))):
        for ours, theirs in zip(together, alone, strict=True):
            assert (np.asarray(ours[i]) == theirs[0]).all()
    assert together.bins_NK.shape == (8, BINS)


@pytest.mark.parametrize("processes", [1, 2])
def test_twins_across_splits_are_counted_with_an_example(tmp_path, processes):
    train = {f"t{i}": text(i) for i in range(50)}
    corpus = store(
        tmp_path / "corpus",
        train=train,
        validation={"v0": train["t7"], "v1": changed(train["t9"], [0, 399]), "v2": text(1000)},
        test={"e0": text(1001), "e1": text(1000), "e2": changed(train["t3"], range(0, 400, 3))},
    )
    found = find_duplicates(corpus, processes)
    assert (found["validation"].exact, found["validation"].near) == (1, 1)
    assert found["validation"].examples == [("v0", "t7"), ("v1", "t9")]
    assert (found["test"].exact, found["test"].near) == (1, 0)
    assert found["test"].examples == [("e1", "v2")]


def test_many_copies_of_one_text_are_all_found(tmp_path):
    body = text(0)
    corpus = store(
        tmp_path / "corpus",
        train={f"t{i}": changed(body, [i]) for i in range(300)},
        validation={f"v{i}": changed(body, [300 + i]) for i in range(60)},
        test={"e": text(5)},
    )
    found = find_duplicates(corpus)
    assert (found["validation"].exact, found["validation"].near) == (0, 60)
