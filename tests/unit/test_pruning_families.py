"""What is special about families: experts, numbered layers and heads, widths that suit kernels."""

from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from pruning_models import LAYERS, NEURONS, build, falcon, gpt2, kept_some, logits, token_ids

from capgap.config import Depth, ModelShape, Prune
from capgap.cost.architectures import FAMILY_OF_CLASS
from capgap.engine import time_left
from capgap.engine.counting import count_params, forward_flops
from capgap.engine.forward import output_form
from capgap.errors import CapgapError
from capgap.pruning.families import FAMILIES
from capgap.pruning.importance import measure
from capgap.pruning.solver import Target, meet, solve_shape
from capgap.pruning.surgery import cut, keep_all, sizes_of

torch.set_num_threads(1)


def test_at_least_sixteen_families_are_pruned():
    assert len(FAMILIES) >= 16


# --- experts ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "routed", "width"), [("mixtral", 2, 20), ("qwen3-moe", 3, 12)])
def test_parameters_that_a_token_uses_by_hand(name, routed, width):
    model = build(name)
    counted, expert = count_params(model), 3 * 48 * width
    assert counted.mlp == LAYERS * (NEURONS * expert + NEURONS * 48)  # experts and router
    assert counted.active == counted.non_embedding - LAYERS * (NEURONS - routed) * expert
    dense = count_params(build("llama-gqa-untied"))
    assert dense.active is None
    idle = counted.non_embedding - counted.active
    plain = 2 * (counted.attention + counted.mlp + 128 * 48) + 2 * LAYERS * 48 * 10
    assert forward_flops(model, 10) == plain - 2 * idle


@pytest.mark.parametrize(("name", "routed"), [("mixtral", 2), ("qwen3-moe", 3)])
def test_as_many_experts_stay_as_a_token_is_routed_to(name, routed):
    sizes = sizes_of(build(name))
    assert (sizes.mlp_unit, sizes.least_neurons, sizes.full.neurons) == ("experts", routed, NEURONS)
    with pytest.raises(CapgapError, match=f"neurons 1: the nearest possible is {routed}"):
        solve_shape(sizes, {"neurons": 1})
    small = meet(sizes, Target("sparsity", 0.97), Depth())
    assert small.widths.neurons >= routed
    half = meet(sizes, Target("params", sizes.params(sizes.full) // 2), Depth())
    assert abs(half.relative_error) < 0.05
    assert f"experts {half.widths.neurons} of {NEURONS}" in half.describe(sizes)


def test_importance_of_an_expert_is_the_slope_of_the_loss_in_its_weight():
    model = build("mixtral")
    ids = token_ids(sequences=1, tokens=9)
    measured = measure(model, ids[:, :-1], ids[:, 1:])
    slopes, step = [], 1e-3
    for expert in range(8):
        losses = []
        for scale in (1 + step, 1 - step):
            tensor = model.model.layers[0].mlp.experts.down_proj
            kept = tensor[expert].clone()
            with torch.no_grad():
                tensor[expert] *= scale
                found = logits(model, ids[:, :-1])
                tensor[expert] = kept
            losses.append(torch.nn.functional.cross_entropy(found[0].double(), ids[0, 1:]))
        slopes.append(((losses[0] - losses[1]) / (2 * step)).abs().item())
    got = measured.neurons[0][:8]
    np.testing.assert_allclose(
        got / np.linalg.norm(got), slopes / np.linalg.norm(slopes), atol=2e-3
    )


def test_an_expert_that_no_token_is_routed_to_scores_least():
    model = build("qwen3-moe")
    with torch.no_grad():
        model.model.layers[0].mlp.gate.weight[7] = 0
        model.model.layers[0].mlp.gate.weight[7, 0] = 0  # a logit of zero among larger ones
        model.model.layers[0].mlp.gate.weight[[1, 2, 3]] *= 100
    ids = token_ids(sequences=2, tokens=12)
    for criterion in ("mask_gradient", "activation"):
        scores = measure(model, ids[:, :-1], ids[:, 1:], criterion).neurons[0]
        assert scores[7] == scores.min() == 0
        assert (scores[[1, 2, 3]] > 0).any()


# --- layers and heads whose numbers count -------------------------------------------------------


def numbered():
    torch.manual_seed(0)
    model = gpt2(scale_attn_by_inverse_layer_idx=True)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def test_layers_that_depend_on_their_number_all_stay():
    sizes = sizes_of(numbered())
    with pytest.raises(CapgapError, match="scale_attn_by_inverse_layer_idx"):
        meet(sizes, Target("shape", {"layers": 1}), Depth())
    with pytest.raises(CapgapError, match="depth: keep"):
        meet(sizes, Target("sparsity", 0.5), Depth(depth="drop_middle", layers=1))
    meet(sizes, Target("sparsity", 0.5), Depth())
    with pytest.raises(CapgapError, match="scale_attn_by_inverse_layer_idx"):
        cut(numbered(), keep_all(numbered())._replace(layers=np.array([1])))
    assert meet(sizes_of(build("gpt2")), Target("shape", {"layers": 1}), Depth()).layers == 1


def test_heads_that_depend_on_their_number_are_not_cut():
    with pytest.raises(
        CapgapError, match=r"alibi is set .* FalconForCausalLM|FalconForCausalLM: alibi"
    ):
        sizes_of(falcon(multi_query=False, alibi=True))


def test_norms_inside_heads_that_are_not_declared_are_refused_by_name():
    from pruning_models import llama_like
    from transformers import StableLmConfig, StableLmForCausalLM

    model = llama_like(StableLmForCausalLM, StableLmConfig, qk_layernorm=True)
    with pytest.raises(CapgapError, match=r"self_attn\.q_layernorm"):
        sizes_of(model)


def test_heads_that_share_one_key_are_one_group():
    model = falcon(multi_query=True)
    assert sizes_of(model).full.groups == 1
    output_form(model.eval())
    ids = token_ids()
    student = cut(build_random(model), kept_some(model, 1, 13, 48))
    assert logits(student, ids).shape == (2, 12, 128)


def build_random(model):
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter))
    return model.eval()


# --- widths that suit kernels and quantisers ----------------------------------------------------


@pytest.mark.parametrize("multiple", [8, 16, 24])
@pytest.mark.parametrize("share", [0.3, 0.5, 0.7])
def test_widths_are_multiples(multiple, share):
    """A model of 48 channels, heads of 8 and 20 neurons, made wider."""
    from pruning_models import llama

    model = llama(kv_heads=3, intermediate_size=240)
    sizes = sizes_of(model)
    settings = Prune(multiple_of=multiple)
    for target in (
        Target("params", round(share * sizes.params(sizes.full))),
        Target("total", round(share * sizes.total(sizes.full))),
        Target("sparsity", 1 - share),
    ):
        kept = meet(sizes, target, settings.cutting()).widths
        heads = kept.groups * sizes.heads_per_group * sizes.head_dim
        assert [width % multiple for width in (kept.hidden, kept.neurons, heads)] == [0, 0, 0]


def test_a_multiple_that_no_width_has_is_refused():
    sizes = sizes_of(build("llama-gqa-untied"))
    with pytest.raises(CapgapError, match="multiple_of 64: the model has 48 channels of heads"):
        meet(sizes, Target("sparsity", 0.5), Depth(multiple_of=64))


# --- progress -----------------------------------------------------------------------------------


def test_scoring_and_cutting_report_how_much_is_done_and_left(monkeypatch, capsys):
    clock = iter(range(0, 10_000, 7))  # seconds, at every look
    monkeypatch.setattr(time_left.time, "monotonic", lambda: next(clock))
    model, ids = build("llama-gqa-untied"), token_ids(sequences=4, tokens=9)
    measure(model, ids[:, :-1], ids[:, 1:], micro_batch_tokens=8)
    said = capsys.readouterr().out.splitlines()
    # 7 s to the first look, 14 s after one of four batches, 21 s after two, 28 s after three
    assert said == [
        "mask_gradient: batch 1 of 4  left 0:42",
        "mask_gradient: batch 2 of 4  left 0:21",
        "mask_gradient: batch 3 of 4  left 0:09",
    ]
    cut(model, keep_all(model))
    assert capsys.readouterr().out.startswith("cut tensor 1 of ")


def test_the_docs_name_every_family():
    text = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    assert [
        name for name in FAMILIES if f"`{name}`" not in text.partition("## All classes")[0]
    ] == []


def test_the_plan_counts_every_family():
    assert [name for name in FAMILIES if name not in FAMILY_OF_CLASS] == []
    assert set(FAMILY_OF_CLASS.values()) <= set(
        get_args(ModelShape.model_fields["family"].annotation)
    )
