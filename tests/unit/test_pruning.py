"""Pruning: scores against finite differences, cuts against silenced models, the stages."""

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from capgap import prune, randomise, score
from capgap.artifacts import publish_folder
from capgap.engine.models import count_params, load_model, read_lineage, save_model
from capgap.errors import CapgapError
from capgap.pruning.families import family_of
from capgap.pruning.importance import Importance, measure, most_important
from capgap.pruning.solver import Widths
from capgap.pruning.surgery import Kept, cut, sizes_of
from capgap.records import Lineage, TokenStreams

torch.set_num_threads(1)

LAYERS, HIDDEN, HEADS, HEAD_DIM, NEURONS, VOCAB = 2, 48, 6, 8, 20, 128
IDS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None}


def llama_like(model_class, config_class, *, kv_heads=HEADS, **options):
    return model_class(
        config_class(
            vocab_size=VOCAB,
            hidden_size=HIDDEN,
            intermediate_size=NEURONS,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            num_key_value_heads=kv_heads,
            head_dim=HEAD_DIM,
            max_position_embeddings=64,
            **IDS,
            **options,
        )
    )


def llama(**options):
    return llama_like(LlamaForCausalLM, LlamaConfig, **options)


def gpt2():
    sizes = {
        "n_embd": HIDDEN,
        "n_head": HEADS,
        "n_layer": LAYERS,
        "n_inner": NEURONS,
        "n_positions": 64,
    }
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, **sizes, **IDS))


def neox(**options):
    sizes = {"hidden_size": HIDDEN, "num_attention_heads": HEADS, "intermediate_size": NEURONS}
    config = GPTNeoXConfig(vocab_size=VOCAB, num_hidden_layers=LAYERS, **sizes, **IDS, **options)
    return GPTNeoXForCausalLM(config)


def opt():
    sizes = {"hidden_size": HIDDEN, "word_embed_proj_dim": HIDDEN, "num_attention_heads": HEADS}
    ids = IDS | {"pad_token_id": 1}
    config = OPTConfig(
        vocab_size=VOCAB, num_hidden_layers=LAYERS, ffn_dim=NEURONS, max_position_embeddings=64,
        **sizes, **ids,
    )  # fmt: skip
    return OPTForCausalLM(config)


MODELS = {
    "llama-mha-tied": lambda: llama(tie_word_embeddings=True),
    "llama-gqa-untied": lambda: llama(kv_heads=3, tie_word_embeddings=False),
    "llama-mqa-biased": lambda: llama(kv_heads=1, attention_bias=True, mlp_bias=True),
    "mistral": lambda: llama_like(MistralForCausalLM, MistralConfig, kv_heads=3),
    "qwen2": lambda: llama_like(Qwen2ForCausalLM, Qwen2Config, kv_heads=3),
    "qwen3": lambda: llama_like(
        Qwen3ForCausalLM, Qwen3Config, kv_heads=3, tie_word_embeddings=True
    ),
    "gpt2": gpt2,
    "neox": neox,
    "neox-serial": lambda: neox(use_parallel_residual=False),
    "opt": opt,
}


def build(name, seed=0):
    """A model none of whose tensors is trivial: biases and norms are drawn too."""
    torch.manual_seed(seed)
    model = MODELS[name]()
    with torch.no_grad():
        for parameter in model.parameters():
            start = 1.0 if parameter.ndim == 1 else 0.0
            parameter.copy_(start + 0.3 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture(params=MODELS)
def model(request):
    return build(request.param)


def token_ids(sequences=2, tokens=12, seed=1):
    return torch.randint(VOCAB, (sequences, tokens), generator=torch.Generator().manual_seed(seed))


def logits(model, ids):
    with torch.no_grad():
        return model(ids).logits


def kept_all(model):
    full = sizes_of(model).full
    return Kept(
        np.tile(np.arange(full.groups), (LAYERS, 1)),
        np.tile(np.arange(full.neurons), (LAYERS, 1)),
        np.arange(full.hidden),
    )


def kept_some(model, groups, neurons, hidden, seed=2):
    """Random units, different ones in each layer."""
    full, random = sizes_of(model).full, np.random.default_rng(seed)

    def draw(of, k):
        return np.sort(random.permutation(of)[:k])

    return Kept(
        np.stack([draw(full.groups, groups) for _ in range(LAYERS)]),
        np.stack([draw(full.neurons, neurons) for _ in range(LAYERS)]),
        draw(full.hidden, hidden),
    )


class NormOfKept(torch.nn.Module):
    """A norm over some channels; the others stay zero."""

    def __init__(self, norm, kept):
        super().__init__()
        self.norm, self.kept = copy.deepcopy(norm), torch.from_numpy(kept)
        for name, parameter in list(self.norm.named_parameters()):
            setattr(self.norm, name, torch.nn.Parameter(parameter[self.kept]))
        if isinstance(self.norm, torch.nn.LayerNorm):
            self.norm.normalized_shape = (len(kept),)

    def forward(self, x):
        out = torch.zeros_like(x)
        out[..., self.kept] = self.norm(x[..., self.kept])
        return out


def silenced(model, kept, *, norms_over_kept=True):
    """A copy of the model in which units that are not kept are multiplied by zero as it runs."""
    model, family = copy.deepcopy(model), family_of(type(model).__name__)

    def zeroing(units, of):
        mask = torch.zeros(of)
        mask[torch.from_numpy(units)] = 1
        return lambda x: x * mask.repeat_interleave(x.shape[-1] // of)

    full, writers = sizes_of(model).full, [model.get_submodule(n) for n in family.embeddings]
    for i, layer in enumerate(model.get_submodule(family.layers)):
        for name, units, of in [
            (family.attention_out, kept.groups[i], full.groups),
            (family.mlp_out, kept.neurons[i], full.neurons),
        ]:
            zero = zeroing(units, of)
            module = layer.get_submodule(name)
            module.register_forward_pre_hook(lambda _m, args, zero=zero: (zero(args[0]),))
            writers.append(module)
    for writer in writers:
        zero = zeroing(kept.hidden, full.hidden)
        writer.register_forward_hook(lambda _m, _args, out, zero=zero: zero(out))
    if norms_over_kept:
        for name, module in list(model.named_modules()):
            if "Norm" in type(module).__name__ and module.weight.shape == (full.hidden,):
                model.set_submodule(name, NormOfKept(module, kept.hidden))
    return model


# --- surgery --------------------------------------------------------------------------------------


def test_nothing_removed_is_the_same_model_bit_for_bit(model):
    before, ids = copy.deepcopy(model), token_ids()
    after = cut(model, kept_all(model))
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


# --- importance -----------------------------------------------------------------------------------


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
    for got, raw in zip(measured, (groups, neurons, hidden), strict=True):
        expected = np.array(raw)  # of the first units; scores are relative within a row
        got = got[..., : expected.shape[-1]] / got[..., :1]
        expected /= expected[..., :1].copy()
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-7)


def test_scores_do_not_depend_on_the_batch_size(model):
    tokens = token_ids(sequences=6, tokens=9)
    ids, labels = tokens[:, :-1], tokens[:, 1:]
    one, all_at_once = (measure(model, ids, labels, micro_batch_tokens=n) for n in (8, 48))
    for a, b in zip(one, all_at_once, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6)
    full = sizes_of(model).full
    shapes = [(LAYERS, full.groups), (LAYERS, full.neurons), (full.hidden,)]
    assert [scores.shape for scores in one] == shapes
    # Measuring leaves no hooks behind.
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


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
    student = cut(model, most_important(scores, Widths(HEADS - 2, NEURONS - 1, HIDDEN)))
    torch.testing.assert_close(logits(student, ids), before, rtol=1e-5, atol=1e-5)


def test_most_important_units_in_ascending_order_first_on_ties():
    scores = Importance(
        np.array([[0.1, 0.9, 0.5], [0.5, 0.5, 0.5]]),
        np.array([[4.0, 1, 3, 2], [1, 2, 3, 4]]),
        np.ones(300),
    )
    kept = most_important(scores, Widths(2, 3, 2))
    assert kept.groups.tolist() == [[1, 2], [0, 1]]
    assert kept.neurons.tolist() == [[0, 2, 3], [1, 2, 3]]
    assert kept.hidden.tolist() == [0, 1]
    assert kept.widths == Widths(2, 3, 2)


# --- stages ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A teacher, its tokenizer and a token stream."""
    root = tmp_path_factory.mktemp("study")
    vocabulary = {"<|endoftext|>": 0} | {f"w{i}": i for i in range(1, VOCAB)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<|endoftext|>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    end = "<|endoftext|>"
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token=end, eos_token=end)
    with publish_folder(root / "tokenizer") as folder:
        tokenizer.save_pretrained(folder)
    for name, seed in (("big", 0), ("other", 1)):
        model = build("llama-gqa-untied", seed)
        lineage = Lineage(kind="teacher", name=name, params=count_params(model))
        with publish_folder(root / name) as folder:
            save_model(model, folder, lineage, root / "tokenizer")
    with publish_folder(root / "tokens") as folder:
        np.save(folder / "train.npy", token_ids(1, 400)[0].numpy().astype(np.uint16))
        ones = dict.fromkeys(["train"], 1)
        meta = TokenStreams(vocab_size=VOCAB, documents=ones, tokens={"train": 400}, bytes=ones)
        (folder / "meta.json").write_text(meta.to_json())
    run_score(root, "big")
    return root


def run_score(root, name, *options):
    out = root / f"importance-{name}"
    args = ["--model", root / name, "--token-streams", root / "tokens", "--out", out]
    settings = ["--calibration-sequences", "5", "--sequence-length", "16", *options]
    score.main([*map(str, args), *settings])


def run_prune(root, out, params="8k", name="big", importance="importance-big"):
    scores = root / importance / "manifest.json"  # a folder may be named by its manifest
    args = ["--model", root / name, "--importance", scores, "--params", params]
    prune.main([*map(str, args), "--out", str(out)])


def contents(folder):
    return {p.name: p.read_bytes() for p in Path(folder).iterdir()}


def test_scoring_twice_gives_the_same_bytes_and_the_library_scores(study, tmp_path):
    first = contents(study / "importance-big")
    run_score(study, "big")
    assert contents(study / "importance-big") == first
    stored = load_file(study / "importance-big" / "importance.safetensors")
    assert {name: tuple(t.shape) for name, t in stored.items()} == {
        "groups": (LAYERS, 3),
        "neurons": (LAYERS, NEURONS),
        "hidden": (HIDDEN,),
    }
    for scores in stored.values():
        norms = scores.norm(dim=-1)
        torch.testing.assert_close(norms, torch.ones_like(norms))


def test_pruned_folder_loads_generates_and_says_what_it_is(study, tmp_path, capsys):
    run_prune(study, tmp_path / "init", "8k")
    said = capsys.readouterr().out
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "init")
    out = model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=4, min_new_tokens=4)
    assert out.shape == (1, 7)
    lineage = read_lineage(tmp_path / "init", model)
    assert (lineage.kind, lineage.name, lineage.init) == ("init", "8k", "pruned-big")
    assert lineage.params == count_params(model)
    assert abs(lineage.params.non_embedding - 8000) <= 80
    assert f"{lineage.params.non_embedding:,} parameters" in said
    assert (tmp_path / "init" / "tokenizer.json").is_file()
    assert str(study) not in (tmp_path / "init" / "config.json").read_text()


def test_pruning_twice_gives_the_same_bytes(study, tmp_path):
    for name in "ab":
        run_prune(study, tmp_path / name)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_pruning_to_the_full_size_changes_no_weight(study, tmp_path):
    teacher = load_model(study / "big")
    run_prune(study, tmp_path / "same", str(count_params(teacher).non_embedding))
    assert torch.equal(
        logits(load_model(tmp_path / "same"), token_ids()), logits(teacher, token_ids())
    )


def test_scores_of_another_model_are_refused(study, tmp_path):
    with pytest.raises(CapgapError, match="other weights"):
        run_prune(study, tmp_path / "x", name="other")
    with pytest.raises(CapgapError, match=r"no importance\.safetensors"):
        run_prune(study, tmp_path / "x", importance="tokens")
    assert not (tmp_path / "x").exists()


def test_score_refuses_what_the_model_cannot_read(study):
    with pytest.raises(CapgapError, match=r"sequence_length: 65 .* 64 positions"):
        run_score(study, "big", "--sequence-length", "65")


def run_random(root, out, seed, *options):
    args = ["--like", root / "big" / "manifest.json", "--seed", seed, "--out", out, *options]
    randomise.main([*map(str, args), "--params", "8k"])


def test_random_start_has_the_pruned_shape_and_is_a_function_of_the_seed(study, tmp_path):
    run_prune(study, tmp_path / "pruned")
    for out, seed in (("a", 3), ("b", 3), ("c", 4)):
        run_random(study, tmp_path / out, seed)
    pruned, a = load_model(tmp_path / "pruned"), load_model(tmp_path / "a")
    assert count_params(a) == count_params(pruned)
    assert {n: p.shape for n, p in a.named_parameters()} == {
        n: p.shape for n, p in pruned.named_parameters()
    }
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    run_random(study, tmp_path / "d", 3, "--tokenizer", study / "tokenizer")
    assert contents(tmp_path / "a") == contents(tmp_path / "d")
    with pytest.raises(CapgapError, match=r"no tokenizer\.json"):
        run_random(study, tmp_path / "x", 3, "--tokenizer", study / "tokens")
    c = load_model(tmp_path / "c")
    assert not torch.equal(a.model.embed_tokens.weight, c.model.embed_tokens.weight)
    lineage = read_lineage(tmp_path / "a", a)
    assert (lineage.kind, lineage.name, lineage.init, lineage.seed) == ("init", "8k", "random", 3)
