"""What only a GPU can show: kernels, matmuls, compiled layers and the loop, against the CPU."""

import pytest
import torch
from test_losses import OBJECTIVES, dense, gradients, problem
from training_runs import run

from capgap.config import Distill, Evaluate
from capgap.data.token_streams import IGNORED, Batch, Streams
from capgap.engine import device_path, losses, training
from capgap.engine.forward import model_output, output_form
from capgap.engine.losses import ModelOutput, data_ce_sum, mixture_loss
from capgap.engine.objectives import Distillation
from capgap.engine.parallel import DistContext
from capgap.engine.rounded_linear import round_products

HAS_GPU = torch.cuda.is_available()
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not HAS_GPU, reason="PyTorch sees no GPU on this machine"),
]
GPU = torch.device("cuda" if HAS_GPU else "cpu")


def moved(hidden, head, targets):
    on_gpu = ModelOutput(*(x.to(GPU) for x in targets[:2]))
    return *(x.detach().to(GPU).requires_grad_() for x in (hidden, head)), on_gpu


@pytest.mark.parametrize("kernel", [True, False])
@pytest.mark.parametrize(("objective", "beta"), OBJECTIVES)
def test_loss_agrees_with_the_dense_formula(objective, beta, kernel, monkeypatch):
    hidden, head, labels, targets = problem(tokens=300, vocab=5000)
    labels[[3, 8]] = IGNORED
    teacher = targets.hidden @ targets.head.T
    expected = dense(hidden, head, labels, teacher, objective, beta, 0.3, 2.0)
    if not kernel:
        monkeypatch.setattr(losses, "loss_kernels", lambda hidden: None)
    elif losses.loss_kernels(torch.empty(1, device=GPU)) is None:
        pytest.skip("there is no Triton beside this PyTorch")
    own_hidden, own_head, on_gpu = moved(hidden, head, targets)
    loss, _ = mixture_loss(
        own_hidden, own_head, labels, on_gpu, objective=objective, beta=beta, weight=0.3,
        temperature=2.0, chunk=128,
    )  # fmt: skip
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    for ours, theirs in zip(
        gradients(loss, own_hidden, own_head), gradients(expected, hidden, head), strict=True
    ):
        torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-3, atol=1e-4)


def test_products_are_added_in_float32():
    """Ten additions of 2^-8 to 1, each of which bfloat16 would lose."""
    total = torch.ones(16, 16, device=GPU)
    small = torch.full((16, 16), 2.0**-6, device=GPU, dtype=torch.bfloat16)
    for _ in range(10):
        device_path.add_product_(total, small, small)
    torch.testing.assert_close(total, torch.full_like(total, 1 + 10 * 2.0**-8))


def test_held_out_loss_is_that_of_the_cpu():
    hidden, head, labels, _ = problem(tokens=100, vocab=3000)
    expected = data_ce_sum(hidden, head, labels)
    found = data_ce_sum(*(x.detach().to(GPU) for x in (hidden, head, labels)))
    assert found == pytest.approx(expected, rel=1e-5)


def stepping(model, teacher, chosen):
    """The loop's step on the GPU."""
    dist = DistContext(device=GPU)
    output_form(model)
    objective = Distillation(teacher, chosen, 64).on(dist)
    whole = dist.distribute(model.train(), precision=chosen.precision)
    rounding = round_products(model, chosen.precision)
    training.prepare(model, chosen)
    optimizer = training.make_optimizer(model, chosen)
    return lambda batch: training._step(
        whole, optimizer, batch, chosen, objective, 1e-3, dist, rounding
    )


@pytest.mark.parametrize("compiled", [False, True])
def test_steps_follow_those_of_the_cpu_and_wait_twice_a_micro_batch_at_most(
    tiny_model, compiled, recwarn
):
    chosen = Distill(
        sequence_length=16, batch_tokens=128, micro_batch_tokens=32, validation_tokens=32,
        precision="bfloat16", compile=compiled,
    )  # fmt: skip
    torch.manual_seed(0)
    ids = torch.randint(0, 64, (8, 17))
    batch = Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), torch.zeros(8))
    pinned = Batch(*(part.pin_memory() for part in batch))
    plain = chosen.model_copy(update={"compile": False, "precision": "float32"})
    model = tiny_model()
    step = stepping(model, tiny_model(seed=1), chosen)
    on_gpu = [step(pinned) for _ in range(3)]
    recwarn.clear()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        step(pinned)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [w for w in recwarn if "synchroniz" in str(w.message)]
    assert len(waits) <= 2 * 4
    reference = _on_cpu(tiny_model(), tiny_model(seed=1), plain)
    for found in on_gpu:
        assert found == pytest.approx(reference(batch), rel=0.02)


def _on_cpu(model, teacher, chosen):
    dist = DistContext()
    objective = Distillation(teacher, chosen, 64).on(dist)
    whole = dist.distribute(model.train())
    optimizer = training.make_optimizer(model, chosen)
    return lambda batch: training._step(whole, optimizer, batch, chosen, objective, 1e-3, dist)


@pytest.mark.parametrize("wide", [True, False])
def test_rounded_products_follow_float32(tiny_model, wide, monkeypatch):
    if not wide:
        monkeypatch.setattr("capgap.engine.rounded_linear.has_wide_products", lambda _: False)
    ids, found = torch.arange(32, device=GPU).reshape(2, 16), []
    for precision in ("float32", "bfloat16"):
        model = tiny_model().to(GPU)
        output_form(model)
        round_products(model, precision)
        model_output(model, ids, precision=precision).hidden.float().square().sum().backward()
        found.append(
            torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        )
    assert (found[0] - found[1]).norm() < 0.05 * found[0].norm()


def test_a_run_of_the_loop_learns_as_on_a_cpu(token_streams, tiny_model, tmp_path):
    streams = Streams(token_streams())
    expected = run(tiny_model(), streams, tmp_path / "cpu", teacher=tiny_model(seed=1))
    found = run(
        tiny_model(), streams, tmp_path / "gpu", teacher=tiny_model(seed=1),
        dist=DistContext(device=GPU), precision="bfloat16",
    )  # fmt: skip
    assert found.losses[-1] == pytest.approx(expected.losses[-1], rel=0.02)


def test_a_model_read_from_disk_has_the_loss_of_the_whole(tiny_model, token_streams, tmp_path):
    from capgap.stages import evaluate

    folder = tmp_path / "model"
    tiny_model().save_pretrained(folder)
    streams = token_streams()
    (folder / "tokenizer.json").write_bytes((tmp_path / "words/tokenizer.json").read_bytes())
    settings = Evaluate(sequence_length=32, batch_tokens=64)
    whole, read = (
        evaluate.run(settings, folder, streams, stream=stream) for stream in (False, True)
    )
    assert read == whole
