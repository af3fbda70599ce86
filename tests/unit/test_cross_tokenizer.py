"""A teacher with another tokenizer: the alignment of two token streams, classes of entries, continuations."""

import numpy as np
import pytest
from tokenizer_pairs import aligned, byte_level, stream, texts, tokenizers_of
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from capgap.data.encoding import Encoder
from capgap.engine.aligned_text import AlignedText, ByteStream
from capgap.engine.continuations import NO_NODE, ROOT, continuations
from capgap.engine.entry_bytes import entry_bytes, written_by
from capgap.engine.entry_classes import NO_CLASS, entry_classes
from capgap.errors import CapgapError


@pytest.mark.parametrize("seed", range(3))
def test_tokens_one_after_another_are_the_bytes_of_the_text(seed):
    documents = texts(seed + 10)
    for tokenizer in tokenizers_of(seed):
        entries = entry_bytes(tokenizer, "folder")
        for document, ids in zip(documents, Encoder(tokenizer).encode(documents), strict=True):
            spelled = b"".join(entries[i] for i in ids)
            assert spelled in (document.encode(), b" " + document.encode())


@pytest.mark.parametrize("seed", range(3))
def test_windows_meet_exactly_where_both_have_a_boundary(seed):
    made, documents = tokenizers_of(seed), texts(seed + 20)
    for first in made:
        for second in made:
            text = aligned(first, second, documents)
            mine, theirs = (s.places(0, len(s.tokens)) for s in (text.student, text.teacher))
            both = len(documents) * (first is second is made[3])  # a space before every text
            bytes_of_all = sum(len(d.encode()) + 1 for d in documents)
            assert mine[-1] == theirs[-1] == bytes_of_all + both
            index = {p: i for i, p in enumerate(theirs[:-1]) if theirs[i + 1] > p}
            longest = text.windows(np.array([0, 37, 111]), 16)
            for number, start in enumerate([0, 37, 111]):
                begins, count, rows, _ = text.window(start, 16)
                assert begins == 0 or theirs[begins] <= mine[start] < theirs[begins + 2]
                ids = text.teacher.tokens[begins : begins + count]
                assert longest.inputs[number, :count].tolist() == ids.tolist()
                for i, row in zip(range(start + 1, start + 17), rows, strict=True):
                    met = index.get(mine[i], 0) > begins and mine[i + 1] > mine[i]
                    assert (row >= 0) == met, (i, row)
                    if met:  # the token before which the teacher's output is taken
                        assert begins + row + 1 == index[mine[i]]
                        assert row < count


def test_places_do_not_depend_on_where_one_looks():
    text = aligned(*tokenizers_of(4)[::3], texts(5, count=40))
    for side in (text.student, text.teacher):
        whole = side.places(0, len(side.tokens))
        for start, stop in [(0, 1), (1023, 1026), (1500, 3000), (2048, 2049)]:
            assert side.places(start, stop).tolist() == whole[start : stop + 1].tolist()
        for place in range(0, int(whole[-1]), 97):
            at = side.at(place)
            assert whole[at] <= place < whole[at + 1]


def test_texts_that_differ_are_refused():
    first, second = tokenizers_of(6)[:2]
    documents = texts(7)
    with pytest.raises(CapgapError, match="do not hold the same text .*in document 3"):
        changed = [*documents[:2], documents[2] + "more", *documents[3:]]
        AlignedText(stream(first, documents), stream(second, changed))
    with pytest.raises(CapgapError, match="11 documents and 12"):
        AlignedText(stream(first, documents), stream(second, documents[:-1]))


def test_a_tokenizer_that_does_not_spell_the_text_is_refused():
    model = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=model, unk_token="[UNK]")
    with pytest.raises(CapgapError, match="words: its tokenizer .WordPiece. is neither"):
        entry_bytes(tokenizer, "words")


def test_a_window_longer_than_the_teachers_positions_is_refused():
    small, large = tokenizers_of(8)[:2]
    text = aligned(large, small, texts(9))
    starts = range(len(text.student.tokens) - 17)
    longest = max(text.window(start, 16).count for start in starts)
    text.positions = longest
    text.check_windows(16)
    text.positions = longest - 1
    refused = pytest.raises(
        CapgapError, match=f"distill.sequence_length: 16 tokens .* {longest - 1} positions"
    )
    with refused:
        text.check_windows(16)
    with refused:
        for start in starts:
            text.window(start, 16)


def classes_of(first, second, documents):
    text = aligned(first, second, documents)
    return entry_classes(text, entry_bytes(first, "a"), entry_bytes(second, "b")), text


def test_of_one_tokenizer_every_entry_is_a_class():
    tokenizer = tokenizers_of(1)[0]
    found, _ = classes_of(tokenizer, tokenizer, texts(2))
    assert found.student.tolist() == found.teacher.tolist()
    assert sorted(found.student) == list(range(len(found.student)))
    assert (found.taught_share, found.split_share) == (pytest.approx(1, abs=1e-3), 0)


def test_of_nested_vocabularies_the_classes_are_the_entries_of_the_smaller_one():
    small, large = tokenizers_of(3)[:2]
    documents = texts(3)
    spelled, own = entry_bytes(large, ""), entry_bytes(small, "")
    for first, second in ((small, large), (large, small)):
        found, _ = classes_of(first, second, documents)
        assert found.split_share == 0
        sides = {len(found.student): found.student, len(found.teacher): found.teacher}
        of_small, of_large = sides[len(own)], sides[len(spelled)]
        used = of_small[of_small != NO_CLASS]
        assert len(set(used)) == len(used)  # no two entries share a class
        for at in np.flatnonzero(of_large != NO_CLASS):
            if spelled[at] is None:
                continue
            try:
                begins = small(spelled[at].decode(), add_special_tokens=False)["input_ids"][0]
            except UnicodeDecodeError:
                continue
            assert of_small[begins] == of_large[at]


def test_pairs_of_different_tokenizers_are_rarely_split():
    made = tokenizers_of(5)
    for first, second in [(0, 2), (1, 3), (3, 0)]:
        found, _ = classes_of(made[first], made[second], texts(5, count=60))
        assert 0 < found.taught_share <= 1
        assert found.split_share < 0.2
        for side in (found.student, found.teacher):
            assert set(range(found.count)) <= set(side)


# --- inside the teacher's entries -------------------------------------------------------------------


def spelled_inside(first, second):
    """The teacher's entries in the student's tokens."""
    return written_by(first, "", entry_bytes(second, ""))


@pytest.mark.parametrize("seed", range(3))
def test_an_entry_is_written_with_tokens_that_spell_it(seed):
    made = tokenizers_of(seed)
    for first in made:
        own = entry_bytes(first, "")
        for second in made:
            theirs = entry_bytes(second, "")
            for entry, path in zip(theirs, spelled_inside(first, second), strict=True):
                assert path is None or b"".join(own[i] for i in path) == entry
    small, large = made[:2]  # nested: all but special tokens are written, and as the text is
    paths = spelled_inside(small, large)
    assert [entry is None for entry in entry_bytes(large, "")] == [path is None for path in paths]
    for entry, path in zip(entry_bytes(large, ""), paths, strict=True):
        try:
            text = (entry or b"").decode()
        except UnicodeDecodeError:
            continue
        assert small(text, add_special_tokens=False)["input_ids"] == (path or [])


def test_the_tree_has_each_path_once():
    paths = [(2, 1), None, (2,), (2, 1, 1), (0, 5), (2, 3), ()]
    tree = continuations(paths, 6)
    nodes = {}
    for path in paths:
        node = np.array([ROOT])
        for i, token in enumerate(path or ()):
            node = tree.step(node, np.array([token]))
            assert nodes.setdefault(path[: i + 1], node[0]) == node[0] > ROOT
    assert len(nodes) == len(set(nodes.values())) == len(tree.token) - 1
    for path, node in nodes.items():
        under = tree.entries[tree.low[node] : tree.high[node]]
        assert {paths[i][: len(path)] for i in under} == {path}
        assert tree.token[node] == path[-1]
        longer = any(len(p or ()) > len(path) and p[: len(path)] == path for p in paths)
        assert (tree.first[node + 1] > tree.first[node]) == longer
    assert tree.step(np.array([ROOT, nodes[2,]]), np.array([1, 2])).tolist() == [NO_NODE] * 2
    assert continuations([None], 3).step(np.array([ROOT]), np.array([2])).tolist() == [NO_NODE]


@pytest.mark.parametrize("seed", range(3))
def test_tokens_inside_an_entry_are_found_with_what_came_before(seed):
    """Of all pairs; nested ones are taught everywhere."""
    made, documents = tokenizers_of(seed), texts(seed + 30)
    for first in made:
        for second in made:
            text = aligned(first, second, documents)
            paths = spelled_inside(first, second)
            text.inside = continuations(paths, 500)
            mine, theirs = (s.places(0, len(s.tokens)) for s in (text.student, text.teacher))
            length = len(text.student.tokens) - 2
            begins, _, rows, nodes = text.window(0, length)
            assert ((nodes == NO_NODE) == (rows < 0)).all()
            index = np.searchsorted(theirs[:-1], mine[1 : length + 1], "right") - 1
            assert ((nodes == ROOT) <= (theirs[index] == mine[1 : length + 1])).all()
            for at in np.flatnonzero(nodes > ROOT):
                entry = index[at]  # of the teacher, in which the student's token at + 1 begins
                assert begins + rows[at] + 1 == entry
                assert theirs[entry] < mine[at + 1] < theirs[entry + 1]
                start = int(np.searchsorted(mine, theirs[entry]))
                so_far = tuple(text.student.tokens[start : at + 1])
                node = np.array([ROOT])
                for token in so_far:
                    node = text.inside.step(node, np.array([token]))
                assert node[0] == nodes[at]
                # the text goes on with the token that the entry does
                own = paths[text.teacher.tokens[entry]]
                assert own[: len(so_far) + 1] == [*so_far, text.student.tokens[at + 1]]
            if (first, second) == (made[0], made[1]):
                assert 0.1 < text.taught_inside() == pytest.approx((nodes > ROOT).mean(), abs=1e-12)
                assert (rows[3:] >= 0).mean() > 0.999


def test_a_token_across_the_end_of_an_entry_is_not_taught_inside():
    """The text is 'union' + 'ized' to the teacher and 'un' + 'ionized' to the student."""
    lengths = np.array([1, 2, 3, 7, 5, 4])
    end, un, ion, ionized = 0, 1, 2, 3
    student = ByteStream(np.array([end, un, ionized, un, ion, end, end]), lengths.copy(), end)
    teacher = ByteStream(np.array([end, 4, 5, 4, end, end]), lengths.copy(), end)
    text = AlignedText(student, teacher)
    text.inside = continuations([(end,), (un,), (ion,), (ionized,), (un, ion), None], 4)
    assert text.window(0, 5).nodes.tolist() == [ROOT, NO_NODE, ROOT, 2, ROOT]


def test_bytes_are_written_with_added_tokens_and_byte_fallback():
    spaces = byte_level(300, texts(1))
    spaces.add_tokens(["    "])
    own = len(spaces) - 1
    (written,) = written_by(spaces, "", [b"x     y"])
    assert own in written
    assert written == spaces("x     y", add_special_tokens=False)["input_ids"]
    vocab = {"<unk>": 0, "<0xE6>": 1, "<0x97>": 2, "<0xA5>": 3, "\u2581": 4, "a": 5}
    model = Tokenizer(models.BPE(vocab, [], byte_fallback=True, unk_token="<unk>"))
    model.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback()])
    pieces = PreTrainedTokenizerFast(tokenizer_object=model, unk_token="<unk>")
    parts = [b"a \xe6", "日".encode(), b"\x97\xa5a", "é".encode(), None]
    assert written_by(pieces, "", parts) == [[5, 4, 1], [1, 2, 3], [2, 3, 5], None, None]
