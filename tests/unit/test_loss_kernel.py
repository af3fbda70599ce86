"""The loss's Triton kernel, run by Triton's interpreter on a CPU, against the dense formula."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from test_losses import OBJECTIVES, dense, gradients, problem

from capgap.data.token_streams import IGNORED
from capgap.engine import losses
from capgap.engine.device_path import as_on_gpu
from capgap.engine.losses import data_loss, mixture_loss

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
interpreted = pytest.mark.skipif(
    not INTERPRETED, reason="run by test_kernel_under_the_interpreter in a process of its own"
)


@pytest.mark.skipif(INTERPRETED, reason="this is that process")
@pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton (make test-gpu installs it)")
def test_kernel_under_the_interpreter():
    """Triton reads the variable when a kernel is defined, so it takes another process."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__],
        capture_output=True,
        text=True,
        env=os.environ | {"TRITON_INTERPRET": "1"},
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout


@pytest.fixture
def kernel(monkeypatch):
    """The kernels in blocks of 32 entries, taken as on a GPU."""
    from capgap.engine import loss_kernel

    monkeypatch.setattr(loss_kernel, "BLOCK", 32)
    monkeypatch.setattr(losses, "loss_kernels", lambda hidden: loss_kernel)
    with as_on_gpu():
        yield loss_kernel


@interpreted
@pytest.mark.parametrize(("objective", "beta"), OBJECTIVES)
@pytest.mark.parametrize(("weight", "temperature"), [(0.5, 1.0), (0.3, 2.0)])
def test_gradients_agree_with_the_dense_formula(kernel, objective, beta, weight, temperature):
    hidden, head, labels, targets = problem(tokens=13, vocab=77)  # three blocks, the last smaller
    labels[[3, 8]] = IGNORED
    teacher = targets.hidden @ targets.head.T
    expected = dense(hidden, head, labels, teacher, objective, beta, weight, temperature) / 13
    loss, _ = mixture_loss(
        hidden, head, labels, targets, objective=objective, beta=beta, weight=weight,
        temperature=temperature, scale=1 / 13, chunk=5,
    )  # fmt: skip
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    for ours, theirs in zip(
        gradients(loss, hidden, head), gradients(expected, hidden, head), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@interpreted
@pytest.mark.parametrize("cap", [None, 3.0])
def test_data_alone_and_a_soft_cap(kernel, cap):
    hidden, head, labels, _ = problem(tokens=9, vocab=50)
    logits = hidden @ head.T
    capped = logits if cap is None else cap * torch.tanh(logits / cap)
    expected = torch.nn.functional.cross_entropy(capped, labels, reduction="sum")
    loss, plain = data_loss(hidden, head, labels, cap=cap)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(plain, expected.detach())
    for ours, theirs in zip(
        gradients(loss, hidden, head), gradients(expected, hidden, head), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@interpreted
@pytest.mark.parametrize(("objective", "beta"), OBJECTIVES)
def test_a_capped_student_agrees_with_the_operations_of_pytorch(
    kernel, objective, beta, monkeypatch
):
    hidden, head, labels, targets = problem(tokens=9, vocab=50)
    results = []
    for kernels in (kernel, None):
        monkeypatch.setattr(losses, "loss_kernels", lambda _, kernels=kernels: kernels)
        loss, parts = mixture_loss(
            hidden, head, labels, targets, cap=2.5, objective=objective, beta=beta, temperature=1.5
        )
        results.append([loss, *parts, *gradients(loss, hidden, head)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@interpreted
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_logits_of_any_size_and_precision(kernel, dtype):
    """Extreme logits neither overflow nor vanish; a rounded gradient is that of the rounded logits."""
    z = torch.tensor([[3e4, -3e4, 0.0], [-90.0, -88.0, -89.0]], dtype=dtype)
    labels, wide = torch.tensor([0, 2]), z.double()
    probs = wide.softmax(1)
    expected = probs - torch.nn.functional.one_hot(labels, 3)
    value = torch.nn.functional.cross_entropy(wide, labels, reduction="sum")
    [found] = kernel.data_(z, labels, [], None)
    assert found.item() == pytest.approx(value.item(), abs=1e-5)
    torch.testing.assert_close(
        z, expected.to(dtype), rtol=1e-5 if dtype == torch.float32 else 8e-3, atol=1e-6
    )
