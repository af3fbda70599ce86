"""Refit of what a cut leaves: exact where the rest can say all, refused by name where unknown."""

import copy

import numpy as np
import pytest
import torch
from pruning_models import (
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

from capgap.errors import CapgapError
from capgap.pruning.families import family_of
from capgap.pruning.least_squares import Regression
from capgap.pruning.refit import check_known, refit
from capgap.pruning.residual_basis import kind_of, principal_basis
from capgap.pruning.surgery import Kept, channels, cut, keep_all, sizes_of

torch.set_num_threads(1)

TEXT = token_ids(sequences=24, tokens=16, seed=5)


def refitted(model, kept, *, text=TEXT, rows=8):
    student = cut(copy.deepcopy(model), kept)
    refit(student, copy.deepcopy(model), kept, text, rows)
    return student


@pytest.fixture(params=MODELS)
def model(request):
    return build(request.param)


# --- exactness --------------------------------------------------------------------------------------


def test_nothing_cut_is_the_same_model_bit_for_bit(model):
    weights = dict(refitted(model, keep_all(model)).named_parameters())
    assert all(torch.equal(weights[name], p) for name, p in model.named_parameters())


def copies(of, kept, random):
    """For every unit the kept unit that it copies; a kept one copies itself, all as often."""
    source = np.arange(of)
    rest = np.setdiff1d(source, kept)
    source[rest] = random.permutation(np.resize(kept, len(rest)))
    return source


def made_redundant(model, kept):
    """Every unit that is not kept becomes a copy of a kept one, in an RMSNorm model a scaled one.

    What reads the units, and norms' weights, stay as they are: the copies are read differently.
    """
    family, sizes, random = family_of(type(model).__name__), sizes_of(model), np.random.default_rng(4)
    layer_norm = any(isinstance(module, torch.nn.LayerNorm) for module in model.modules())
    scale = 1.0 if layer_norm else -0.7
    hidden = copies(sizes.full.hidden, kept.hidden, random)
    inner = [
        {kind: copies(getattr(sizes.full, kind), getattr(kept, kind)[i], random)
         for kind in ("groups", "neurons")}
        for i in range(sizes.layers)
    ]  # fmt: skip
    norms = {f"{name}.{what}" for side in family.norms for name in side for what in ("weight", "bias")}
    for name, parameter in model.named_parameters():
        kinds, layer = family.kinds(name)
        if any(name.endswith(norm) for norm in norms):
            continue
        writes = len(kinds) == 1 or name in family.outer_embedding or family.attention_out in name
        writes = writes or family.mlp_out in name
        for dim, (repeats, kind) in enumerate(kinds):
            if kind == "hidden" and writes and name != "lm_head.weight":
                source, by = hidden, torch.tensor(np.where(hidden == np.arange(HIDDEN), 1.0, scale))
            elif kind in ("groups", "neurons") and not (writes and len(kinds) == 2):
                source, by = inner[layer][kind], torch.ones(1)
                if "v_proj" in name or "up_proj" in name:
                    by = torch.tensor(np.where(source == np.arange(len(source)), 1.0, 0.6))
                    by = by.repeat_interleave(parameter.shape[dim] // len(source))
            else:
                continue
            places = channels(source, len(source), repeats, parameter.shape[dim])
            shape = [-1 if d == dim else 1 for d in range(parameter.ndim)]
            with torch.no_grad():
                parameter.copy_(parameter.index_select(dim, places) * by.float().reshape(shape))
    return model


def halved(model):
    """Half of the hidden channels and, where there are several, about half of groups and neurons."""
    sizes = sizes_of(model)
    groups = max(1, sizes.full.groups * 2 // 3)
    if sizes.hidden_is_heads:
        groups = sizes.full.groups // 2
    return kept_some(model, groups, 12, HIDDEN // 2)


def test_a_model_of_copies_cut_to_its_core_says_the_same(model):
    kept, ids = halved(model), token_ids(seed=9)
    model = made_redundant(model, kept)
    expected = logits(model, ids)
    size = expected.std()
    plain = (logits(cut(copy.deepcopy(model), kept), ids) - expected).abs().max()
    assert plain > 0.2 * size  # plain cutting fails
    got = logits(refitted(model, kept), ids)
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-3 * size.item())
