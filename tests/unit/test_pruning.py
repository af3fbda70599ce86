"""Cutting: equal bits if nothing is removed, else the silenced model, for every family."""

import copy
import math

import numpy as np
import pytest
import torch
from pruning_models import (
    HEAD_DIM,
    HEADS,
    HIDDEN,
    LAYERS,
    MODELS,
    NEURONS,
    VOCAB,
    build,
    kept_some,
    logits,
    silenced,
    token_ids,
)
from transformers import AutoModelForCausalLM

from capgap.engine.counting import count_params
from capgap.errors import CapgapError
from capgap.pruning.families import family_of
from capgap.pruning.surgery import PER_LAYER, cut, keep_all, sizes_of

torch.set_num_threads(1)


@pytest.fixture(params=MODELS)
def model(request):
    return build(request.param)


def test_nothing_removed_is_the_same_model_bit_for_bit(model):
    before, ids = copy.deepcopy(model), token_ids()
    after = cut(model, keep_all(model))
    assert after.config.to_dict() == {**before.config.to_dict(), **_dtype_and_names(after)}
    weights = dict(after.named_parameters())
    assert weights.keys() == dict(before.named_parameters()).keys()
    assert all(torch.equal(weights[name], p) for name, p in before.named_parameters())
    assert torch.equal(logits(after, ids), logits(before, ids))


def _dtype_and_names(model):
    """What loading writes into a configuration, and keys that were implied before."""
    keys = ("dtype", "architectures", "n_inner", "head_dim", "_name_or_path")
    return {key: value for key, value in model.config.to_dict().items() if key in keys}


def test_cut_equals_silenced_units(model):
    sizes, ids = sizes_of(model), token_ids()
    groups = max(1, sizes.full.groups * 2 // 3)
    heads = groups * sizes.heads_per_group
    hidden = heads * HEAD_DIM if sizes.hidden_is_heads else 5 * heads
    kept = kept_some(model, groups, 13, hidden)
    expected, whole = logits(silenced(model, kept), ids), logits(model, ids)
    student = cut(model, kept)
    assert sizes_of(student).full == (groups, 13, hidden)
    assert sizes_of(student).params(kept.widths) == count_params(student).non_embedding
    torch.testing.assert_close(logits(student, ids), expected, rtol=2e-4, atol=2e-4)
    assert (whole - expected).abs().max() > 0.1  # something did change


def test_heads_and_neurons_equal_zeroed_output_weights():
    model, ids = build("llama-gqa-untied"), token_ids()
    kept = kept_some(model, 2, 11, HIDDEN)
    zeroed = copy.deepcopy(model)
    for i, layer in enumerate(zeroed.model.layers):
        lost = np.setdiff1d(np.arange(3), kept.groups[i])[0]
        width = HEADS // 3 * HEAD_DIM  # two query heads to a key-value head
        layer.self_attn.o_proj.weight.data[:, lost * width : (lost + 1) * width] = 0
        layer.mlp.down_proj.weight.data[:, np.setdiff1d(np.arange(NEURONS), kept.neurons[i])] = 0
    torch.testing.assert_close(
        logits(cut(model, kept), ids), logits(zeroed, ids), rtol=1e-5, atol=1e-5
    )


def test_hidden_cut_differs_from_zeroed_channels_by_the_mean_of_rmsnorm_only():
    """RMS over d of D channels = RMS over all D with weight sqrt(d/D) and eps d/D."""
    model, ids, d = build("llama-mha-tied"), token_ids(), 30
    kept = kept_some(model, HEADS, NEURONS, d)
    zeroed = silenced(model, kept, norms_over_kept=False)
    student = logits(cut(model, kept), ids)
    assert (student - logits(zeroed, ids)).abs().max() > 0.1
    norms = [m for m in zeroed.modules() if type(m).__name__ == "LlamaRMSNorm"]
    assert len(norms) == 2 * LAYERS + 1
    for norm in norms:
        norm.weight.data *= math.sqrt(d / HIDDEN)
        norm.variance_epsilon *= d / HIDDEN
    torch.testing.assert_close(student, logits(zeroed, ids), rtol=1e-5, atol=1e-5)


def test_saved_folder_loads_plainly_and_generates(model, tmp_path):
    sizes, prompt = sizes_of(model), token_ids(sequences=1, tokens=5)
    groups = max(1, sizes.full.groups * 2 // 3)
    heads = groups * sizes.heads_per_group
    student = cut(model, kept_some(model, groups, 13, heads * HEAD_DIM))
    student.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    exact = (
        {"rtol": 1e-5, "atol": 1e-5}
        if family_of(type(model).__name__).experts
        else {"rtol": 0, "atol": 0}
    )
    torch.testing.assert_close(logits(loaded, prompt), logits(student, prompt), **exact)
    # The cache of keys and values has the student's shape: as without it, the likeliest token wins.
    with torch.no_grad():
        ids = loaded.generate(prompt, do_sample=False, max_new_tokens=6, min_new_tokens=6)
    likeliest = logits(student, ids)[0, 4:-1]
    likeliest[:, student.config.eos_token_id] = -math.inf
    assert ids[0, 5:].tolist() == likeliest.argmax(-1).tolist()


def test_gqa_stays_consistent_and_ties_stay():
    model = build("llama-gqa-untied")
    query = model.model.layers[1].self_attn.q_proj.weight.detach().clone()
    model.generation_config.eos_token_id = 7
    kept = kept_some(model, 2, 8, 40)
    student = cut(model, kept)
    assert student.generation_config.eos_token_id == 7
    config = student.config
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (4, 2, 8)
    rows = np.concatenate([np.arange(g * 16, g * 16 + 16) for g in kept.groups[1]])
    expected = query[rows][:, kept.hidden]
    assert torch.equal(student.model.layers[1].self_attn.q_proj.weight, expected)
    assert student.lm_head.weight is not student.model.embed_tokens.weight
    assert not config.tie_word_embeddings

    tied = build("llama-mha-tied")
    tied = cut(tied, kept_some(tied, 4, 8, 40))
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    assert tied.config.tie_word_embeddings


def test_cut_gives_up_the_original_as_it_goes():
    model = build("llama-gqa-untied")
    cut(model, kept_some(model, 2, 8, 40))
    assert sum(parameter.numel() for parameter in model.parameters()) == 0


def test_unknown_architectures_and_tensors_are_refused_by_name():
    with pytest.raises(CapgapError, match=r"BloomForCausalLM.*LlamaForCausalLM.*Qwen3ForCausalLM"):
        family_of("BloomForCausalLM")
    model = build("llama-mha-tied")
    model.model.layers[0].mlp.extra = torch.nn.Parameter(torch.ones(3))
    with pytest.raises(CapgapError, match=r"model\.layers\.0\.mlp\.extra"):
        sizes_of(model)


# --- depth and vocabulary ---------------------------------------------------------------------------


def test_dropping_a_layer_equals_the_model_that_skips_it(model):
    ids, family = token_ids(), family_of(type(model).__name__)
    kept = keep_all(model)._replace(layers=np.array([1]))
    skipping = copy.deepcopy(model)
    layers = skipping.get_submodule(family.layers)
    del layers[0]
    for key in PER_LAYER:  # by which the model's code looks up what a layer's number is
        if getattr(skipping.config, key, None) is not None:
            setattr(skipping.config, key, getattr(skipping.config, key)[1:])
    expected, whole = logits(skipping, ids), logits(model, ids)
    student = cut(model, kept)
    assert student.config.num_hidden_layers == len(student.get_submodule(family.layers)) == 1
    assert torch.equal(logits(student, ids), expected)
    assert (whole - expected).abs().max() > 0.1
    assert count_params(student).non_embedding == sizes_of(student).params(sizes_of(student).full)


def test_depth_and_width_together_take_the_units_of_the_right_layer():
    model, ids = build("llama-gqa-untied"), token_ids()
    kept = kept_some(model, 2, 11, HIDDEN)
    other = copy.deepcopy(model)
    student = cut(model, kept._replace(layers=np.array([1])))
    narrow = cut(other, kept)
    del narrow.model.layers[0]
    assert torch.equal(logits(student, ids), logits(narrow, ids))


def test_kinds_of_layers_follow_the_layers_that_stay():
    model = build("qwen2")
    model.config.layer_types = ["full_attention", "sliding_attention"]
    student = cut(model, keep_all(model)._replace(layers=np.array([1])))
    assert student.config.layer_types == ["sliding_attention"]


def test_count_of_any_depth_is_that_of_the_cut_model(model):
    sizes, full = sizes_of(model), sizes_of(model).full
    for layers in (1, 2):
        student = cut(copy.deepcopy(model), keep_all(model)._replace(layers=np.arange(layers)))
        params = count_params(student)
        assert sizes.params(full, layers) == params.non_embedding
        assert sizes.total(full, layers) == params.total


def test_trimmed_rows_are_the_kept_rows(model):
    ids, kept = token_ids(), np.array([0, 1, 2, 5, *range(20, VOCAB)])
    inverse = np.full(VOCAB, -1)
    inverse[kept] = np.arange(len(kept))
    known = torch.isin(ids, torch.from_numpy(kept))
    ids = torch.where(known, ids, 5)
    expected = logits(model, ids)[..., kept]
    student = cut(model, keep_all(model)._replace(vocab=kept))
    assert student.config.vocab_size == len(kept)
    got = logits(student, torch.from_numpy(inverse)[ids])
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    tied = student.get_output_embeddings().weight is student.get_input_embeddings().weight
    assert tied == student.config.tie_word_embeddings
