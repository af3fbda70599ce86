"""What a GPU does differently, run on a CPU: large chunks, few waits, rounded copies, one compilation."""

import traceback
from collections import Counter

import pytest
import torch
from pruning_models import MODELS, build
from test_losses import OBJECTIVES, dense, gradients, problem
from torch.utils._python_dispatch import TorchDispatchMode

from capgap.config import Distill
from capgap.data.token_streams import IGNORED, Batch
from capgap.engine import compiling, training
from capgap.engine.device_path import as_on_gpu
from capgap.engine.evaluation import mean_loss
from capgap.engine.forward import model_output, output_form
from capgap.engine.losses import mixture_loss
from capgap.engine.objectives import Distillation
from capgap.engine.parallel import ONE_PROCESS
from capgap.engine.rounded_linear import RoundedLinear, round_products

LENGTH, MICRO, VOCAB = 16, 2, 64
WAITS = ("_local_scalar_dense", "is_nonzero", "equal", "nonzero")


class Waits(TorchDispatchMode):
    """Counts operations that wait for a GPU, by the place in this package or in transformers."""

    def __init__(self):
        super().__init__()
        self.places = Counter()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if operation._overloadpacket.__name__ in WAITS:
            frames = [f for f in traceback.extract_stack() if "capgap" in f.filename]
            self.places[f"{frames[-1].filename.rsplit('/', 1)[-1]}:{frames[-1].name}"] += 1
        return operation(*args, **(kwargs or {}))


def settings(**changes):
    given = {
        "teacher_weight": 0.5, "sequence_length": LENGTH, "batch_tokens": 8 * LENGTH,
        "micro_batch_tokens": MICRO * LENGTH, "precision": "bfloat16", "learning_rate": 1e-3,
        "validation_tokens": 2 * LENGTH,
    }  # fmt: skip
    return Distill(**given | changes)


def batch(ignored=0):
    torch.manual_seed(0)
    tokens = torch.randint(0, VOCAB, (8, LENGTH + 1))
    labels = tokens[:, 1:].clone()
    labels[0, :ignored] = IGNORED
    return Batch(tokens[:, :-1].contiguous(), labels, torch.zeros(8, dtype=torch.int64))


def step_of(student, teacher, chosen):
    """The step of the loop, as `train` puts it together, with its optimizer and rounded copies."""
    output_form(student)  # probed before its products are rounded
    objective = Distillation(teacher, chosen, VOCAB).on(ONE_PROCESS)
    whole = ONE_PROCESS.distribute(student.train(), precision=chosen.precision)
    rounding = round_products(student, chosen.precision)
    training.prepare(student, chosen)
    optimizer = training.make_optimizer(student, chosen)

    def step(data):
        return training._step(
            whole, optimizer, data, chosen, objective, 1e-3, ONE_PROCESS, rounding
        )

    return step, rounding


@pytest.mark.parametrize(("objective", "beta"), OBJECTIVES)
def test_a_chunk_as_a_whole_agrees_with_the_dense_formula(objective, beta):
    hidden, head, labels, targets = problem(tokens=70, vocab=1500)
    labels[5] = IGNORED
    expected = dense(
        hidden, head, labels, targets.hidden @ targets.head.T, objective, beta, 0.5, 1.0
    )
    with as_on_gpu():
        loss, _ = mixture_loss(hidden, head, labels, targets, objective=objective, beta=beta)
    for ours, theirs in zip(
        gradients(loss, hidden, head), gradients(expected, hidden, head), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("ignored", [0, 3])
def test_a_micro_batch_waits_for_nothing(tiny_model, ignored):
    """Labels are counted on the CPU before they move; the rest of a step waits twice, at its end."""
    with as_on_gpu():
        step, _ = step_of(tiny_model(), tiny_model(seed=1), settings())
        step(batch())
        with Waits() as waits:
            step(batch(ignored))
    on_host = {"losses.py:_counted"}  # labels, which lie on the CPU
    waited = Counter({k: n for k, n in waits.places.items() if k not in on_host})
    assert set(waited) <= {"training.py:_step"}
    assert sum(waited.values()) <= 3  # a step of four micro-batches: two means and the norm
    assert waits.places["losses.py:_counted"] > 0  # the counter sees what there is


def test_rounded_copies_give_the_gradients_of_autocast_and_learn_as_it_does(tiny_model):
    plain, rounded = tiny_model(), tiny_model()
    with as_on_gpu():
        first, _ = step_of(plain, tiny_model(seed=1), settings())
        for module in plain.modules():  # the same without copies
            if isinstance(module, RoundedLinear):
                module.__class__ = torch.nn.Linear
        second, rounding = step_of(rounded, tiny_model(seed=1), settings())
        assert len(rounding.layers) == 2 * 7
        for _ in range(3):
            expected, found = first(batch()), second(batch())
        assert found == pytest.approx(expected, rel=1e-3)
        for layer in rounding.layers:  # written again after the last step
            assert torch.equal(layer.rounded, layer.weight.to(torch.bfloat16))
    for one, other in zip(plain.parameters(), rounded.parameters(), strict=True):
        assert one.dtype == other.dtype == torch.float32
        assert (one - other).abs().max() < 2e-3  # three steps of 1e-3 each
    assert set(rounded.state_dict()) == set(plain.state_dict())
    rounding.undo()
    assert not any(isinstance(module, RoundedLinear) for module in rounded.modules())
    assert not any(name.endswith("rounded") for name, _ in rounded.named_buffers())


@pytest.mark.parametrize("name", ["llama-gqa-untied", "qwen2", "neox"])
def test_gradient_of_a_rounded_product_is_float32_and_that_of_autocast(name):
    ids = torch.arange(24).reshape(2, 12)
    found = []
    for rounds in (False, True):
        model = build(name)
        output_form(model)
        with as_on_gpu():
            if rounds:
                assert round_products(model, "bfloat16").layers
            model_output(model, ids, precision="bfloat16").hidden.float().square().sum().backward()
        found.append([p.grad for p in model.parameters() if p.grad is not None])
    for plain, rounded in zip(*found, strict=True):
        assert rounded.dtype == torch.float32
        assert (plain - rounded).norm() <= 0.03 * plain.norm()


def test_nothing_is_rounded_on_a_cpu_or_in_float32(tiny_model):
    assert round_products(tiny_model(), "bfloat16").layers == []
    with as_on_gpu():
        assert round_products(tiny_model(), "float32").layers == []


class Graphs:
    """A compiler that runs what it is given and keeps the graphs."""

    def __init__(self):
        self.inputs = []

    def __call__(self, graph, example_inputs):
        self.inputs.append(example_inputs)
        return graph.forward


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_layers_are_compiled_once_for_one_shape(tiny_model, monkeypatch, precision):
    """Neither a ragged window nor another layer, nor a later step, compiles again or breaks a graph."""
    graphs = Graphs()
    monkeypatch.setattr(compiling, "COMPILER", graphs)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    student = tiny_model(layers=12)  # more than the 8 variants that dynamo allows
    chosen = settings(compile=True, precision=precision)
    with as_on_gpu():
        step, _ = step_of(student, tiny_model(seed=1, layers=10), chosen)
        held_out = torch.randint(0, VOCAB, (5 * LENGTH + 4,)).numpy()  # a ragged last window
        for _ in range(3):
            step(batch())
            mean_loss(
                student, held_out, sequence_length=LENGTH, batch_tokens=MICRO * LENGTH,
                split="validation", precision=precision,
            )  # fmt: skip
            student.train()
    counters = torch._dynamo.utils.counters
    assert not counters["graph_break"]
    # the student's layer with a gradient and without, and the teacher's
    assert counters["stats"]["unique_graphs"] == len(graphs.inputs) == 3
    assert not counters["recompile_limit"]
    for inputs in graphs.inputs:
        assert not [x for x in inputs if isinstance(x, int | torch.SymInt)]
        tensors = [x for x in inputs if isinstance(x, torch.Tensor)]
        assert all(isinstance(size, int) for x in tensors for size in x.shape)


@pytest.mark.parametrize("name", MODELS)
def test_every_family_compiles_without_a_break(name, monkeypatch):
    monkeypatch.setattr(compiling, "COMPILER", Graphs())
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = build(name)
    ids = torch.arange(24).reshape(2, 12)
    expected = model_output(model, ids).hidden
    compiling.compile_layers(model, (2, 12))
    found = model_output(model, ids).hidden
    torch.testing.assert_close(found, expected)
    assert not torch._dynamo.utils.counters["graph_break"]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
