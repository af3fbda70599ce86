"""The loop: same seed same bits, resumed equals uninterrupted, accumulation equals one batch."""

import math

import pytest
import torch

from capgap.config import Distill, Training
from capgap.engine import checkpoints, training
from capgap.engine.objectives import Distillation, data_objective
from capgap.engine.schedule import learning_rate_at, measured_steps, trunk_steps
from capgap.engine.streams import Streams
from capgap.engine.training import TRUNK, train
from capgap.errors import CapgapError

BASE = {"sequence_length": 16, "batch_tokens": 64, "learning_rate": 0.01, "validations": 2}


def settings(**changes):
    return Training(**{**BASE, **changes})


def run(
    model,
    streams,
    scratch,
    *,
    tokens=64 * 12,
    seed=0,
    teacher=None,
    seconds=1e9,
    trunk=None,
    **changes,
):
    objective = Distillation(teacher.eval(), Distill(**BASE)) if teacher else data_objective
    return train(
        model,
        streams,
        settings(**changes),
        objective,
        tokens=tokens,
        seed=seed,
        scratch=scratch,
        trunk=trunk,
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


WSD = {"schedule": "wsd", "warmup_tokens": 64 * 4, "decay_share": 0.25}


def test_wsd_is_flat_before_the_fall_whatever_the_budget():
    wsd = settings(**WSD, learning_rate=1.0)
    assert trunk_steps(100, wsd) == 75
    rates = [learning_rate_at(step, 100, wsd) for step in range(100)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4:75] == [1.0] * 71
    assert rates[75] == 1.0
    assert rates[84] == pytest.approx(1 - (9 / 25) ** 0.5)
    assert rates[99] == pytest.approx(1 - (24 / 25) ** 0.5)
    assert rates[:75] == [learning_rate_at(step, 400, wsd) for step in range(75)]
    floor = settings(**WSD, learning_rate=1.0, final_lr_share=0.5)
    assert learning_rate_at(84, 100, floor) == pytest.approx(0.5 + 0.5 * (1 - 0.6))


def test_wsd_is_measured_on_the_trunk_at_points_that_all_budgets_share():
    wsd = settings(**WSD, validations=2)
    assert measured_steps(40, wsd) == {4, 8, 16, 35, 40}
    assert measured_steps(100, wsd) == {4, 8, 16, 32, 64, 87, 100}
    assert measured_steps(12, settings(validations=3)) == {4, 8, 12}


def test_warmup_longer_than_the_trunk_is_refused():
    with pytest.raises(CapgapError, match="falls from step 3 of 4 on"):
        trunk_steps(4, settings(**WSD))


@pytest.mark.parametrize("budgets", [(8, 12), (8, 12, 32)])
def test_a_branch_from_a_trunk_equals_a_whole_run(token_streams, tiny_model, tmp_path, budgets):
    streams, teacher = Streams(token_streams()), tiny_model(seed=9, hidden=32, heads=4)
    whole = tiny_model()
    expected = run(
        whole, streams, tmp_path / "whole", tokens=64 * budgets[-1], teacher=teacher, **WSD
    )
    trunk, outcome = None, None
    for steps in budgets:
        model = tiny_model()
        scratch = tmp_path / str(steps)
        outcome = run(
            model, streams, scratch, tokens=64 * steps, teacher=teacher, trunk=trunk, **WSD
        )
        trunk = scratch / TRUNK
    assert torch.equal(weights(model), weights(whole))
    assert outcome.curve_csv() == expected.curve_csv()
    for name in ("model.safetensors", "optimizer.safetensors", checkpoints.NOTES):
        assert (trunk / name).read_bytes() == (tmp_path / "whole" / TRUNK / name).read_bytes()


@pytest.mark.parametrize("deaths", [(5,), (7,), (10,), (6, 9)])  # the trunk ends after step 9
def test_killed_in_trunk_or_branch_ends_in_the_same_bits(
    token_streams, tiny_model, tmp_path, monkeypatch, deaths
):
    streams, short = Streams(token_streams()), tmp_path / "short"
    run(tiny_model(), streams, short, tokens=64 * 6, **WSD)  # its trunk ends after step 4
    whole = tiny_model()
    expected = run(whole, streams, tmp_path / "whole", **WSD)

    real_step, done, left = training._step, [], list(deaths)

    def dying_step(*args):
        if left and args[-2] == left[0]:
            left.pop(0)
            raise KeyboardInterrupt
        done.append(args[-2])
        return real_step(*args)

    monkeypatch.setattr(training, "_step", dying_step)
    for _ in deaths:
        with pytest.raises(KeyboardInterrupt):
            run(tiny_model(), streams, tmp_path / "cut", seconds=0, trunk=short / TRUNK, **WSD)
    resumed = tiny_model()
    outcome = run(resumed, streams, tmp_path / "cut", seconds=0, trunk=short / TRUNK, **WSD)
    assert done == list(range(4, 12))  # nothing twice, nothing of the short run's trunk
    assert torch.equal(weights(resumed), weights(whole))
    assert outcome.curve_csv() == expected.curve_csv()
    assert checkpoints.intact(tmp_path / "cut" / TRUNK)


def test_a_damaged_trunk_is_made_again(token_streams, tiny_model, tmp_path, monkeypatch):
    streams, real_step = Streams(token_streams()), training._step

    def dying_step(*args):
        if args[-2] == 11:
            raise KeyboardInterrupt
        return real_step(*args)

    monkeypatch.setattr(training, "_step", dying_step)
    with pytest.raises(KeyboardInterrupt):
        run(tiny_model(), streams, tmp_path / "cut", seconds=0, **WSD)
    (tmp_path / "cut" / TRUNK / "optimizer.safetensors").write_bytes(b"torn")
    monkeypatch.setattr(training, "_step", real_step)
    whole, resumed = tiny_model(), tiny_model()
    run(whole, streams, tmp_path / "whole", **WSD)
    run(resumed, streams, tmp_path / "cut", seconds=0, **WSD)
    assert torch.equal(weights(resumed), weights(whole))
    assert checkpoints.intact(tmp_path / "cut" / TRUNK)


def test_a_trunk_longer_than_the_runs_own_is_refused(token_streams, tiny_model, tmp_path):
    streams = Streams(token_streams())
    run(tiny_model(), streams, tmp_path / "long", tokens=64 * 12, **WSD)
    with pytest.raises(CapgapError, match="after 9 steps, but a run of 8 steps .* shares 6"):
        run(
            tiny_model(),
            streams,
            tmp_path / "short",
            tokens=64 * 8,
            trunk=tmp_path / "long" / TRUNK,
            **WSD,
        )


def test_a_good_teacher_beats_none(token_streams, tiny_model, tmp_path):
    """On data this short of tokens, soft targets carry more than the data alone."""
    streams = Streams(token_streams())
    teacher, alone, taught = tiny_model(hidden=32, heads=4), tiny_model(seed=1), tiny_model(seed=1)
    run(teacher, streams, tmp_path / "t", tokens=64 * 90)
    without = run(alone, streams, tmp_path / "a", tokens=64 * 30)
    with_teacher = run(taught, streams, tmp_path / "b", tokens=64 * 30, teacher=teacher)
    assert with_teacher.losses[-1] < without.losses[-1]
