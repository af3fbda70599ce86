"""The solver's rule: targets met, proportions kept, limits named."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from pruning_models import build
from transformers import LlamaForCausalLM

from capgap.config import Calibration, Depth, Prune
from capgap.config.shapes import LlamaShape
from capgap.engine.models import llama_config
from capgap.errors import CapgapError
from capgap.pruning.solver import (
    Target,
    Widths,
    meet,
    proportional_layers,
    solve,
    solve_shape,
    solve_sparsity,
)
from capgap.pruning.surgery import pruned_config, sizes_of

VOCAB = 128


def shape(layers=4, hidden=96, heads=6, kv_heads=None, neurons=256, head_dim=16):
    kv_heads = kv_heads or heads
    return LlamaShape(layers, hidden, heads, kv_heads, head_dim, neurons, vocab=VOCAB, tied=True)


def meta(shape):
    """A model of a shape, without memory for its weights."""
    with torch.device("meta"):
        return LlamaForCausalLM(llama_config(shape, max_positions=64, bos_id=0, eos_id=0))


def with_widths(shape, widths):
    per_group = shape.heads // shape.kv_heads
    return replace(
        shape,
        hidden=widths.hidden,
        heads=widths.groups * per_group,
        kv_heads=widths.groups,
        intermediate=widths.neurons,
    )


SHAPES = [
    shape(hidden=48, heads=3, neurons=128),
    shape(hidden=64, heads=4, neurons=176),
    shape(hidden=96, heads=6, neurons=256),
    shape(hidden=96, heads=6, kv_heads=2, neurons=256),
    shape(hidden=144, heads=9, kv_heads=3, neurons=384),
    shape(hidden=144, heads=9, neurons=384),
]


@pytest.mark.parametrize("full", SHAPES, ids=str)
def test_solver_hits_targets_within_one_percent_near_the_papers_fractions(full):
    model = meta(full)
    sizes, count = sizes_of(model), full.params()["non_embedding"]
    assert sizes.params(sizes.full) == count
    for share in np.linspace(0.15, 0.95, 17):
        target = round(share * count)
        solution = solve(sizes, target)
        student = with_widths(full, solution.widths)
        assert solution.params_non_embedding == student.params()["non_embedding"]
        assert abs(solution.params_non_embedding - target) <= 0.01 * target
        ratio = solution.params_non_embedding / target
        assert solution.relative_error == pytest.approx(ratio - 1, abs=1e-12)
        # Hugging Face accepts it, with the head dimension unchanged.
        config = pruned_config(model, solution.widths)
        assert (config.head_dim, config.num_hidden_layers) == (16, 4)
        assert config.hidden_size % config.num_attention_heads == 0
        # Widths come as near to sqrt(share) as half a head allows, and neurons make up for it.
        fraction = math.sqrt(share)
        assert abs(solution.widths.hidden / full.hidden - fraction) < 0.2
        assert abs(solution.widths.groups / full.kv_heads - fraction) < 0.6 / full.kv_heads + 0.05


def test_solver_minimises_what_it_says():
    full = shape(layers=2, hidden=32, heads=4, neurons=40, head_dim=8)
    sizes, count = sizes_of(meta(full)), full.params()["non_embedding"]
    for share in (0.3, 0.55, 0.8):
        target, cost = round(share * count), {}

        def error(widths, target=target):
            return abs(with_widths(full, widths).params()["non_embedding"] / target - 1)

        for groups in range(1, 5):
            for hidden in range(groups, 33, groups):
                choices = [Widths(groups, neurons, hidden) for neurons in range(1, 41)]
                best = min(choices, key=error)
                if error(best) <= 0.01:
                    logs = np.log(np.array(best) / (4, 40, 32)) - 0.5 * np.log(share)
                    cost[best] = (logs**2).sum() + (50 * error(best)) ** 2
        assert len(cost) > 2
        assert cost[solve(sizes, target).widths] == pytest.approx(min(cost.values()), rel=1e-3)


def test_solver_keeps_large_models_on_round_widths():
    llama2_7b = LlamaShape(32, 4096, 32, 32, 128, 11008, vocab=32000, tied=False)
    sizes = sizes_of(meta(replace(llama2_7b, vocab=8)))
    full = sizes.params(sizes.full)
    assert full == 6_476_271_616  # 6,738,415,616 parameters less 2 x 32000 x 4096
    solution = solve(sizes, 2_600_000_000)
    assert abs(solution.relative_error) < 0.0025
    assert solution.widths.hidden % 32 == solution.widths.neurons % 64 == 0
    fractions = np.array(solution.widths) / np.array(sizes.full)
    np.testing.assert_allclose(fractions, math.sqrt(2.6e9 / full), atol=0.02)


def test_solver_at_and_beyond_the_limits():
    full = shape()
    sizes, count = sizes_of(meta(full)), full.params()["non_embedding"]
    total = full.params()["total"]
    assert solve(sizes, count) == (sizes.full, 4, count, total, 0.0)
    assert solve(sizes, total, with_embeddings=True) == (sizes.full, 4, count, total, 0.0)
    with pytest.raises(CapgapError, match=rf"the model has only {count:,}, .* nearest possible"):
        solve(sizes, count + 1)
    fewest = with_widths(full, Widths(1, 2, 1)).params()["non_embedding"]  # neurons step by two
    assert solve(sizes, fewest).widths == Widths(1, 2, 1)
    # Just above the smallest, where the nearest number of neurons would round up.
    assert solve(sizes, fewest + 1).params_non_embedding >= fewest
    with pytest.raises(CapgapError, match=rf"they have {fewest:,}, which is the nearest possible"):
        solve(sizes, fewest - 1)


def test_solver_counts_embeddings_where_asked():
    full = shape(hidden=144, heads=9, kv_heads=3, neurons=384)
    sizes = sizes_of(meta(full))
    assert sizes.total(sizes.full) == full.params()["total"]
    for share in (0.3, 0.6, 0.9):
        target = round(share * full.params()["total"])
        solution = solve(sizes, target, with_embeddings=True)
        student = with_widths(full, solution.widths).params()
        assert solution.params_total == student["total"]
        assert solution.params_non_embedding == student["non_embedding"]
        assert abs(solution.params_total / target - 1) <= 0.01
        assert solution.relative_error == pytest.approx(solution.params_total / target - 1)
    with pytest.raises(CapgapError, match=r"parameters with embeddings: the model has only"):
        solve(sizes, full.params()["total"] + 1, with_embeddings=True)


def test_solver_at_a_given_depth():
    full = shape(layers=6)
    sizes = sizes_of(meta(full))
    target = round(0.4 * full.params()["non_embedding"])
    solution = solve(sizes, target, layers=3)
    student = replace(with_widths(full, solution.widths), layers=3).params()
    assert solution.layers == 3
    assert solution.params_non_embedding == student["non_embedding"]
    assert abs(student["non_embedding"] / target - 1) <= 0.01
    # 0.4 of all is 0.8 of three layers, so widths are near sqrt(0.8).
    assert abs(solution.widths.hidden / full.hidden - math.sqrt(0.8)) < 0.1
    three = replace(full, layers=3).params()["non_embedding"]
    with pytest.raises(CapgapError, match=rf"with 3 of its 6 layers has only {three:,}"):
        solve(sizes, three + 1, layers=3)
    with pytest.raises(CapgapError, match=r"layers 7: .* nearest possible is 6"):
        solve(sizes, target, layers=7)


def test_proportional_depth_gives_the_published_shape():
    """Llama2-7B at 40 % keeps 24 of 32 layers and three quarters of every width, as MiniMA-3B."""
    assert proportional_layers(32, 0.4) == 24
    assert proportional_layers(12, 1.0) == 12
    assert proportional_layers(12, 1e-6) == 1
    llama2_7b = LlamaShape(32, 4096, 32, 32, 128, 11008, vocab=8, tied=False)
    sizes = sizes_of(meta(llama2_7b))
    target = Target("params", round(0.42 * sizes.params(sizes.full)))
    solution = meet(sizes, target, Depth(depth="keep_middle"))
    assert (solution.layers, solution.widths.groups) == (24, 24)
    assert abs(solution.widths.hidden - 3072) <= 64
    assert abs(solution.widths.neurons - 8192) <= 256


def test_sparsity_keeps_the_root_of_what_is_left_on_every_axis():
    full = shape(layers=6, hidden=96, heads=6, neurons=256)
    sizes = sizes_of(meta(full))
    for sparsity in (0.0, 0.3, 0.6):
        fraction = math.sqrt(1 - sparsity)
        widths = solve_sparsity(sizes, sparsity).widths
        assert widths.groups == round(6 * fraction)
        assert abs(widths.neurons - 256 * fraction) <= 1
        assert abs(widths.hidden - 96 * fraction) <= widths.groups / 2
        assert widths.hidden % widths.groups == 0
    assert solve_sparsity(sizes, 0.0).widths == sizes.full
    assert solve_sparsity(sizes, 0.0).relative_error == 0
    half = solve_sparsity(sizes, 0.5, layers=3)  # half the layers are half the parameters
    assert half.widths == sizes.full
    deep = meet(sizes, Target("sparsity", 0.6), Depth(depth="drop_middle"))
    assert deep.layers == proportional_layers(6, 0.4) == 4
    for value in (-0.1, 1.0):
        with pytest.raises(CapgapError, match="sparsity"):
            meet(sizes, Target("sparsity", value), Depth(depth="drop_middle"))


def test_explicit_shapes_as_given_or_refused_with_the_nearest():
    full = shape(layers=4, hidden=144, heads=9, kv_heads=3, neurons=384)
    sizes = sizes_of(meta(full))
    solution = solve_shape(sizes, {"layers": 2, "hidden": 72, "heads": 6, "neurons": 100})
    assert (solution.layers, solution.widths) == (2, Widths(2, 100, 72))
    assert solve_shape(sizes, {}).widths == sizes.full
    assert solve_shape(sizes, {"kv_heads": 1}).widths == Widths(1, 384, 144)
    student = replace(with_widths(full, solution.widths), layers=2).params()
    assert solution.params_total == student["total"]
    for wrong, message in [
        ({"hidden": 73, "heads": 6}, r"hidden 73: must be a multiple of the heads.* is 72"),
        ({"heads": 5}, r"heads 5: 2 key-value head\(s\) .* nearest possible is 6"),
        ({"heads": 6, "kv_heads": 3}, r"heads 6: 3 key-value .* nearest possible is 9"),
        ({"neurons": 385}, r"neurons 385: the nearest possible is 384"),
        ({"layers": 5, "neurons": 0}, r"layers 5: .* is 4; neurons 0: the nearest possible is 1"),
        ({"depth": 5}, r"unknown depth"),
    ]:
        with pytest.raises(CapgapError, match=message):
            solve_shape(sizes, wrong)
    heads_first = sizes_of(build("gpt2"))
    with pytest.raises(CapgapError, match=r"hidden 48: must be heads x head dimension.* is 32"):
        solve_shape(heads_first, {"heads": 4})


def test_what_decides_the_scores_and_what_decides_the_cut_share_the_calibration_text_alone():
    """So that scores are computed once, whatever depth is asked for later."""
    prune = Prune(criterion="activation", seed=3, depth="drop_middle", layers=4)
    scoring, cutting = prune.scoring().model_dump(), prune.cutting().model_dump()
    assert scoring.keys() & cutting.keys() == Calibration.model_fields.keys()
    assert scoring | cutting == prune.model_dump()
    assert Prune(criterion="activation", seed=3).scoring() == prune.scoring()


def test_in_proportion_the_students_of_a_family_are_a_family():
    """Widths w, w/4 heads and 2w neurons in 4 layers have 40 w^2 + 9 w parameters."""

    def teacher(width, neurons=None):
        heads = width // 4
        return sizes_of(meta(shape(4, width, heads, heads, neurons or 2 * width, head_dim=4)))

    near = Depth(widths="proportional")
    for width in (24, 44, 60):
        for target, expected in ((6_000, 12), (10_000, 16), (12_500, 16), (23_000, 24)):
            kept = meet(teacher(width), Target("params", target), near)
            assert kept.widths == (expected // 4, 2 * expected, expected)
            assert kept.params_non_embedding == 40 * expected**2 + 9 * expected
            assert kept.relative_error == pytest.approx(kept.params_non_embedding / target - 1)
    with pytest.raises(CapgapError, match="about 100,000 .* only 676, 2,632, .*nearest_count"):
        meet(teacher(24), Target("params", 100_000), near)
    with pytest.raises(
        CapgapError, match="6 key-value head.*, 49 neurons .* there are only 23,544"
    ):
        meet(teacher(24, neurons=49), Target("params", 10_000), near)
