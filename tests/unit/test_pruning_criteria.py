"""Scores: against finite differences and hand-set weights, whatever the batch size; selection."""

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
    build,
    logits,
    token_ids,
)

from capgap.config import Depth
from capgap.pruning.families import family_of
from capgap.pruning.importance import Importance, measure
from capgap.pruning.selection import select
from capgap.pruning.solver import Solution, Widths
from capgap.pruning.surgery import cut, keep_all, sizes_of, unit_of_channel

torch.set_num_threads(1)


def kept_energy(model, kept):
    """Squared norm of the weights that a cut keeps, without building the smaller model."""
    total, full = 0.0, sizes_of(model).full
    for name, parameter in model.named_parameters():
        kinds, layer = family_of(type(model).__name__).kinds(name)
        weight = parameter.detach().double()
        for dim, (repeats, kind) in enumerate(kinds):
            if kind in ("groups", "neurons", "hidden"):
                units = getattr(kept, kind)
                units = units if units.ndim == 1 else units[layer]
                place = unit_of_channel(
                    getattr(full, kind), repeats, weight.shape[dim], sizes_of(model).heads_per_group
                )
                weight = weight.index_select(
                    dim, torch.from_numpy(np.flatnonzero(np.isin(place, units)))
                )
        total += weight.square().sum().item()
    return total


def layer_norms(model, kind, layer):
    """Squared norm of all weights of each unit of one layer."""
    total = 0.0
    for name, parameter in model.named_parameters():
        kinds, of_layer = family_of(type(model).__name__).kinds(name)
        for dim, (repeats, found) in enumerate(kinds):
            if of_layer == layer and found == kind:
                units, size = getattr(sizes_of(model).full, kind), parameter.shape[dim]
                place = unit_of_channel(units, repeats, size, sizes_of(model).heads_per_group)
                squares = (
                    parameter.detach().double().square().movedim(dim, 0).reshape(size, -1).sum(1)
                )
                total += np.bincount(place, squares.numpy(), minlength=units)
    return total


def sequence_losses(model, ids_BT, labels_BT):
    """Cross-entropy of each sequence, nats per token."""
    values = torch.nn.functional.cross_entropy(
        logits(model, ids_BT).transpose(1, 2), labels_BT, reduction="none"
    )
    return values.mean(1)


def test_scores_equal_finite_differences_of_every_sequence():
    model = build("llama-gqa-untied").double()
    for name, module in list(model.named_modules()):
        if type(module).__name__ == "LlamaRMSNorm":  # computes in float32, too coarse here
            norm = torch.nn.RMSNorm(HIDDEN, eps=module.variance_epsilon)
            norm.weight = module.weight
            model.set_submodule(name, norm)
    tokens = token_ids(sequences=3, tokens=9)
    ids, labels = tokens[:, :-1], tokens[:, 1:]
    inner = model.model

    def slope(views, step=1e-5):
        """Mean over sequences of |dCE/dscale| when all these weights are scaled."""
        losses = []
        for scale in (1 + step, 1 - step):
            saved = [view.clone() for view in views]
            for view in views:
                view.mul_(scale)
            losses.append(sequence_losses(model, ids, labels))
            for view, original in zip(views, saved, strict=True):
                view.copy_(original)
        return ((losses[0] - losses[1]) / (2 * step)).abs().mean().item()

    with torch.no_grad():
        groups = [
            [slope([layer.self_attn.o_proj.weight[:, 16 * g : 16 * g + 16]]) for g in range(3)]
            for layer in inner.layers
        ]
        neurons = [
            [slope([layer.mlp.down_proj.weight[:, n : n + 1]]) for n in range(8)]
            for layer in inner.layers
        ]
        writers = [m for b in inner.layers for m in (b.self_attn.o_proj, b.mlp.down_proj)]
        hidden = [
            slope([inner.embed_tokens.weight[:, c], *(w.weight[c] for w in writers)])
            for c in range(10)
        ]
    measured = measure(model, ids, labels)
    for got, raw in zip(measured[:3], (groups, neurons, hidden), strict=True):
        expected = np.array(raw)  # of the first units; scores are relative within a row
        got = got[..., : expected.shape[-1]] / got[..., :1]
        expected /= expected[..., :1].copy()
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-7)


CRITERIA = ["mask_gradient", "activation", "magnitude", "random"]


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("name", MODELS)
def test_scores_do_not_depend_on_the_batch_size(name, criterion):
    model, tokens = build(name), token_ids(sequences=6, tokens=9)
    ids, labels = tokens[:, :-1], tokens[:, 1:]
    one, all_at_once = (
        measure(model, ids, labels, criterion, micro_batch_tokens=n) for n in (8, 48)
    )
    for a, b in zip(one, all_at_once, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6)
    full = sizes_of(model).full
    shapes = [(LAYERS, full.groups), (LAYERS, full.neurons), (full.hidden,), (LAYERS,)]
    assert [scores.shape for scores in one] == shapes
    for scores in one:
        assert scores.dtype == np.float32
        assert (scores >= 0).all()
        assert (scores > 0).mean() > 0.9
    for scores in one[:3]:
        np.testing.assert_allclose(np.linalg.norm(scores, axis=-1), 1, rtol=1e-5)
    # Measuring leaves no hooks behind.
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_gradients_of_opposite_sign_do_not_cancel_across_sequences():
    """A unit that helps one sequence and harms the other as much is not a dead one."""
    model = build("llama-mha-tied")
    tokens = token_ids(sequences=8, tokens=9)
    ids, labels = tokens[:, :-1], tokens[:, 1:]
    alone = [measure(model, ids[i : i + 1], labels[i : i + 1]) for i in range(8)]
    together = measure(model, ids, labels)
    # In raw scores the mean of the parts is the whole; rows of one sequence have norm 1 here, so
    # compare through the cosine with the sum of rows weighted by their unknown norms.
    rows = np.stack([scores.hidden for scores in alone]).T.astype(np.float64)
    weights, residual, *_ = np.linalg.lstsq(rows, together.hidden.astype(np.float64), rcond=None)
    assert (weights > 0).all()
    assert residual.sum() < 1e-8


def test_activation_scores_equal_recorded_activations():
    model, tokens = build("llama-gqa-untied"), token_ids(sequences=3, tokens=9)
    ids = tokens[:, :-1]
    seen = {}
    handles = [
        module.register_forward_pre_hook(lambda m, args, name=name: seen.update({name: args[0]}))
        for name, module in model.named_modules()
        if name.endswith(("o_proj", "down_proj"))
    ]
    norms = []
    handles += [
        module.register_forward_hook(lambda m, args, out: norms.append(out))
        for module in model.modules()
        if type(module).__name__ == "LlamaRMSNorm"
    ]
    logits(model, ids)
    for handle in handles:
        handle.remove()
    scores = measure(model, ids, tokens[:, 1:], "activation")
    for i in range(LAYERS):
        width = HEADS // 3 * HEAD_DIM
        heads = seen[f"model.layers.{i}.self_attn.o_proj"].unflatten(-1, (3, width))
        expected = heads.norm(dim=-1).mean((0, 1)).numpy()
        np.testing.assert_allclose(scores.groups[i], expected / np.linalg.norm(expected), rtol=1e-5)
        expected = seen[f"model.layers.{i}.mlp.down_proj"].abs().mean((0, 1)).numpy()
        np.testing.assert_allclose(
            scores.neurons[i], expected / np.linalg.norm(expected), rtol=1e-5
        )
    assert len(norms) == 2 * LAYERS + 1
    expected = torch.stack(norms).abs().mean((0, 1, 2)).numpy()
    np.testing.assert_allclose(scores.hidden, expected / np.linalg.norm(expected), rtol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_magnitude_is_the_norm_of_what_a_cut_removes(name):
    """Cutting one unit from a layer lowers the squared norm of the weights by its squared score."""

    def energy(model):
        return sum(p.detach().double().square().sum().item() for p in model.parameters())

    model, tokens = build(name), token_ids(sequences=1, tokens=5)
    scores, full = measure(model, tokens, tokens, "magnitude"), sizes_of(model).full
    for kind in ("neurons", "groups", "hidden"):
        of = getattr(full, kind)
        if of == 1 or (kind != "neurons" and sizes_of(model).hidden_is_heads):
            continue  # one unit alone cannot go
        lost = []
        for unit in range(2):
            kept = keep_all(model)
            rest = np.delete(getattr(kept, kind), unit, axis=-1)
            # The configuration wants even layers; the norm counts what the weights lose.
            lost.append(energy(model) - kept_energy(model, kept._replace(**{kind: rest})))
        score = getattr(scores, kind)
        if kind == "hidden":
            assert score[0] / score[1] == pytest.approx(np.sqrt(lost[0] / lost[1]), rel=1e-5)
        else:
            raw = [layer_norms(model, kind, layer) for layer in range(LAYERS)]
            np.testing.assert_allclose(lost, [sum(r[u] for r in raw) for u in range(2)], rtol=1e-6)
            for row, squares in zip(score, raw, strict=True):
                np.testing.assert_allclose(row, np.sqrt(squares / squares.sum()), rtol=1e-5)


def test_random_scores_depend_on_the_seed_alone():
    model = build("llama-gqa-untied")
    a, b = token_ids(seed=1), token_ids(seed=2)
    one, same = (measure(model, ids, ids, "random", seed=3) for ids in (a, b))
    other = measure(model, a, a, "random", seed=4)
    for x, y, z in zip(one[:3], same[:3], other[:3], strict=True):
        assert np.array_equal(x, y)
        assert not np.array_equal(x, z)
    assert not np.array_equal(one.groups[0], one.groups[1])


def test_block_influence_is_one_minus_the_cosine_of_input_and_output():
    model, tokens = build("llama-mha-tied"), token_ids(sequences=3, tokens=7)
    with torch.no_grad():  # the second layer adds nothing
        model.model.layers[1].self_attn.o_proj.weight.zero_()
        model.model.layers[1].mlp.down_proj.weight.zero_()
        states = model(tokens, output_hidden_states=True).hidden_states
    cosine = torch.cosine_similarity(states[0], states[1], dim=-1)
    influence = measure(model, tokens, tokens, "random").layers
    assert influence[0] == pytest.approx((1 - cosine).mean().item(), rel=1e-5)
    assert influence[1] == pytest.approx(0, abs=1e-6)


def test_dead_units_score_zero_and_go_first():
    model = build("llama-mha-tied")
    first, second = model.model.layers
    with torch.no_grad():
        first.self_attn.o_proj.weight[:, 2 * HEAD_DIM : 4 * HEAD_DIM] = 0
        second.self_attn.v_proj.weight[[*range(HEAD_DIM), *range(5 * HEAD_DIM, 6 * HEAD_DIM)]] = 0
        first.mlp.down_proj.weight[:, 7] = 0
        second.mlp.up_proj.weight[4] = 0
    tokens = token_ids(sequences=4, tokens=9)
    ids, labels = tokens[:, :-1], tokens[:, 1:]
    scores = measure(model, ids, labels)
    assert np.argwhere(scores.groups == 0).tolist() == [[0, 2], [0, 3], [1, 0], [1, 5]]
    assert np.argwhere(scores.neurons == 0).tolist() == [[0, 7], [1, 4]]
    assert (scores.hidden > 0).all()
    before = logits(model, ids)
    kept = select(scores, solution(Widths(HEADS - 2, NEURONS - 1, HIDDEN)), Depth())
    student = cut(model, kept)
    torch.testing.assert_close(logits(student, ids), before, rtol=1e-5, atol=1e-5)


def solution(widths, layers=LAYERS):
    return Solution(widths, layers, params_non_embedding=0, params_total=0, relative_error=0.0)


def test_units_with_the_highest_scores_in_ascending_order_first_on_ties():
    scores = Importance(
        np.array([[0.1, 0.9, 0.5], [0.5, 0.5, 0.5]]),
        np.array([[4.0, 1, 3, 2], [1, 2, 3, 4]]),
        np.ones(300),
        np.array([1.0, 1.0]),
    )
    kept = select(scores, solution(Widths(2, 3, 2)), Depth())
    assert kept.groups.tolist() == [[1, 2], [0, 1]]
    assert kept.neurons.tolist() == [[0, 2, 3], [1, 2, 3]]
    assert kept.hidden.tolist() == [0, 1]
    assert kept.layers.tolist() == [0, 1]
    assert kept.widths == Widths(2, 3, 2)


@pytest.mark.parametrize(
    ("depth", "layers", "expected"),
    [
        ("keep", 6, [0, 1, 2, 3, 4, 5]),
        ("keep_middle", 4, [1, 2, 3, 4]),
        ("keep_middle", 3, [1, 2, 3]),
        ("keep_middle", 1, [2]),
        ("drop_middle", 4, [0, 1, 4, 5]),
        ("drop_middle", 3, [0, 1, 5]),
        ("drop_middle", 1, [0]),
        ("block_influence", 3, [0, 2, 5]),
        ("block_influence", 6, [0, 1, 2, 3, 4, 5]),
    ],
)
def test_layers_by_place_or_by_influence(depth, layers, expected):
    influence = np.array([0.9, 0.1, 0.3, 0.2, 0.1, 0.8])
    scores = Importance(np.ones((6, 2)), np.ones((6, 3)), np.ones(4), influence)
    kept = select(scores, solution(Widths(1, 1, 1), layers), Depth(depth=depth))
    assert kept.layers.tolist() == expected
    assert kept.groups.shape == (6, 1)  # rows are by layer of the original
