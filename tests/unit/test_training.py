"""The loop: same seed same bits, resumed equals uninterrupted, accumulation equals one batch."""

import math

import pytest
import torch

from capgap.config import Distill, Training
from capgap.engine import checkpoints, training
from capgap.engine.objectives import Distillation, data_objective
from capgap.engine.streams import Streams
from capgap.engine.training import learning_rate_at, train
from capgap.errors import CapgapError

BASE = {"sequence_length": 16, "batch_tokens": 64, "learning_rate": 0.01, "validations": 2}


def settings(**changes):
    return Training(**{**BASE, **changes})


def run(model, streams, scratch, *, tokens=64 * 12, seed=0, teacher=None, seconds=1e9, **changes):
    objective = Distillation(teacher.eval(), Distill(**BASE)) if teacher else data_objective
    return train(
        model,
        streams,
        settings(**changes),
        objective,
        tokens=tokens,
        seed=seed,
        scratch=scratch,
        checkpoint_seconds=seconds,
        say=lambda line: None,
    )


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


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


def test_killed_and_resumed_equals_uninterrupted(token_streams, tiny_model, tmp_path, monkeypatch):
    streams, teacher = Streams(token_streams()), tiny_model(seed=9, hidden=32, heads=4)
    whole = tiny_model()
    expected = run(whole, streams, tmp_path / "whole", teacher=teacher)

    real_step, calls = training._step, []

    def dying_step(*args):
        calls.append(1)
        if len(calls) in (5, 9):
            raise KeyboardInterrupt
        return real_step(*args)

    monkeypatch.setattr(training, "_step", dying_step)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run(tiny_model(), streams, tmp_path / "cut", teacher=teacher, seconds=0)
    resumed = tiny_model()
    outcome = run(resumed, streams, tmp_path / "cut", teacher=teacher, seconds=0)
    assert len(calls) < 12 + 5  # it went on from where it was, not from the start
    assert torch.equal(weights(whole), weights(resumed))
    assert outcome.curve_csv() == expected.curve_csv()


def test_a_torn_checkpoint_is_passed_over(token_streams, tiny_model, tmp_path, capsys):
    streams, model = Streams(token_streams()), tiny_model()
    optimizer = training.make_optimizer(model, settings())
    training._step(model, optimizer, streams["train"], settings(), data_objective, 0.01, 0, 0)
    checkpoints.save(tmp_path, 1, model, optimizer, {"curve": []})
    kept = weights(model)
    training._step(model, optimizer, streams["train"], settings(), data_objective, 0.01, 1, 0)
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
    rates = [learning_rate_at(step, 100, cosine) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * i for i in range(1, 11)])
    assert rates[10] == pytest.approx(1.0)
    assert rates[55] == pytest.approx(0.55)
    assert rates[99] == pytest.approx(0.1, abs=1e-3)
    constant = settings(schedule="constant", warmup_share=0.0, learning_rate=1.0)
    assert learning_rate_at(99, 100, constant) == 1.0


def test_a_good_teacher_beats_none(token_streams, tiny_model, tmp_path):
    """On data this short of tokens, soft targets carry more than the data alone."""
    streams = Streams(token_streams())
    teacher, alone, taught = tiny_model(hidden=32, heads=4), tiny_model(seed=1), tiny_model(seed=1)
    run(teacher, streams, tmp_path / "t", tokens=64 * 90)
    without = run(alone, streams, tmp_path / "a", tokens=64 * 30)
    with_teacher = run(taught, streams, tmp_path / "b", tokens=64 * 30, teacher=teacher)
    assert with_teacher.losses[-1] < without.losses[-1]
