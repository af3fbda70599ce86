"""The fused loss against hand-computed values, identities and the dense formula by autograd."""

import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from capgap.data.token_streams import IGNORED
from capgap.engine import losses
from capgap.engine.losses import (
    ModelOutput,
    PartialTargets,
    data_ce_sum,
    data_loss,
    mixture_loss,
)

OBJECTIVES = [
    ("soft_ce", None),
    ("forward_kl", None),
    ("reverse_kl", None),
    ("jensen_shannon", 0.1),
    ("jensen_shannon", 0.5),
    ("jensen_shannon", 0.9),
]


class OnMeta(TorchDispatchMode):
    """Fails at an operation with a tensor that is not on the meta device."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        for value in tree_leaves((args, kwargs, result)):
            assert not isinstance(value, torch.Tensor) or value.is_meta, operation
        return result


class Largest(TorchDispatchMode):
    """Notes the elements of the largest storage that an operation returns."""

    elements = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, torch.Tensor):
                held = value.untyped_storage().nbytes() // value.element_size()
                self.elements = max(self.elements, held)
        return result


# Two chunks of two blocks each, and two parts of the head; the last block and part are smaller.
SEVERAL = {"tokens": 300, "vocab": 1124}


def dense(hidden, head, labels, teacher_logits, objective, beta, weight, temperature):
    """The mixture, summed over tokens, as its definition reads."""
    logits = hidden @ head.T
    data = torch.nn.functional.cross_entropy(logits, labels, reduction="sum", ignore_index=IGNORED)
    log_p = torch.log_softmax(teacher_logits / temperature, 1)
    log_q = torch.log_softmax(logits / temperature, 1)
    p, q = log_p.exp(), log_q.exp()
    if objective == "soft_ce":
        term = -p * log_q
    elif objective == "forward_kl":
        term = p * (log_p - log_q)
    elif objective == "reverse_kl":
        term = q * (log_q - log_p)
    else:
        log_m = (beta * p + (1 - beta) * q).log()
        term = beta * p * (log_p - log_m) + (1 - beta) * q * (log_q - log_m)
    return (1 - weight) * data + weight * temperature**2 * term[labels != IGNORED].sum()


def problem(seed=0, tokens=31, vocab=50, dtype=torch.float32):
    torch.manual_seed(seed)
    hidden = torch.randn(tokens, 12, dtype=dtype, requires_grad=True)
    head = torch.randn(vocab, 12, dtype=dtype, requires_grad=True)
    targets = ModelOutput(torch.randn(tokens, 20, dtype=dtype), torch.randn(vocab, 20, dtype=dtype))
    return hidden, head, torch.randint(0, vocab, (tokens,)), targets


def gradients(loss, *tensors):
    return torch.autograd.grad(loss, tensors)


def test_hand_computed_two_tokens_three_words():
    # logits of the student (log p up to a shift): token 0 -> p = (1/2, 1/4, 1/4), token 1 uniform
    hidden = torch.tensor([[math.log(2.0), 0.0], [0.0, 0.0]])
    head = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    # teacher: token 0 -> (1/4, 1/2, 1/4), token 1 uniform
    targets = ModelOutput(
        torch.tensor([[math.log(2.0)], [0.0]]), torch.tensor([[0.0], [1.0], [0.0]])
    )
    labels = torch.tensor([0, 2])
    data = math.log(2) + math.log(3)
    # token 1 is uniform for both, so only token 0 counts in a divergence
    p, q = (0.25, 0.5, 0.25), (0.5, 0.25, 0.25)
    m = (0.375, 0.375, 0.25)

    def kl(a, b):
        return sum(x * math.log(x / y) for x, y in zip(a, b, strict=True))

    expected = {
        "soft_ce": (0.25 * math.log(2) + 0.75 * math.log(4)) + math.log(3),
        "forward_kl": kl(p, q),
        "reverse_kl": kl(q, p),
        "jensen_shannon": 0.5 * kl(p, m) + 0.5 * kl(q, m),
    }
    for objective, teacher in expected.items():
        beta = 0.5 if objective == "jensen_shannon" else None
        loss, parts = mixture_loss(hidden, head, labels, targets, objective=objective, beta=beta)
        assert parts.data_ce.item() == pytest.approx(data, rel=1e-6)
        assert parts.teacher_term.item() == pytest.approx(teacher, rel=1e-6)
        assert loss.item() == pytest.approx(0.5 * data + 0.5 * teacher, rel=1e-6)


@pytest.mark.parametrize(("objective", "beta"), OBJECTIVES)
@pytest.mark.parametrize(
    ("weight", "temperature"), [(0.5, 1.0), (0.3, 2.0), (1.0, 0.7), (1.0, 1.0), (0.0, 1.0)]
)
def test_gradients_agree_with_the_dense_formula(objective, beta, weight, temperature):
    hidden, head, labels, targets = problem(**SEVERAL)
    labels[[3, 8, 299]] = IGNORED  # masked in both terms
    teacher_logits = targets.hidden @ targets.head.T
    expected = (
        dense(hidden, head, labels, teacher_logits, objective, beta, weight, temperature) / 300
    )
    loss, _ = mixture_loss(
        hidden,
        head,
        labels,
        targets,
        objective=objective,
        weight=weight,
        temperature=temperature,
        beta=beta,
        scale=1 / 300,
    )
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    for ours, theirs in zip(
        gradients(3 * loss, hidden, head), gradients(3 * expected, hidden, head), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert torch.equal(
        gradients(_again(hidden, head, labels, targets), hidden)[0][3], torch.zeros(12)
    )


def _again(hidden, head, labels, targets):
    return mixture_loss(hidden, head, labels, targets)[0]


@pytest.mark.parametrize(("objective", "beta"), OBJECTIVES)
def test_gradients_are_exact_in_double_precision(objective, beta):
    hidden, head, labels, targets = problem(**SEVERAL, dtype=torch.float64)
    teacher_logits = targets.hidden @ targets.head.T
    expected = dense(hidden, head, labels, teacher_logits, objective, beta, 0.4, 1.7)
    loss, _ = mixture_loss(
        hidden, head, labels, targets, objective=objective, weight=0.4, temperature=1.7, beta=beta
    )
    for ours, theirs in zip(
        gradients(loss, hidden, head), gradients(expected, hidden, head), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize(("objective", "beta"), OBJECTIVES)
def test_bfloat16_agrees_with_float32_of_the_same_numbers(objective, beta):
    hidden, head, labels, targets = problem(**SEVERAL, dtype=torch.bfloat16)
    teacher_logits = targets.hidden @ targets.head.T
    wide = [x.detach().float().requires_grad_() for x in (hidden, head)]
    expected = dense(*wide, labels, teacher_logits.float(), objective, beta, 0.5, 1.0)
    loss, _ = mixture_loss(hidden, head, labels, targets, objective=objective, beta=beta)
    for ours, theirs in zip(gradients(loss, hidden, head), gradients(expected, *wide), strict=True):
        assert ours.dtype == torch.bfloat16
        error = (ours.float() - theirs).norm() / theirs.norm()
        assert error < 0.02  # eight bits of precision


@pytest.mark.parametrize(("objective", "beta"), OBJECTIVES)
def test_a_tied_head_gets_the_gradients_of_both_its_uses(objective, beta):
    _, table, labels, targets = problem()
    ids = torch.randint(0, 50, (31,))
    loss, _ = mixture_loss(table[ids], table, labels, targets, objective=objective, beta=beta)
    teacher_logits = targets.hidden @ targets.head.T
    expected = dense(table[ids], table, labels, teacher_logits, objective, beta, 0.5, 1.0)
    torch.testing.assert_close(
        *(gradients(x, table)[0] for x in (loss, expected)), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(("objective", "beta"), OBJECTIVES)
def test_heads_padded_beyond_the_tokenizer_may_be_cut_to_its_size(objective, beta):
    hidden, head, labels, targets = problem(**SEVERAL)
    labels = labels % 1100  # entries of the tokenizer
    padded = ModelOutput(
        targets.hidden, torch.cat([targets.head, torch.randn(14, 20)])
    )  # otherwise padded
    loss, _ = mixture_loss(
        *(hidden, head[:1100], labels, ModelOutput(padded.hidden, padded.head[:1100])),
        objective=objective,
        beta=beta,
    )
    teacher_logits = targets.hidden @ targets.head[:1100].T
    expected = dense(hidden, head[:1100], labels, teacher_logits, objective, beta, 0.5, 1.0)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(
        gradients(loss, hidden, head), gradients(expected, hidden, head), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert not gradients(
        mixture_loss(hidden, head[:1100], labels, ModelOutput(padded.hidden, padded.head[:1100]))[
            0
        ],
        head,
    )[0][1100:].any()


@pytest.mark.parametrize(("objective", "beta"), [*OBJECTIVES, (None, None)])
def test_padding_counts_in_neither_part(objective, beta):
    hidden, head, labels, targets = problem(**SEVERAL)
    if objective is None:  # cached targets
        targets, objective = (
            PartialTargets(torch.randint(0, 1124, (300, 4)), torch.rand(300, 4)),
            "soft_ce",
        )
    padding = torch.zeros(300, dtype=torch.bool)
    padding[[0, 7, 8, 299]] = True
    options = {"objective": objective, "beta": beta}
    kept = mixture_loss(
        *(hidden[~padding], head, labels[~padding], targets.keep(~padding)), **options
    )
    masked = mixture_loss(hidden, head, labels.masked_fill(padding, IGNORED), targets, **options)
    for ours, theirs in zip((masked[0], *masked[1]), (kept[0], *kept[1]), strict=True):
        torch.testing.assert_close(ours, theirs)
    for_hidden, for_head = gradients(masked[0], hidden, head)
    expected_hidden, expected_head = gradients(kept[0], hidden, head)
    torch.testing.assert_close(for_head, expected_head)
    torch.testing.assert_close(for_hidden, expected_hidden)
    assert not for_hidden[padding].any()
    nothing, parts = mixture_loss(
        hidden, head, torch.full_like(labels, IGNORED), targets, **options
    )
    assert [nothing.item(), *map(torch.Tensor.item, parts)] == [0, 0, 0]
    assert not any(gradient.any() for gradient in gradients(nothing, hidden, head))


@pytest.mark.parametrize(("objective", "beta"), [*OBJECTIVES, (None, None)])
def test_all_that_the_kernel_makes_lies_on_the_device_of_its_input(objective, beta):
    """On torch's device without memory: no operation gets or makes a tensor of another."""
    hidden, head, labels, targets = (
        part.to("meta")
        if isinstance(part, torch.Tensor)
        else ModelOutput(*(x.to("meta") for x in part[:2]))
        for part in problem(tokens=300)
    )
    if objective is None:
        targets = PartialTargets(labels[:, None], torch.ones(300, 1, device="meta"))
    term = losses.Term(objective or "soft_ce", 0.5, 2.0, beta)
    differentiate = partial(losses._differentiate_mixture, term=term)
    context = SimpleNamespace(
        mark_non_differentiable=lambda *_: None, needs_input_grad=(True, True)
    )
    with torch.no_grad(), OnMeta():
        loss, sums = losses._Fused.forward(
            *(context, hidden, head, None, labels, targets, differentiate),
            *(None, (0.5, 0.5), 1.0, 128),
        )
        found = losses._Fused.backward(context, torch.ones((), device="meta"), None)[:2]
    assert {x.device.type for x in (loss, sums, *found)} == {"meta"}
    assert [x.shape for x in found] == [hidden.shape, head.shape]


@pytest.mark.parametrize(("objective", "beta"), OBJECTIVES[1:])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_a_divergence_from_itself_is_zero_and_so_is_its_gradient(objective, beta, temperature):
    hidden, head, labels, _ = problem()
    same = ModelOutput(hidden.detach(), head.detach())
    loss, parts = mixture_loss(
        hidden,
        head,
        labels,
        same,
        objective=objective,
        weight=1.0,
        temperature=temperature,
        beta=beta,
    )
    assert parts.teacher_term.item() == pytest.approx(0, abs=1e-4)  # of 31 tokens, 120 nats
    for gradient in gradients(loss, hidden, head):
        assert gradient.abs().max() < 1e-5


def test_soft_ce_less_forward_kl_is_the_teachers_entropy_and_their_gradients_are_equal():
    hidden, head, labels, targets = problem()
    soft, soft_parts = mixture_loss(hidden, head, labels, targets, objective="soft_ce")
    kl, kl_parts = mixture_loss(hidden, head, labels, targets, objective="forward_kl")
    p = torch.softmax(targets.hidden @ targets.head.T, 1)
    entropy = torch.distributions.Categorical(p).entropy().sum()
    torch.testing.assert_close(soft_parts.teacher_term - kl_parts.teacher_term, entropy)
    for ours, theirs in zip(
        gradients(soft, hidden, head), gradients(kl, hidden, head), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_jensen_shannon_tends_to_the_forward_and_to_the_reverse_divergence():
    hidden, head, labels, targets = problem(dtype=torch.float64)
    hidden, targets = (
        hidden * 0.2,
        ModelOutput(targets.hidden * 0.2, targets.head),
    )  # ratios below 1 / beta

    def term(objective, beta=None):
        _, parts = mixture_loss(hidden, head, labels, targets, objective=objective, beta=beta)
        return parts.teacher_term.item()

    assert term("jensen_shannon", 1e-6) / 1e-6 == pytest.approx(term("forward_kl"), rel=1e-3)
    assert term("jensen_shannon", 1 - 1e-6) / 1e-6 == pytest.approx(term("reverse_kl"), rel=1e-3)
    swapped = dense(
        *(targets.hidden, targets.head, labels, (hidden @ head.T).detach()),
        *("jensen_shannon", 0.3, 1.0, 1.0),
    )
    assert term("jensen_shannon", 0.7) == pytest.approx(swapped.item(), rel=1e-6)


def full_probabilities(targets, temperature=1.0):
    return torch.softmax(targets.hidden @ targets.head.T / temperature, 1)


@pytest.mark.parametrize(("weight", "temperature"), [(0.5, 1.0), (0.3, 2.0), (1.0, 0.7)])
def test_masses_are_a_target_of_the_cross_entropy(weight, temperature):
    hidden, head, labels, _ = problem(**SEVERAL)
    labels[4] = IGNORED
    ids = torch.randint(0, 1124, (300, 8))  # some repeat
    masses = torch.softmax(torch.randn(300, 8), 1)
    target = torch.zeros(300, 1124).scatter_add_(1, ids, masses)
    teacher_logits = target.clamp_min(1e-30).log() * temperature  # whose softmax is the target
    expected = dense(hidden, head, labels, teacher_logits, "soft_ce", None, weight, temperature)
    loss, parts = mixture_loss(
        *(hidden, head, labels, PartialTargets(ids, masses)), weight=weight, temperature=temperature
    )
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    kept = labels != IGNORED
    term = -(target * torch.log_softmax(hidden @ head.T / temperature, 1))[kept].sum()
    torch.testing.assert_close(parts.teacher_term, temperature**2 * term, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(
        gradients(loss, hidden, head), gradients(expected, hidden, head), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_repeated_draws_weigh_as_often_as_they_came():
    hidden, head, labels, _ = problem(tokens=1)
    drawn = PartialTargets(torch.tensor([[7, 7, 7, 9]]), torch.full((1, 4), 0.25))
    summed = PartialTargets(torch.tensor([[7, 9]]), torch.tensor([[0.75, 0.25]]))
    first, second = (mixture_loss(hidden, head, labels, s)[0] for s in (drawn, summed))
    torch.testing.assert_close(first, second)
    torch.testing.assert_close(gradients(first, hidden), gradients(second, hidden))


@pytest.mark.parametrize(
    ("objective", "beta"),
    [("kl", None), ("jensen_shannon", None), ("jensen_shannon", 1.0), ("soft_ce", 0.5)],
)
def test_objectives_that_cannot_be_had_are_refused(objective, beta):
    hidden, head, labels, targets = problem()
    with pytest.raises(ValueError, match="must be one of|jensen_shannon alone"):
        mixture_loss(hidden, head, labels, targets, objective=objective, beta=beta)


def test_a_partial_targets_allows_soft_cross_entropy_alone():
    hidden, head, labels, _ = problem(tokens=1)
    partial = PartialTargets(torch.tensor([[1]]), torch.ones(1, 1))
    with pytest.raises(ValueError, match="soft_ce, not reverse_kl"):
        mixture_loss(hidden, head, labels[:1], partial, objective="reverse_kl")


@pytest.mark.parametrize("tied", [False, True])
def test_data_alone_agrees_with_cross_entropy(tied):
    hidden, head, labels, _ = problem(**SEVERAL)
    hidden = head[:300] if tied else hidden
    labels[5] = IGNORED
    expected = torch.nn.functional.cross_entropy(hidden @ head.T, labels, reduction="sum")
    loss, _ = data_loss(hidden, head, labels, scale=0.5)
    torch.testing.assert_close(loss, expected / 2)
    for ours, theirs in zip(
        gradients(loss, hidden, head), gradients(expected / 2, hidden, head), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_bfloat16_data_alone_agrees_with_float32_of_the_same_numbers():
    hidden, head, labels, _ = problem(**SEVERAL, dtype=torch.bfloat16)
    wide = [x.detach().float().requires_grad_() for x in (hidden, head)]
    expected = torch.nn.functional.cross_entropy(wide[0] @ wide[1].T, labels, reduction="sum")
    loss, _ = data_loss(hidden, head, labels)
    assert loss.item() == pytest.approx(expected.item(), rel=2e-3)
    for ours, theirs in zip(gradients(loss, hidden, head), gradients(expected, *wide), strict=True):
        assert ours.dtype == torch.bfloat16
        assert (ours.float() - theirs).norm() < 0.02 * theirs.norm()


def test_large_logits_do_not_overflow():
    hidden, head = torch.tensor([[1000.0]]), torch.tensor([[1.0], [0.0]])
    loss, _ = data_loss(hidden, head, torch.tensor([1]))
    assert loss.item() == pytest.approx(1000.0)
    targets = ModelOutput(torch.tensor([[-1000.0]]), head)
    for objective, beta in OBJECTIVES:
        loss, parts = mixture_loss(
            hidden, head, torch.tensor([1]), targets, objective=objective, beta=beta
        )
        assert math.isfinite(loss.item())
        js = beta and -beta * math.log(beta) - (1 - beta) * math.log(1 - beta)  # disjoint
        assert parts.teacher_term.item() == pytest.approx(
            js or 1000.0, rel=1e-3 if not js else 1e-5
        )


@pytest.mark.parametrize("entries", [1, 1023, 1024, 1025, 2050])
def test_evaluation_sums_the_same_cross_entropy(entries):
    torch.manual_seed(1)
    hidden, head = torch.randn(entries, 4), 5 * torch.randn(entries, 4)
    labels = torch.randperm(entries)  # parts of 1024 entries: each is the label of some token
    expected = torch.nn.functional.cross_entropy(hidden @ head.T, labels, reduction="sum")
    assert data_ce_sum(hidden, head, labels) == pytest.approx(expected.item(), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("objective", "beta"), OBJECTIVES)
def test_no_more_logits_than_a_chunk_exist(objective, beta, dtype):
    """25 x 600 logits are the largest tensor; all would be 400 x 600."""
    hidden, head, labels, targets = problem(tokens=400, vocab=600, dtype=dtype)
    with Largest() as seen:
        loss, _ = mixture_loss(
            hidden, head, labels, targets, objective=objective, beta=beta, chunk=25
        )
        loss.backward()
        data, _ = data_loss(hidden, head, labels, chunk=25)
        data.backward()
    assert seen.elements == 25 * 600
