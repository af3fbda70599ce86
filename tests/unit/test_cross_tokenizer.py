"""A teacher with another tokenizer: the alignment of two token streams, the classes of entries, the loss."""

import random

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from capgap.config import Distill
from capgap.data.boundaries import boundaries
from capgap.data.encoding import Encoder
from capgap.engine.aligned_text import AlignedText, ByteStream
from capgap.engine.class_loss import Comparison, Inside, Pools, class_loss
from capgap.engine.continuations import NO_NODE, ROOT, continuations
from capgap.engine.entry_bytes import entry_bytes, written_by
from capgap.engine.entry_classes import NO_CLASS, EntryClasses, entry_classes
from capgap.engine.losses import IGNORED, ModelOutput, mixture_loss
from capgap.errors import CapgapError

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


# --- the loss --------------------------------------------------------------------------------------

OBJECTIVES = [
    {"objective": "soft_ce"},
    {"objective": "forward_kl", "temperature": 2.0},
    {"objective": "reverse_kl", "teacher_weight": 0.9},
    {"objective": "jensen_shannon", "beta": 0.3, "temperature": 0.7},
]
STUDENT = np.array([0, 0, 1, 2, NO_CLASS, 3, 3, 3, 4])
TEACHER = np.array([4, 1, 1, 0, 3, 2, NO_CLASS])


def outputs(seed=0, tokens=9, dtype=torch.float64, cap=None):
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=draw, dtype=dtype)

    student = ModelOutput(2 * normal(tokens, 5), normal(len(STUDENT), 5), cap)
    teacher = ModelOutput(2 * normal(tokens + 3, 4), normal(len(TEACHER), 4), None)
    labels = torch.randint(len(STUDENT), (tokens,), generator=draw)
    rows = torch.tensor([2, -1, 0, 5, 3, -1, 11, 4, 8])[:tokens]
    return student, labels, teacher, rows


# The teacher's entries in the student's tokens; None: not at all
PATHS = [(0, 1), (0, 1, 2), (0, 3), None, (5,), (0, 1, 4), (0,)]


def comparison(student=STUDENT, teacher=TEACHER, count=5):
    made = EntryClasses(student, teacher, count, 1.0, 0.0)
    paths = continuations(PATHS[: len(teacher)], len(student))
    return Comparison(Pools.of(made, len(student), len(teacher)), Inside(paths))


def at_boundaries(rows):
    """Nodes of tokens that all begin at a common boundary or are not taught."""
    return torch.where(rows < 0, NO_NODE, ROOT)


def events(node):
    """Entries of both that make each event: classes, or continuations of some tokens."""
    if node == ():
        return [tuple(np.flatnonzero(k == side) for side in (STUDENT, TEACHER)) for k in range(5)]
    left = [(i, path) for i, path in enumerate(PATHS) if path and path[: len(node)] == node]
    follows = sorted({path[len(node)] for _, path in left if path != node})
    return [
        ([token], [i for i, path in left if path[: len(node) + 1] == (*node, token)])
        for token in follows
    ]


def by_hand(student, labels, teacher, rows, settings, nodes=None):
    """The formula of class_loss, token by token. nodes: tokens of the entry so far."""
    w, tau = settings.teacher_weight, settings.temperature
    logits = student.hidden @ student.head.T
    if student.cap:
        logits = student.cap * torch.tanh(logits / student.cap)
    theirs, total = teacher.hidden @ teacher.head.T, 0
    for i, row in enumerate(rows.tolist()):
        if labels[i] == IGNORED:
            continue
        ce = torch.logsumexp(logits[i], 0) - logits[i][labels[i]]
        node = nodes[i] if nodes else ()
        if row < 0 or (node == () and STUDENT[labels[i]] == NO_CLASS):
            total = total + ce
            continue
        sides = zip(*events(node), strict=True)
        z, t = (
            torch.stack([values[torch.as_tensor(each)].exp().sum().log() for each in entries])
            for values, entries in zip((logits[i], theirs[row]), sides, strict=True)
        )
        q, p = torch.softmax(z / tau, 0), torch.softmax(t / tau, 0)
        match settings.objective:
            case "soft_ce":
                d = -(p * q.log()).sum()
            case "forward_kl":
                d = (p * (p / q).log()).sum()
            case "reverse_kl":
                d = (q * (q / p).log()).sum()
            case "jensen_shannon":
                m = settings.beta * p + (1 - settings.beta) * q
                d = settings.beta * (p * (p / m).log()).sum()
                d = d + (1 - settings.beta) * (q * (q / m).log()).sum()
        rest = torch.logsumexp(logits[i], 0) - torch.logsumexp(z, 0)  # that it is one of these
        if node == ():  # and which entry of its class
            rest = rest + z[STUDENT[labels[i]]] - logits[i][labels[i]]
        total = total + (1 - w) * ce + w * (tau**2 * d + rest)
    return total


@pytest.mark.parametrize("cap", [None, 3.0])
@pytest.mark.parametrize("given", OBJECTIVES)
def test_the_loss_and_its_gradients_are_those_of_the_formula(given, cap):
    student, labels, teacher, rows = outputs(cap=cap)
    labels[3] = IGNORED
    settings = Distill(loss_chunk_tokens=4, **given)
    leaves = [part.clone().requires_grad_() for part in student[:2]]
    # two tokens may follow 0, and two 0 1
    inside = {2: (0, 1), 4: (0,), 7: (0, 1), 8: (0,)}
    nodes = [inside.get(i, ()) for i in range(len(rows))]
    number = {(): ROOT, (0,): 1, (0, 1): 3}
    nodes_N = torch.tensor([number[node] for node in nodes])
    expected = by_hand(ModelOutput(*leaves, cap), labels, teacher, rows, settings, nodes)
    wanted = torch.autograd.grad(0.25 * expected, leaves)
    loss, parts = class_loss(
        ModelOutput(*leaves, cap),
        labels,
        teacher,
        rows,
        nodes_N,
        comparison(),
        settings,
        scale=0.25,
    )
    torch.testing.assert_close(loss, (0.25 * expected).float(), rtol=1e-5, atol=1e-6)
    got = torch.autograd.grad(loss, leaves)
    for mine, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-9)
    whole = (student.hidden @ student.head.T)[labels != IGNORED]
    if not cap:
        ce = torch.nn.functional.cross_entropy(whole, labels[labels != IGNORED], reduction="sum")
        assert parts.data_ce.item() == pytest.approx(ce.item(), rel=1e-5)


@pytest.mark.parametrize("given", OBJECTIVES)
def test_of_one_tokenizer_it_is_the_ordinary_loss(given):
    student, labels, _, _ = outputs(dtype=torch.float32)
    teacher = ModelOutput(*outputs(seed=1, dtype=torch.float32)[0][:2])
    every = np.arange(len(STUDENT))
    same = comparison(every, every, len(every))
    settings, found = Distill(**given), []
    for by_classes in (True, False):
        leaves = [part.clone().requires_grad_() for part in student[:2]]
        mine = ModelOutput(*leaves)
        if by_classes:
            rows = torch.arange(len(labels))
            nodes = at_boundaries(rows)
            loss, parts = class_loss(mine, labels, teacher, rows, nodes, same, settings)
        else:
            loss, parts = mixture_loss(
                *mine[:2],
                labels,
                teacher,
                objective=settings.objective,
                weight=settings.teacher_weight,
                temperature=settings.temperature,
                beta=settings.beta,
            )
        found.append([loss, *parts, *torch.autograd.grad(loss, leaves)])
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)


def test_classes_never_exceed_the_divergence_of_entries():
    """Data processing: summing probabilities brings two distributions closer."""
    student, labels, _, _ = outputs(tokens=9)
    teacher = ModelOutput(*outputs(seed=2)[0][:2])
    rows = torch.arange(9)
    settings = Distill(objective="forward_kl", teacher_weight=1.0)
    coarse = comparison(STUDENT.clip(0), STUDENT.clip(0), 5)
    every = np.arange(9)
    fine = comparison(every, every, 9)
    nodes = at_boundaries(rows)
    less, more = (
        class_loss(student, labels, teacher, rows, nodes, made, settings)[1].teacher_term
        for made in (coarse, fine)
    )
    assert 0 < less < more


def test_tokens_without_a_common_boundary_learn_from_the_data_alone():
    student, labels, teacher, rows = outputs()
    rows = torch.full_like(rows, -1)
    nodes = at_boundaries(rows)
    loss, parts = class_loss(student, labels, teacher, rows, nodes, comparison(), Distill())
    assert parts.teacher_term == 0
    assert loss.item() == pytest.approx(parts.data_ce.item(), rel=1e-6)


def test_bounds_of_the_heads_leave_their_classes_out():
    made = Pools.of(EntryClasses(STUDENT, TEACHER, 5, 1.0, 0.0), 8, 5)  # without class 4 and 2
    assert made.student.class_V.tolist() == [0, 0, 1, 3, 3, 2, 2, 2]
    assert made.teacher.class_V.tolist() == [3, 1, 1, 0, 2]


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


@pytest.mark.parametrize("objective", ["soft_ce", "forward_kl"])
def test_a_student_inside_entries_learns_what_the_teacher_predicts(objective):
    """The gradient at the right student is zero in the mean over a text that follows the teacher.

    Entries are drawn one after another with fixed probabilities. The student has read 0, which may be all
    of an entry, so what follows is a mixture: it knows neither which entry it is in nor the boundaries.
    """
    vocab = 9
    paths = [*((token,) for token in range(vocab)), (0, 1), (0, 1, 2), (0, 3), (0, 1, 4)]
    teacher_W = torch.linspace(-1, 1, len(paths), dtype=torch.float64)
    p = torch.softmax(teacher_W, 0)
    of_entry = np.array([path[0] for path in paths])
    true_V = p[0] * torch.stack([p[of_entry == token].sum() for token in range(vocab)])
    for path, share in zip(paths[vocab:], p[vocab:], strict=True):
        true_V[path[1]] += share
    logits = true_V.log()[None].requires_grad_()

    every = np.arange(vocab)
    classes = EntryClasses(every, of_entry, vocab, 1.0, 0.0)
    made = Comparison(Pools.of(classes, vocab, len(paths)), Inside(continuations(paths, vocab)))
    settings = Distill(objective=objective, teacher_weight=1.0)
    teacher = ModelOutput(teacher_W[None], None)
    row, label = torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    grads = []
    for node, share in ((ROOT, p[0]), (1, p[vocab:].sum())):
        nodes = torch.tensor([node])
        loss, _ = class_loss(ModelOutput(logits, None), label, teacher, row, nodes, made, settings)
        grads.append(torch.autograd.grad(share * loss, logits)[0])
    torch.testing.assert_close(grads[0], -grads[1], rtol=0, atol=1e-7)
    assert grads[0].abs().max() > 0.01  # neither alone says what the teacher predicts


@pytest.mark.parametrize("weight", [0.5, 1.0])
def test_entries_of_one_class_are_told_apart_by_the_data(weight):
    """Half of the time at a boundary, where 0 and 1 are of one class, half inside an entry that goes on with 0."""
    logits = torch.tensor([[0.75, 0.25]], dtype=torch.float64).log().requires_grad_()
    together = EntryClasses(np.zeros(2, np.int64), np.zeros(3, np.int64), 1, 1.0, 0.0)
    paths = continuations([(0,), (1,), (0, 0)], 2)
    made = Comparison(Pools.of(together, 2, 3), Inside(paths))
    teacher = ModelOutput(torch.zeros(1, 3, dtype=torch.float64), None)
    row, total = torch.zeros(1, dtype=torch.int64), 0
    for share, node, label in ((0.25, ROOT, 0), (0.25, ROOT, 1), (0.5, 1, 0)):
        loss, _ = class_loss(
            ModelOutput(logits, None),
            torch.tensor([label]),
            teacher,
            row,
            torch.tensor([node]),
            made,
            Distill(teacher_weight=weight),
        )
        total = total + torch.autograd.grad(share * loss, logits)[0]
    assert total.abs().max() < 1e-7


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


@pytest.mark.parametrize("given", OBJECTIVES)
def test_nodes_of_different_sizes_do_not_disturb_each_other(given):
    """The loss of tokens together is the sum of those of each alone."""
    student, labels, teacher, rows = outputs()
    nodes = torch.tensor([ROOT, NO_NODE, 1, 3, 1, NO_NODE, 3, ROOT, 1])
    rows = torch.where(nodes == NO_NODE, NO_NODE, rows.abs())
    settings, made = Distill(**given), comparison()
    leaf = student.hidden.clone().requires_grad_()
    together, _ = class_loss(
        student._replace(hidden=leaf), labels, teacher, rows, nodes, made, settings
    )
    (grad,) = torch.autograd.grad(together, leaf)
    alone = 0
    for i in range(len(labels)):
        one = slice(i, i + 1)
        leaf = student.hidden[one].clone().requires_grad_()
        own = student._replace(hidden=leaf)
        loss, _ = class_loss(own, labels[one], teacher, rows[one], nodes[one], made, settings)
        torch.testing.assert_close(torch.autograd.grad(loss, leaf)[0], grad[one])
        alone += loss.item()
    assert together.item() == pytest.approx(alone, rel=1e-5)
