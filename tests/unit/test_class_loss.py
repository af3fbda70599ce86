"""The loss of a teacher with another tokenizer: the formula, identities, and what it teaches in the mean."""

import numpy as np
import pytest
import torch

from capgap.config import Distill
from capgap.engine.class_loss import Comparison, Inside, Pools, class_loss
from capgap.engine.continuations import NO_NODE, ROOT, continuations
from capgap.engine.entry_classes import NO_CLASS, EntryClasses
from capgap.engine.losses import IGNORED, ModelOutput, mixture_loss

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
    assert grads[0].abs().max() > 0.01  # neither part alone gives the teacher's prediction


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
