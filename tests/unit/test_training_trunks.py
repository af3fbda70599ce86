"""Budgets that share a trunk: a branch equals a whole run, killed or not."""

import pytest
import torch
from training_runs import run, settings, weights

from capgap.data.token_streams import Streams
from capgap.engine import checkpoints, training
from capgap.engine.lr_schedule import learning_rate_at, measured_steps, trunk_steps
from capgap.engine.training import TRUNK
from capgap.errors import CapgapError
from capgap.records.artifacts import intact

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

    done, left = [], list(deaths)

    def dying(step, *args):
        if left and step == left[0]:
            left.pop(0)
            raise KeyboardInterrupt
        done.append(step)
        return learning_rate_at(step, *args)

    monkeypatch.setattr(training, "learning_rate_at", dying)
    for _ in deaths:
        with pytest.raises(KeyboardInterrupt):
            run(tiny_model(), streams, tmp_path / "cut", seconds=0, trunk=short / TRUNK, **WSD)
    resumed = tiny_model()
    outcome = run(resumed, streams, tmp_path / "cut", seconds=0, trunk=short / TRUNK, **WSD)
    assert done == list(range(4, 12))  # nothing twice, nothing of the short run's trunk
    assert torch.equal(weights(resumed), weights(whole))
    assert outcome.curve_csv() == expected.curve_csv()
    assert intact(tmp_path / "cut" / TRUNK)


def test_a_damaged_trunk_is_made_again(token_streams, tiny_model, tmp_path, monkeypatch):
    streams = Streams(token_streams())

    def dying(step, *args):
        if step == 11:
            raise KeyboardInterrupt
        return learning_rate_at(step, *args)

    monkeypatch.setattr(training, "learning_rate_at", dying)
    with pytest.raises(KeyboardInterrupt):
        run(tiny_model(), streams, tmp_path / "cut", seconds=0, **WSD)
    (tmp_path / "cut" / TRUNK / "optimizer.safetensors").write_bytes(b"torn")
    monkeypatch.setattr(training, "learning_rate_at", learning_rate_at)
    whole, resumed = tiny_model(), tiny_model()
    run(whole, streams, tmp_path / "whole", **WSD)
    run(resumed, streams, tmp_path / "cut", seconds=0, **WSD)
    assert torch.equal(weights(resumed), weights(whole))
    assert intact(tmp_path / "cut" / TRUNK)


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
