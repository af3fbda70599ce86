"""The loop: same seed same bits, resumed equals uninterrupted, accumulation equals one batch."""

import errno
import math
import os
import signal

import pytest
import torch
from pruning_models import MODELS, build
from training_runs import BASE, dying, run, settings, weights

from capgap.config import Distill, Training
from capgap.data.token_streams import IGNORED, Streams
from capgap.engine import checkpoints, compiling, training
from capgap.engine.forward import decoder_layers, output_form
from capgap.engine.losses import data_loss
from capgap.engine.objectives import Distillation, data_objective
from capgap.engine.onednn_matmul import use_onednn
from capgap.engine.parallel import ForwardWrapper
from capgap.engine.run_plan import plan_run
from capgap.engine.training import train
from capgap.errors import CapgapError, Terminated
from capgap.records.artifacts import intact


@pytest.mark.parametrize("seed", [0, 5])
def test_same_seed_same_bits_and_loss_falls(token_streams, tiny_model, tmp_path, seed):
    streams = Streams(token_streams())
    first, second = tiny_model(), tiny_model()
    outcome = run(first, streams, tmp_path / "a", seed=seed)
    again = run(second, streams, tmp_path / "b", seed=seed)
    assert torch.equal(weights(first), weights(second))
    assert outcome.curve_csv() == again.curve_csv()
    assert outcome.losses[-1] < outcome.losses[0] - 0.3
    assert outcome.tokens == 64 * 12


def test_other_seeds_give_other_students(token_streams, tiny_model, tmp_path):
    streams, first, second = Streams(token_streams()), tiny_model(), tiny_model()
    run(first, streams, tmp_path / "a", seed=0)
    run(second, streams, tmp_path / "b", seed=1)
    assert not torch.equal(weights(first), weights(second))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"precision": "bfloat16"},
        {"micro_batch_tokens": 32, "activation_checkpointing": True},
        {"compile": True},
    ],
    ids=str,
)
def test_killed_and_resumed_equals_uninterrupted(
    token_streams, tiny_model, tmp_path, monkeypatch, changes
):
    monkeypatch.setattr(compiling, "COMPILER", "aot_eager")
    streams, teacher = Streams(token_streams()), tiny_model(seed=9, hidden=32, heads=4)
    whole = tiny_model()
    expected = run(whole, streams, tmp_path / "whole", teacher=teacher, **changes)

    reached, deaths = [], [4, 7]
    plan = dying(lambda step: step in deaths and not deaths.remove(step), reached)
    changes |= {"teacher": teacher, "seconds": 0, "plan": plan}
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run(tiny_model(), streams, tmp_path / "cut", **changes)
    resumed = tiny_model()
    outcome = run(resumed, streams, tmp_path / "cut", **changes)
    assert reached == list(range(12))  # it went on from where it was, not from the start
    assert torch.equal(weights(whole), weights(resumed))
    assert outcome.curve_csv() == expected.curve_csv()


def test_a_torn_checkpoint_is_passed_over(token_streams, tiny_model, tmp_path, capsys):
    stream, model = Streams(token_streams())["train"], tiny_model()
    optimizer = training.make_optimizer(model, settings())
    first, second = training._batches(stream, plan_run(settings(), 64 * 2), 0, model.device)
    training._step(ForwardWrapper(model), optimizer, first, settings(), data_objective, 0.01)
    checkpoints.save(tmp_path, 1, model, optimizer, {"curve": []})
    kept = weights(model)
    training._step(ForwardWrapper(model), optimizer, second, settings(), data_objective, 0.01)
    checkpoints.save(tmp_path, 2, model, optimizer, {"curve": []})
    path = tmp_path / "step-000000002" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    other = tiny_model(seed=3)
    step, _ = checkpoints.load_latest(tmp_path, other, training.make_optimizer(other, settings()))
    assert step == 1
    assert torch.equal(weights(other), kept)
    assert "step-000000002 is damaged" in capsys.readouterr().out


def test_checkpoints_are_bounded_in_number(token_streams, tiny_model, tmp_path):
    run(tiny_model(), Streams(token_streams()), tmp_path, seconds=0)
    assert len(list(tmp_path.glob("step-*"))) == checkpoints.KEEP


def test_accumulation_gives_the_same_update(token_streams, tiny_model, tmp_path):
    streams, whole, parts = Streams(token_streams()), tiny_model(), tiny_model()
    run(whole, streams, tmp_path / "a", tokens=64)
    run(parts, streams, tmp_path / "b", tokens=64, micro_batch_tokens=16)
    torch.testing.assert_close(weights(parts), weights(whole), rtol=1e-4, atol=1e-5)


def test_loss_that_is_not_finite_stops_and_says_where(token_streams, tiny_model, tmp_path):
    streams, model = Streams(token_streams()), tiny_model()
    with torch.no_grad():
        model.model.embed_tokens.weight[5] = math.inf
    with pytest.raises(CapgapError, match=r"not finite at step \d+/12 .*learning rate.*checkpoint"):
        run(model, streams, tmp_path)


def test_budget_below_one_step_is_refused(token_streams, tiny_model, tmp_path):
    with pytest.raises(CapgapError, match="less than one step"):
        run(tiny_model(), Streams(token_streams()), tmp_path, tokens=63)


def test_learning_rate_warms_up_and_falls_to_the_floor():
    cosine = settings(warmup_share=0.1, final_lr_share=0.1, learning_rate=1.0)
    rates = [*map(plan_run(cosine, 64 * 100).learning_rate, range(100))]
    assert rates[:10] == pytest.approx([0.1 * i for i in range(1, 11)])
    assert rates[10] == pytest.approx(1.0)
    assert rates[55] == pytest.approx(0.55)
    assert rates[99] == pytest.approx(0.1, abs=1e-3)
    constant = settings(schedule="constant", warmup_share=0.0, learning_rate=1.0)
    assert plan_run(constant, 64 * 100).learning_rate(99) == 1.0


def test_a_good_teacher_beats_none(token_streams, tiny_model, tmp_path):
    """On data this short of tokens, soft targets carry more than the data alone."""
    streams = Streams(token_streams())
    teacher, alone, taught = tiny_model(hidden=32, heads=4), tiny_model(seed=1), tiny_model(seed=1)
    run(teacher, streams, tmp_path / "t", tokens=64 * 90)
    without = run(alone, streams, tmp_path / "a", tokens=64 * 30)
    with_teacher = run(taught, streams, tmp_path / "b", tokens=64 * 30, teacher=teacher)
    assert with_teacher.losses[-1] < without.losses[-1]


def one_step(model, batch, objective=data_objective, **changes):
    """Parts of the loss; the weights after one step of plain descent are left in the model."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    chosen = settings(clip_norm=1e9, **changes)
    return training._step(ForwardWrapper(model), optimizer, batch, chosen, objective, 1.0)


def batch_of(streams, model):
    return next(training._batches(streams["train"], plan_run(settings(), 64), 0, model.device))


@pytest.mark.parametrize("micro", [16, 32, 48])
def test_accumulation_with_ignored_tokens_is_the_mean_over_the_step(
    token_streams, tiny_model, micro
):
    """Micro-batches hold unequal numbers of tokens that count; each token weighs the same."""
    streams, teacher = Streams(token_streams()), tiny_model(seed=9, hidden=32, heads=4).eval()
    whole, parts, mean = tiny_model(), tiny_model(), tiny_model()
    batch = batch_of(streams, whole)
    batch = batch._replace(labels=batch.labels.clone())
    batch.labels[0, 3:] = batch.labels[2, :9] = IGNORED
    objective = Distillation(teacher, Distill(**BASE))
    expected = one_step(whole, batch, objective)
    settled = Training(**{**BASE, "clip_norm": 1e9}).model_copy(
        update={"micro_batch_tokens": micro}
    )
    sgd = torch.optim.SGD(parts.parameters(), lr=1.0)
    found = training._step(ForwardWrapper(parts), sgd, batch, settled, objective, 1.0)
    assert found == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(weights(parts), weights(whole), rtol=1e-5, atol=1e-6)

    logits, taught = (m(input_ids=batch.inputs).logits.reshape(-1, 64) for m in (mean, teacher))
    kept = batch.labels.reshape(-1) != IGNORED
    log_q, p = torch.log_softmax(logits[kept], 1), torch.softmax(taught[kept], 1).detach()
    data = -log_q.gather(1, batch.labels.reshape(-1)[kept, None]).mean()
    taught = -(p * log_q).sum(1).mean()
    assert found == pytest.approx((data.item(), taught.item()), rel=1e-5)
    (0.5 * data + 0.5 * taught).backward()
    by_hand = torch.cat([(p - p.grad).detach().flatten() for p in mean.parameters()])
    torch.testing.assert_close(weights(parts), by_hand, rtol=1e-4, atol=1e-5)


def test_a_loss_that_is_not_finite_names_its_step_and_batch(token_streams, tiny_model, tmp_path):
    streams, model = Streams(token_streams()), tiny_model()
    six_steps = plan_run(settings(), 64 * 6)
    batches = [*training._batches(streams["train"], six_steps, 0, model.device)]

    def objective(model, inputs, labels, starts, scale):
        loss, parts = data_objective(model, inputs, labels, starts, scale)
        bad = torch.equal(starts, batches[3].starts)
        return (loss * math.nan if bad else loss), parts

    first = f"{batches[3].starts[0]:,}"
    with pytest.raises(
        CapgapError, match=rf"at step 4/12 .*sequences at tokens {first}, .*step-0*3"
    ):
        train(
            model, streams, plan_run(settings(), 64 * 12), objective, scratch=tmp_path,
            checkpoint_seconds=0, say=lambda line: None,
        )  # fmt: skip


def test_out_of_memory_names_the_micro_batch_and_keeps_the_checkpoint(
    token_streams, tiny_model, tmp_path
):
    calls = []

    def greedy(model, inputs, *rest):
        calls.append(1)
        if len(calls) == 4:
            torch.empty(2**42)  # no machine has it
        return data_objective(model, inputs, *rest)

    with pytest.raises(CapgapError) as caught:
        train(
            tiny_model(), Streams(token_streams()), plan_run(settings(), 64 * 12), greedy,
            scratch=tmp_path, checkpoint_seconds=0, say=lambda line: None,
        )  # fmt: skip
    message = str(caught.value)
    assert "out of memory at step 4/12, in the forward or backward pass" in message
    assert "step-000000003" in message
    assert "lower micro_batch_tokens from 64 to 32" in message
    assert "set activation_checkpointing (now false)" in message
    assert intact(tmp_path / "step-000000003")


def test_out_of_memory_in_the_loss_names_its_chunk(token_streams, tiny_model, tmp_path):
    def greedy(model, inputs, *rest):
        one, tokens = torch.zeros(1, 1), 2**20
        labels = torch.zeros(1, dtype=torch.int64).expand(tokens)
        return data_loss(one.expand(tokens, 1), one.expand(2**22, 1), labels, chunk=tokens)

    changes = {"micro_batch_tokens": 16, "activation_checkpointing": True, "loss_chunk_tokens": 8}
    plan = plan_run(settings(**changes), 64 * 12)
    with pytest.raises(CapgapError) as caught:
        train(tiny_model(), Streams(token_streams()), plan, greedy, scratch=tmp_path)
    message = str(caught.value)
    assert "step 1/12, in the loss; no checkpoint was saved yet" in message
    assert "set loss_chunk_tokens to 4 (now 8, of 64 logits each)" in message
    assert "micro_batch_tokens" not in message  # one sequence is the least
    assert "set activation_checkpointing" not in message


def test_out_of_memory_before_the_first_step_names_the_teacher(token_streams, tiny_model, tmp_path):
    class LargeTeacher:
        def on(self, dist):
            return torch.empty(2**42)

    streams, plan = Streams(token_streams()), plan_run(Distill(**BASE), 64)
    with pytest.raises(CapgapError) as caught:
        train(tiny_model(), streams, plan, LargeTeacher(), scratch=tmp_path)
    message = str(caught.value)
    assert "in loading the models; no checkpoint was saved yet" in message
    assert "set teacher_precision to bfloat16 (now float32), or shard the model" in message
    assert "micro_batch_tokens" not in message


def test_a_full_disk_keeps_the_last_good_checkpoint(
    token_streams, tiny_model, tmp_path, monkeypatch
):
    streams, real, calls = Streams(token_streams()), checkpoints.save_file, []

    def filling(tensors, path):
        calls.append(path)
        if len(calls) == 6:  # the optimizer's state after step 3
            raise OSError(errno.ENOSPC, "No space left on device")
        real(tensors, path)

    monkeypatch.setattr(checkpoints, "save_file", filling)
    with pytest.raises(CapgapError, match="step-000000003: no space left on the disk.*run again"):
        run(tiny_model(), streams, tmp_path / "cut", seconds=0)
    assert checkpoints.latest(tmp_path / "cut").name == "step-000000002"
    assert intact(tmp_path / "cut" / "step-000000002")
    assert not list((tmp_path / "cut").glob(".*"))  # the torn one takes no space
    monkeypatch.setattr(checkpoints, "save_file", real)
    whole, resumed = tiny_model(), tiny_model()
    run(whole, streams, tmp_path / "whole")
    run(resumed, streams, tmp_path / "cut")
    assert torch.equal(weights(resumed), weights(whole))


def interrupting(at):
    """The data's objective, and SIGTERM to this process in its call of this number."""
    calls = []

    def objective(*arguments):
        calls.append(None)
        if len(calls) == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return data_objective(*arguments)

    return objective


@pytest.mark.parametrize("call", [1, 22])  # of four micro-batches a step
def test_sigterm_gives_up_the_step_and_keeps_the_state_before_it(
    token_streams, tiny_model, tmp_path, call
):
    streams, chosen, done = Streams(token_streams()), settings(micro_batch_tokens=16), call // 4
    whole, cut, resumed = tiny_model(), tiny_model(), tiny_model()
    run(whole, streams, tmp_path / "whole", micro_batch_tokens=16)
    plan = plan_run(chosen, 64 * 12, 0)
    with pytest.raises(Terminated, match=f"terminated after step {done}/12; the state is saved"):
        train(cut, streams, plan, interrupting(call), scratch=tmp_path / "cut", say=lambda _: None)
    assert checkpoints.latest(tmp_path / "cut").name == f"step-{done:09d}"
    assert all(parameter.grad is None for parameter in cut.parameters())
    run(resumed, streams, tmp_path / "cut", micro_batch_tokens=16)
    assert torch.equal(weights(resumed), weights(whole))


@pytest.mark.parametrize(("saving_s", "saved"), [(0.01, [2, 4, 6, 8, 10]), (10.0, [2])])
def test_states_that_take_long_to_save_are_saved_more_rarely(
    token_streams, tiny_model, tmp_path, monkeypatch, saving_s, saved
):
    now, found, save = [0.0], [], checkpoints.save

    def step(*arguments):
        now[0] += 0.6
        return data_objective(*arguments)

    def slow(scratch, done, *rest):
        now[0] += saving_s
        found.append(done)
        save(scratch, done, *rest)

    monkeypatch.setattr(checkpoints, "save", slow)
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    plan = plan_run(settings(), 64 * 12, 0)
    options = {"scratch": tmp_path, "checkpoint_seconds": 1.0, "say": lambda line: None}
    train(tiny_model(), Streams(token_streams()), plan, step, **options)
    assert found == saved


def test_sigterm_is_left_as_it_was_after_a_run(token_streams, tiny_model, tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    run(tiny_model(), Streams(token_streams()), tmp_path, tokens=64)
    assert signal.getsignal(signal.SIGTERM) is before


@use_onednn()
def gradients(model, batch, chosen):
    """Gradients of one batch of the mixture, and its loss, computed as the settings say."""
    training.prepare(model.train(), chosen)
    objective = Distillation(model_copy(model, seed=9), chosen)
    loss, _ = objective(model, batch.inputs, batch.labels.reshape(-1), batch.starts, 1 / 64)
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in model.parameters()])


def model_copy(model, seed):
    torch.manual_seed(seed)
    return type(model)(model.config).eval()


def test_activation_checkpointing_gives_identical_gradients_from_less_memory(
    token_streams, tiny_model
):
    plain, frugal = tiny_model(), tiny_model()
    batch, held = batch_of(Streams(token_streams()), plain), {}

    def bytes_kept(model, chosen, name):
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: held.setdefault(name, []).append(t.nbytes) or t, lambda t: t
        ):
            return gradients(model, batch, chosen)

    loss, expected = bytes_kept(plain, Distill(**BASE), "plain")
    again, found = bytes_kept(frugal, Distill(**BASE, activation_checkpointing=True), "frugal")
    assert again == loss
    assert torch.equal(found, expected)
    assert sum(held["frugal"]) < 0.5 * sum(held["plain"])


@pytest.mark.parametrize("name", MODELS)
def test_layers_of_every_family_are_computed_again(name):
    gradients = []
    for chosen in (Distill(**BASE), Distill(**BASE, activation_checkpointing=True)):
        model, tokens = build(name).train(), torch.arange(48).reshape(3, 16)
        calls = []
        output_form(model)
        for layer in decoder_layers(model):
            inner = next(layer.children())  # hooks of the layer itself stay outside
            inner.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        training.prepare(model, chosen)
        torch.manual_seed(0)  # GPT-2 and OPT drop out
        with use_onednn():
            data_objective(model, tokens, tokens.reshape(-1), None, 1 / 48)[0].backward()
        gradients.append([p.grad for p in model.parameters()])
        again = 2 if chosen.activation_checkpointing else 1
        assert len(calls) == again * model.config.num_hidden_layers
    for first, second in zip(*gradients, strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("frugal", [False, True])
def test_compiled_layers_give_the_same_gradients(token_streams, tiny_model, monkeypatch, frugal):
    monkeypatch.setattr(compiling, "COMPILER", "aot_eager")
    plain, compiled = tiny_model(), tiny_model()
    batch = batch_of(Streams(token_streams()), plain)
    loss, expected = gradients(plain, batch, Distill(**BASE))
    chosen = Distill(**BASE, compile=True, activation_checkpointing=frugal)
    torch._dynamo.reset()  # code that another test compiled
    torch._dynamo.utils.counters.clear()
    again, found = gradients(compiled, batch, chosen)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0  # it did compile
    assert again == pytest.approx(loss, rel=1e-6)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)
    assert set(compiled.state_dict()) == set(plain.state_dict())  # it is saved as it was


def test_bfloat16_follows_float32_and_keeps_its_weights_in_float32(
    token_streams, tiny_model, tmp_path
):
    streams, teacher = Streams(token_streams()), tiny_model(seed=9, hidden=32, heads=4)
    full, half = tiny_model(), tiny_model()
    batch = batch_of(streams, full)
    loss, expected = gradients(tiny_model(), batch, Distill(**BASE))
    again, found = gradients(tiny_model(), batch, Distill(**BASE, precision="bfloat16"))
    assert again == pytest.approx(loss, rel=2e-3)
    assert again != loss
    assert torch.nn.functional.cosine_similarity(found, expected, dim=0) > 0.999
    a = run(full, streams, tmp_path / "a", teacher=teacher)
    b = run(half, streams, tmp_path / "b", teacher=teacher, precision="bfloat16")
    assert b.losses[-1] == pytest.approx(a.losses[-1], abs=0.02)
    assert {p.dtype for p in half.parameters()} == {torch.float32}


def test_a_teacher_held_in_bfloat16_says_what_autocast_makes_it_say(token_streams, tiny_model):
    """Rounded once or for every pass; and the student beside it computes in its own precision."""
    streams, student = Streams(token_streams()), tiny_model()
    batch = batch_of(streams, student)

    def parts(place, **settings):
        teacher = tiny_model(seed=9, hidden=32, heads=4, tied=False).eval()
        objective = Distillation(teacher, Distill(**BASE, **settings))
        objective = objective.on(training.ONE_PROCESS) if place else objective
        labels = batch.labels.reshape(-1)
        return objective(student, batch.inputs, labels, batch.starts, 1.0)[1], teacher

    exact, full = parts(True)
    assert {p.dtype for p in full.parameters()} == {torch.float32}
    held, half = parts(True, teacher_precision="bfloat16")
    assert held == parts(False, teacher_precision="bfloat16")[0]
    assert held.data_ce == exact.data_ce
    assert held.teacher_term != exact.teacher_term
    torch.testing.assert_close(held.teacher_term, exact.teacher_term, rtol=5e-3, atol=0)
    kept = {n for n, p in half.named_parameters() if p.dtype == torch.float32}
    assert kept == {n for n, p in half.named_parameters() if "embed" in n or p.ndim < 2}
    assert {buffer.dtype for buffer in half.buffers()} == {torch.float32}  # rotary frequencies
    whole = parts(True, precision="bfloat16")[0]
    assert whole.teacher_term != held.teacher_term  # the student's part is rounded, too


def test_batches_ahead_are_the_same(token_streams, monkeypatch):
    """What a GPU gets is made by a thread, one step ahead, in pinned memory."""
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda t: pinned.append(t) or t)
    stream = Streams(token_streams())["train"]
    for done, last in ((3, 9), (4, 4)):
        plan = plan_run(settings(), 64 * last, seed=5)
        here, there = (
            [*training._batches(stream, plan, done, torch.device(kind))] for kind in ("cpu", "cuda")
        )
        assert len(here) == len(there) == last - done
        for one, other in zip(here, there, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert len(pinned) == 3 * 6
