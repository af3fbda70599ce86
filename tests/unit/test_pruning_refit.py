"""Refit of the remaining weights: exact if they can represent the whole model; unsupported tensors are refused."""

import copy
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from pruning_models import (
    HEADS,
    HIDDEN,
    MODELS,
    NEURONS,
    build,
    kept_some,
    logits,
    token_ids,
)

from capgap.errors import CapgapError
from capgap.pruning.families import family_of
from capgap.pruning.least_squares import RIDGES, Regression
from capgap.pruning.refit import check_known, refit
from capgap.pruning.refit_sites import REFITTED
from capgap.pruning.residual_basis import kind_of, principal_basis
from capgap.pruning.surgery import Kept, channels, cut, keep_all, sizes_of

torch.set_num_threads(1)

TEXT = token_ids(sequences=24, tokens=16, seed=5)


def refitted(model, kept, *, text=TEXT, rows=8):
    student = cut(copy.deepcopy(model), kept)
    refit(student, copy.deepcopy(model), kept, text, rows=rows, folder=Path(tempfile.gettempdir()))
    return student


with torch.device("meta"):
    OTHERS = [name for name, make in MODELS.items() if type(make()).__name__ not in REFITTED]


@pytest.fixture(params=[name for name in MODELS if name not in OTHERS])
def model(request):
    return build(request.param)


@pytest.mark.parametrize("name", OTHERS)
def test_other_architectures_are_refused_by_name(name):
    model = build(name)
    with pytest.raises(CapgapError, match=rf"{type(model).__name__}: the refit does not support"):
        check_known(model)


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
    family, sizes, random = (
        family_of(type(model).__name__),
        sizes_of(model),
        np.random.default_rng(4),
    )
    layer_norm = any(isinstance(module, torch.nn.LayerNorm) for module in model.modules())
    scale = 1.0 if layer_norm else -0.7
    hidden = copies(sizes.full.hidden, kept.hidden, random)
    inner = [
        {kind: copies(getattr(sizes.full, kind), getattr(kept, kind)[i], random)
         for kind in ("groups", "neurons")}
        for i in range(sizes.layers)
    ]  # fmt: skip
    norms = {
        f"{name}.{what}" for side in family.norms for name in side for what in ("weight", "bias")
    }
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
                if name.endswith(
                    (".v_proj.weight", ".v_proj.bias", ".up_proj.weight", ".up_proj.bias")
                ):
                    by = torch.tensor(np.where(source == np.arange(len(source)), 1.0, 0.6))
                    by = by.repeat_interleave(parameter.shape[dim] // len(source))
            else:
                continue
            places = channels(
                source, len(source), repeats, parameter.shape[dim], sizes.heads_per_group
            )
            shape = [-1 if d == dim else 1 for d in range(parameter.ndim)]
            with torch.no_grad():
                parameter.copy_(parameter.index_select(dim, places) * by.float().reshape(shape))
    return model


def halved(model):
    """Half of the hidden channels and, if there are several, about half of groups and neurons."""
    sizes = sizes_of(model)
    groups = max(1, sizes.full.groups * 2 // 3)
    hidden = HIDDEN // 2
    if sizes.hidden_is_heads:
        groups = sizes.full.groups // 2
        hidden = groups * sizes.heads_per_group * sizes.head_dim
    return kept_some(model, groups, 12, hidden)


def test_a_model_without_copies_does_not_stay_the_same():
    model = build("llama-gqa-untied")
    kept, ids = halved(model), token_ids(seed=9)
    expected = logits(model, ids)
    assert (logits(refitted(model, kept), ids) - expected).abs().max() > 0.2 * expected.std()


def test_a_model_of_copies_cut_to_its_core_says_the_same(model):
    kept, ids = halved(model), token_ids(seed=9)
    model = made_redundant(model, kept)
    expected = logits(model, ids)
    size = expected.std()
    plain = (logits(cut(copy.deepcopy(model), kept), ids) - expected).abs().max()
    assert plain > 0.2 * size  # plain cutting fails
    got = logits(refitted(model, kept), ids)
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-3 * size.item())


@pytest.mark.parametrize("gain", [0.02, 30.0])
def test_readers_are_no_smaller_than_they_were_whatever_the_norms_gains(gain):
    """Pretrained models have gains of 0.02 as of 30; Adam moves a weight as far, whatever its size."""
    model = build("llama-gqa-untied")
    kept = halved(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.mul_(gain if "norm" in name else 1)
    before, found = dict(model.named_parameters()), refitted(model, kept)
    readers = ("lm_head", "q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
    sizes = {}
    for name, parameter in found.named_parameters():
        size, was = (p.square().mean().sqrt().item() for p in (parameter, before[name]))
        if name.split(".")[-2] in readers:
            layer_and_norm = name.rpartition(".")[0].rpartition(".")[
                0
            ]  # of matrices that read one norm
            sizes.setdefault(layer_and_norm, []).append((size, was, parameter.numel()))
        elif "norm" in name:
            assert size == 1 if gain > 1 else gain / 3 < size < 3 * gain, name
    assert len(sizes) == 5
    for name, parts in sizes.items():
        now, was = (sum(n * part[i] ** 2 for part in parts for n in part[2:]) for i in (0, 1))
        assert now > 100 * was if gain > 1 else now == pytest.approx(was, rel=0.1), name


def test_a_layer_that_writes_nothing_goes_with_the_copies(model):
    """Depth and widths at once: the layers that stay write what the whole model does."""
    kept = halved(model)._replace(layers=np.array([1]))
    ids, model = token_ids(seed=9), made_redundant(model, kept)
    family = family_of(type(model).__name__)
    with torch.no_grad():
        for name in family.writers:
            for parameter in model.get_submodule(f"{family.layers}.0.{name}").parameters():
                parameter.zero_()
    expected = logits(model, ids)
    plain = (logits(cut(copy.deepcopy(model), kept), ids) - expected).abs().max()
    assert plain > 0.2 * expected.std()
    got = logits(refitted(model, kept), ids)
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-3 * expected.std().item())


def test_principal_components_hold_any_stream_of_fewer_directions():
    """Every channel a mixture of 24 others: no choice of channels keeps it, the refit does."""
    model, random = build("llama-gqa-untied"), torch.Generator().manual_seed(3)
    mixed = torch.randn(HIDDEN, HIDDEN // 2, generator=random) / 5
    mixed = mixed @ torch.randn(HIDDEN // 2, HIDDEN, generator=random)
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(model.model.embed_tokens.weight @ mixed.T)
        for layer in model.model.layers:
            for module in (layer.self_attn.o_proj, layer.mlp.down_proj):
                module.weight.copy_(mixed @ module.weight)
    kept = keep_all(model)._replace(hidden=np.arange(HIDDEN // 2))
    ids = token_ids(seed=9)
    expected = logits(model, ids)
    got = logits(refitted(model, kept), ids)
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-3 * expected.std().item())


# --- what it does to models that are not redundant --------------------------------------------------


def test_logits_come_nearer_at_any_depth(model):
    kept, ids = halved(model), token_ids(sequences=8, seed=9)
    expected = logits(model, ids).log_softmax(-1)

    def divergence(student):
        return (expected.exp() * (expected - logits(student, ids).log_softmax(-1))).sum(-1).mean()

    for part in (kept, kept._replace(layers=np.array([1]))):
        plain, fitted = cut(copy.deepcopy(model), part), refitted(model, part)
        assert divergence(fitted) < divergence(plain)
        assert fitted.config.to_dict() == plain.config.to_dict()
        shapes = {name: p.shape for name, p in plain.named_parameters()}
        assert {name: p.shape for name, p in fitted.named_parameters()} == shapes


def test_same_bits_again_and_the_same_weights_whatever_the_batches(model):
    kept = halved(model)
    first, again = (dict(refitted(model, kept).named_parameters()) for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    for name, other in refitted(model, kept, rows=5).named_parameters():
        torch.testing.assert_close(other, first[name], rtol=0, atol=1e-3 * first[name].std().item())


def test_heads_and_neurons_alone_leave_the_residual_stream_as_it_is():
    model = build("llama-mha-tied")
    student = refitted(model, kept_some(model, 4, 12, HIDDEN))
    assert torch.equal(student.model.embed_tokens.weight, model.model.embed_tokens.weight)
    for small, layer in zip(student.model.layers, model.model.layers, strict=True):
        assert torch.equal(small.input_layernorm.weight, layer.input_layernorm.weight)


def test_a_writer_is_the_least_squares_fit_to_what_the_whole_model_writes():
    """One layer, neurons cut only: the last matrix is what numpy solves for at one of the ridges."""
    model, text = build("llama-mha-tied"), token_ids(sequences=64, tokens=16, seed=5)
    kept = keep_all(model)._replace(neurons=kept_some(model, HEADS, 12, HIDDEN).neurons)
    kept = kept._replace(layers=np.array([0]))
    model = cut(model, keep_all(model)._replace(layers=np.array([0])))
    kept = Kept(kept.groups[:1], kept.neurons[:1], kept.hidden)
    found = {}
    down = model.model.layers[0].mlp.down_proj
    handle = down.register_forward_hook(lambda m, args, out: found.update(z=args[0], y=out))
    logits(model, text)
    handle.remove()
    z = found["z"].reshape(-1, NEURONS)[:, torch.from_numpy(kept.neurons[0])].double().numpy()
    y = found["y"].reshape(-1, HIDDEN).double().numpy()
    prior = down.weight.detach().double().numpy()[:, kept.neurons[0]]
    gram, off = z.T @ z, (y - z @ prior.T).T @ z
    got = refitted(model, kept, text=text).model.layers[0].mlp.down_proj.weight.detach().numpy()
    damping = [ridge * np.diag(gram).mean() * np.eye(12) for ridge in RIDGES]
    maps = [prior + np.linalg.solve(gram + damped, off.T).T for damped in damping]
    assert min(np.abs(got - w).max() for w in maps) < 1e-5
    assert np.square(y - z @ got.T).sum() < 0.97 * np.square(y - z @ prior.T).sum()


# --- least squares ----------------------------------------------------------------------------------


def pairs(tokens, inputs, outputs, noise, seed=0):
    random = torch.Generator().manual_seed(seed)
    z = torch.randn(tokens, inputs, generator=random, dtype=torch.float64)
    truth = torch.randn(outputs, inputs, generator=random, dtype=torch.float64)
    t = (
        z @ truth.T
        + 3
        + noise * torch.randn(tokens, outputs, generator=random, dtype=torch.float64)
    )
    return z, t, truth


def fitted(z, t, prior, *, intercept):
    fit = Regression(z.shape[1], t.shape[1], z.device, intercept=intercept)
    half = torch.arange(len(z)) % 2
    for part in range(0, len(z), 7):
        fit.add(z[part : part + 7], t[part : part + 7], half[part : part + 7])
    return fit.solve(prior)


def test_without_noise_the_map_and_the_intercept_are_found():
    z, t, truth = pairs(200, 6, 4, 0.0)
    w, b = fitted(z, t, torch.zeros_like(truth), intercept=True)
    torch.testing.assert_close(w, truth, rtol=0, atol=1e-8)
    torch.testing.assert_close(b, torch.full((4,), 3.0).double(), rtol=0, atol=1e-8)
    assert torch.equal(fitted(z, t - 3, truth, intercept=False)[1], torch.zeros(4).double())


def test_few_noisy_tokens_stay_near_the_prior_and_many_do_not():
    distances = []
    for tokens in (40, 4000):
        z, t, truth = pairs(tokens, 30, 4, 8.0)
        near = truth + 0.01
        w, _ = fitted(z, t - 3, near, intercept=False)
        plain = torch.linalg.lstsq(z, t - 3).solution.T
        distances.append(((w - truth).norm() / (plain - truth).norm()).item())
    assert distances[0] < 0.6
    assert distances[1] < 1.001


def test_activations_that_are_not_finite_are_refused():
    z, t, truth = pairs(40, 6, 4, 0.0)
    z[3, 2] = torch.nan
    with pytest.raises(CapgapError, match="not finite"):
        fitted(z, t, truth, intercept=False)


# --- the basis --------------------------------------------------------------------------------------


@pytest.mark.parametrize("centred", [False, True])
def test_the_basis_is_orthonormal_holds_the_principal_directions_and_is_near_the_channels(centred):
    x = torch.randn(500, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[:, :6] *= 5  # of the six strong channels, five are asked for
    if centred:
        x = x - x.mean(1, keepdim=True)
    kept = np.arange(5) + 1
    rows, scale = principal_basis(x.T @ x, kept, centred=centred)
    torch.testing.assert_close(rows @ rows.T, torch.eye(5).double(), rtol=0, atol=1e-12)
    assert scale == pytest.approx((5 / 12) ** 0.5)
    best = torch.linalg.eigvalsh(x.T @ x)[-(4 if centred else 5) :].sum()
    assert (x @ rows.T).square().sum() == pytest.approx(best.item())
    if centred:  # the mean goes to the mean
        mean = torch.full((12,), 12**-0.5, dtype=torch.float64)
        expected = torch.full((5,), 5**-0.5, dtype=torch.float64)
        torch.testing.assert_close(rows @ mean, expected, rtol=0, atol=1e-12)
    turned = torch.linalg.qr(torch.randn(5, 5).double())[0]
    assert rows[:, kept].trace() > (turned @ rows)[:, kept].trace()


def test_the_kinds_of_norms_are_seen_from_what_they_do():
    kinds = {}
    for name in ("llama-mha-tied", "gemma", "gpt2"):
        model = build(name)
        norm = model.get_submodule(family_of(type(model).__name__).norms[1][0])
        kinds[name] = tuple(kind_of(norm, name))
    assert kinds == {"llama-mha-tied": (0, False), "gemma": (1, False), "gpt2": (0, True)}


# --- refusals ---------------------------------------------------------------------------------------


def test_what_is_not_understood_is_refused_by_name():
    model = build("llama-mha-tied")
    kept = halved(model)
    model.model.layers[1].register_forward_hook(lambda module, args, out: 2 * out)
    with pytest.raises(CapgapError, match=r"model\.layers\.1 adds .* set prune\.refit to none"):
        refitted(model, kept)

    class Odd(torch.nn.Module):
        def __init__(self, weight):
            super().__init__()
            self.weight = weight

        def forward(self, x):
            return x * self.weight.square()

    model = build("llama-mha-tied")
    model.model.layers[0].input_layernorm = Odd(model.model.layers[0].input_layernorm.weight)
    with pytest.raises(
        CapgapError, match="input_layernorm: the refit does not support this kind of norm"
    ):
        refitted(model, kept)


def test_tensors_that_carry_channels_unseen_are_refused_before_any_work(monkeypatch):
    model = build("llama-mha-tied")
    family = family_of("LlamaForCausalLM")
    model.model.layers[0].mlp.scales = torch.nn.Parameter(torch.ones(HIDDEN))
    monkeypatch.setitem(family.inner, "mlp.scales", "hidden")
    with pytest.raises(
        CapgapError, match=r"model\.layers\.0\.mlp\.scales: the refit does not support"
    ):
        check_known(model)
