"""Pruning in several rounds: the same shape in the end, equal ratios on the way, and its settings."""

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from pruning_models import MODELS, build

from capgap.config import Depth, run_grid
from capgap.config.study_file import load_study
from capgap.cost.architectures import pretrained_architecture
from capgap.cost.job_costs import StudyCost
from capgap.errors import CapgapError
from capgap.pruning.solver import Target, meet, meet_halfway, solve_shape
from capgap.pruning.surgery import pruned_config, sizes_of

TINY = Path(__file__).parents[1] / "tiny/config.yaml"


def in_rounds(sizes, end, rounds):
    """What is left after every cut."""
    found = []
    for left in range(rounds, 0, -1):
        found.append(meet_halfway(sizes, end, left))
        sizes = replace(sizes, full=found[-1].widths, layers=found[-1].layers)
    return found


def wide_sizes():
    """A model with so many possible widths that any ratio is nearly met."""
    shape = load_study(yaml.safe_load(TINY.read_text())).teachers["t16k"]
    shape = shape.model_copy(
        update={"layers": 64, "hidden": 6400, "heads": 100, "intermediate": 16000}
    )
    return pretrained_architecture(shape, vocab=300).sizes


def test_widths_and_layers_shrink_by_equal_ratios_and_end_where_one_cut_ends():
    sizes, how = wide_sizes(), Depth(depth="keep_middle", layers=27)
    end = meet(sizes, Target("params", sizes.params(sizes.full) // 8), how)
    assert in_rounds(sizes, end, 1) == [end]
    first, second, third = in_rounds(sizes, end, 3)
    assert third == end
    assert [first.layers, second.layers, third.layers] == [48, 36, 27]  # 64 (3/4)^n
    for width, full in enumerate(sizes.full):
        ratio = (end.widths[width] / full) ** (1 / 3)
        assert first.widths[width] / full == pytest.approx(ratio, rel=0.02)
        assert second.widths[width] / first.widths[width] == pytest.approx(ratio, rel=0.02)


@pytest.mark.parametrize("name", MODELS)
def test_every_family_has_the_shapes_between(name):
    """Each is one that the class accepts, and contains the next."""
    model = build(name)
    sizes = sizes_of(model)
    end = meet(sizes, Target("sparsity", 0.7), Depth())
    found = in_rounds(sizes, end, 3)
    assert found[-1] == end
    before = sizes.full
    for solution in found:
        groups, neurons, hidden = solution.widths
        shape = {"kv_heads": groups, "neurons": neurons, "hidden": hidden}
        assert solve_shape(sizes, shape).widths == solution.widths
        config = pruned_config(model, solution.widths)
        assert sum(p.numel() for p in type(model)(config).parameters()) == solution.params_total
        pairs = zip(end.widths, solution.widths, before, strict=True)
        assert all(least <= width <= most for least, width, most in pairs)
        before = solution.widths


def test_multiples_are_kept_at_the_end():
    sizes = wide_sizes()
    end = meet(sizes, Target("params", sizes.params(sizes.full) // 8), Depth(multiple_of=128))
    assert in_rounds(sizes, end, 2)[-1] == end
    assert end.widths.hidden % 128 == 0


def test_no_cut_at_all_is_refused():
    sizes = wide_sizes()
    with pytest.raises(CapgapError, match="rounds_left is 0"):
        meet_halfway(sizes, meet(sizes, Target("sparsity", 0.5), Depth()), 0)


# --- settings ---------------------------------------------------------------------------------------


def tiny(**prune):
    data = yaml.safe_load(TINY.read_text())
    data["prune"].update(prune)
    return data


@pytest.mark.parametrize(
    ("prune", "said"),
    [
        ({"rounds": 2}, "round_tokens is needed with 2 rounds"),
        ({"round_tokens": "2k"}, "round_tokens is 2000, but with one round nothing is trained"),
        (
            {"rounds": 0, "round_tokens": "2k"},
            "prune.rounds: input should be greater than or equal",
        ),
        (
            {"rounds": 2, "round_tokens": 100},
            "prune.round_tokens: 100 is less than distill.batch_tokens",
        ),
    ],
)
def test_impossible_rounds_are_refused_by_key(prune, said):
    with pytest.raises(CapgapError) as error:
        load_study(tiny(**prune))
    assert said in str(error.value)


def test_a_warm_up_longer_than_a_round_is_refused():
    data = tiny(rounds=2, round_tokens="2k")
    data["distill"].update(schedule="wsd", warmup_tokens="3k")
    with pytest.raises(
        CapgapError, match=r"prune\.round_tokens: 2000 is less than distill\.warmup_"
    ):
        load_study(data)


def test_no_two_rounds_or_replicas_read_the_text_in_one_order():
    study = load_study(tiny(rounds=3, round_tokens="2k"))
    seeds = {run_grid.round_seed(study, n, level) for n in (1, 2) for level in (None, 1, 2)}
    assert len(seeds) == 6
    assert min(seeds) > max(study.grid.seeds)
    data = tiny(rounds=2, round_tokens="2k")
    data["distill"].update(schedule="wsd", warmup_tokens="1k")
    assert load_study(data).round_stage().schedule == "cosine"  # nothing goes on from its trunk


# --- plan -------------------------------------------------------------------------------------------


def test_the_plan_counts_every_round():
    plain, study = (load_study(tiny(**more)) for more in ({}, {"rounds": 3, "round_tokens": "2k"}))
    before, cost = StudyCost(plain), StudyCost(study)
    jobs = {(job.rule, job.output): job for job in cost.jobs}
    inits = {job.output for job in before.jobs if job.rule == "prune_student"}
    for rule in ("cut_round", "distill_round", "score_round"):
        assert sum(name == rule for name, _ in jobs) == 2 * len(inits)
    assert {job.output for job in before.jobs} <= {output for _, output in jobs}
    made = set()
    for job in cost.jobs:  # each after the ones it needs
        assert all(need in made for need in job.needs), job
        made.add(job.output)
    root = "results/tiny/inits/3k/pruned-t16k"
    trained = jobs["distill_round", f"{root}/round-2/model/manifest.json"]
    assert trained.work[0].tokens == 1792  # 7 whole steps of 256
    last = jobs["prune_student", f"{root}/model/manifest.json"]
    assert f"{root}/round-2/model/manifest.json" in last.needs
    assert f"{root}/round-2/importance/manifest.json" in last.needs
    whole, first, second, end = cost.cuts("3k", "pruned-t16k")
    assert (whole, end) == before.cuts("3k", "pruned-t16k")
    sizes = [model.non_embedding for model in (whole, first, second, end)]
    assert sizes == sorted(sizes, reverse=True)
    steps = [math.log(a / b) for a, b in pairwise(sizes)]
    assert max(steps) < 1.6 * min(steps)
