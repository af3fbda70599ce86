"""Budgets that share a trunk: a branch equals a whole run, killed or not."""

import pytest
import torch
from training_runs import dying, run, settings, weights

from capgap.data.token_streams import Streams
from capgap.engine import checkpoints
from capgap.engine.run_plan import plan_run
from capgap.engine.training import TRUNK
from capgap.errors import CapgapError
from capgap.records.artifacts import intact

WSD = {"schedule": "wsd", "warmup_tokens": 64 * 4, "decay_share": 0.25}


def test_wsd_is_flat_before_the_fall_whatever_the_budget():
    wsd = settings(**WSD, learning_rate=1.0)
    plan = plan_run(wsd, 64 * 100)
    assert (plan.trunk_steps, plan.trunk_tokens) == (75, 64 * 75)
    rates = [*map(plan.learning_rate, range(100))]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4:75] == [1.0] * 71
    assert rates[75] == 1.0
    assert rates[84] == pytest.approx(1 - (9 / 25) ** 0.5)
    assert rates[99] == pytest.approx(1 - (24 / 25) ** 0.5)
    assert rates[:75] == [*map(plan_run(wsd, 64 * 400).learning_rate, range(75))]
    floor = settings(**WSD, learning_rate=1.0, final_lr_share=0.5)
    assert plan_run(floor, 64 * 100).learning_rate(84) == pytest.approx(0.5 + 0.5 * (1 - 0.6))


def test_wsd_is_measured_on_the_trunk_at_points_that_all_budgets_share():
    wsd = settings(**WSD, validations=2)
    assert plan_run(wsd, 64 * 40).measured_steps == {4, 8, 16, 35, 40}
    assert plan_run(wsd, 64 * 100).measured_steps == {4, 8, 16, 32, 64, 87, 100}
    assert plan_run(settings(validations=3), 64 * 12).measured_steps == {4, 8, 12}


def test_warmup_longer_than_the_trunk_is_refused():
    with pytest.raises(CapgapError, match="falls from step 3 of 4 on"):
        plan_run(settings(**WSD), 64 * 4)


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
    token_streams, tiny_model, tmp_path, deaths
):
    streams, short = Streams(token_streams()), tmp_path / "short"
    run(tiny_model(), streams, short, tokens=64 * 6, **WSD)  # its trunk ends after step 4
    whole = tiny_model()
    expected = run(whole, streams, tmp_path / "whole", **WSD)

    done, left = [], list(deaths)
    plan = dying(lambda step: step in left and not left.remove(step), done)
    options = {"seconds": 0, "trunk": short / TRUNK, "plan": plan, **WSD}
    for _ in deaths:
        with pytest.raises(KeyboardInterrupt):
            run(tiny_model(), streams, tmp_path / "cut", **options)
    resumed = tiny_model()
    outcome = run(resumed, streams, tmp_path / "cut", **options)
    assert done == list(range(4, 12))  # nothing twice, nothing of the short run's trunk
    assert torch.equal(weights(resumed), weights(whole))
    assert outcome.curve_csv() == expected.curve_csv()
    assert intact(tmp_path / "cut" / TRUNK)


def test_a_damaged_trunk_is_made_again(token_streams, tiny_model, tmp_path):
    streams, plan = Streams(token_streams()), dying(lambda step: step == 11, [])
    with pytest.raises(KeyboardInterrupt):
        run(tiny_model(), streams, tmp_path / "cut", seconds=0, plan=plan, **WSD)
    (tmp_path / "cut" / TRUNK / "optimizer.safetensors").write_bytes(b"torn")
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
