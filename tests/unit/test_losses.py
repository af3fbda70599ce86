"""The fused loss against hand-computed values and against the dense formula."""

import math

import pytest
import torch

from capgap.engine.losses import Signal, data_ce_sum, data_loss, mixture_loss


def dense(hidden, head, labels, teacher_logits, weight, temperature):
    logits = hidden @ head.T
    ce = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
    if teacher_logits is None:
        return ce
    target = torch.softmax(teacher_logits / temperature, 1)
    log_soft = torch.log_softmax(logits / temperature, 1)
    soft = -(target * log_soft).sum() * temperature**2
    return (1 - weight) * ce + weight * soft


def test_hand_computed_two_tokens_three_words():
    # logits of the student (log p up to a shift): token 0 -> p = (1/2, 1/4, 1/4), token 1 uniform
    hidden = torch.tensor([[math.log(2.0), 0.0], [0.0, 0.0]])
    head = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    # teacher: token 0 -> (1/4, 1/2, 1/4), token 1 uniform
    signal = Signal(torch.tensor([[math.log(2.0)], [0.0]]), torch.tensor([[0.0], [1.0], [0.0]]))
    labels = torch.tensor([0, 2])
    loss, parts = mixture_loss(hidden, head, labels, signal, weight=0.5)
    data = math.log(2) + math.log(3)
    teacher = (0.25 * math.log(2) + 0.75 * math.log(4)) + math.log(3)
    assert parts.data_ce.item() == pytest.approx(data, rel=1e-6)
    assert parts.teacher_ce.item() == pytest.approx(teacher, rel=1e-6)
    assert loss.item() == pytest.approx(0.5 * data + 0.5 * teacher, rel=1e-6)


@pytest.mark.parametrize("with_teacher", [True, False])
@pytest.mark.parametrize(
    ("weight", "temperature"), [(0.5, 1.0), (0.3, 2.0), (1.0, 1.0), (0.0, 1.0)]
)
def test_gradients_agree_with_the_dense_formula(with_teacher, weight, temperature, monkeypatch):
    monkeypatch.setattr("capgap.engine.losses.CHUNK_TOKENS", 7)  # several chunks, the last partial
    torch.manual_seed(0)
    hidden = torch.randn(31, 12, requires_grad=True)
    head = torch.randn(50, 12, requires_grad=True)
    labels = torch.randint(0, 50, (31,))
    signal = Signal(torch.randn(31, 20), torch.randn(50, 20)) if with_teacher else None
    teacher_logits = signal.hidden @ signal.head.T if signal else None
    expected = dense(hidden, head, labels, teacher_logits, weight, temperature) / 31
    expected.backward()
    grads = hidden.grad.clone(), head.grad.clone()
    hidden.grad = head.grad = None
    if signal:
        loss, _ = mixture_loss(
            hidden, head, labels, signal, weight=weight, temperature=temperature, scale=1 / 31
        )
    else:
        loss, _ = data_loss(hidden, head, labels, scale=1 / 31)
    (3 * loss).backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(hidden.grad / 3, grads[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(head.grad / 3, grads[1], rtol=1e-5, atol=1e-6)


def test_large_logits_do_not_overflow():
    hidden, head = torch.tensor([[1000.0]]), torch.tensor([[1.0], [0.0]])
    loss, _ = data_loss(hidden, head, torch.tensor([1]))
    assert loss.item() == pytest.approx(1000.0)


def test_evaluation_sums_the_same_cross_entropy():
    torch.manual_seed(1)
    hidden, head, labels = torch.randn(9, 4), torch.randn(11, 4), torch.randint(0, 11, (9,))
    expected = torch.nn.functional.cross_entropy(hidden @ head.T, labels, reduction="sum")
    assert data_ce_sum(hidden, head, labels) == pytest.approx(expected.item(), rel=1e-6)
