"""The stages score, prune, random-init and trim: same bytes, plain Hugging Face folders, refusals."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from model_folders import publish_model
from pruning_models import (
    HIDDEN,
    LAYERS,
    MODELS,
    NEURONS,
    VOCAB,
    build,
    kept_some,
    logits,
    token_ids,
)
from safetensors.numpy import save_file
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from capgap.config import Cut, Depth, Score
from capgap.engine.counting import count_params
from capgap.engine.models import (
    load_model,
    load_tokenizer,
    read_lineage,
    tokenizer_digest,
)
from capgap.errors import CapgapError
from capgap.pruning.solver import Target
from capgap.pruning.store import weights_digest
from capgap.pruning.surgery import cut, sizes_of
from capgap.records.artifacts import publish_folder
from capgap.records.run_records import TokenStreams
from capgap.stages import prune, random_init, score

torch.set_num_threads(1)


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
        publish_model(model, root / name, root / "tokenizer", name=name)
    with publish_folder(root / "tokens") as folder:
        np.save(folder / "train.npy", token_ids(1, 400)[0].numpy().astype(np.uint16))
        ones = dict.fromkeys(["train"], 1)
        meta = TokenStreams(
            vocab_size=VOCAB,
            tokenizer_sha256=tokenizer_digest(root / "tokenizer"),
            documents=ones,
            tokens={"train": 400},
            bytes=ones,
        )
        (folder / "meta.json").write_text(meta.to_json())
    run_score(root, "big")
    return root


def run_score(root, name, *options):
    out = root / f"importance-{name}"
    args = ["--model", root / name, "--token-streams", root / "tokens", "--out", out]
    settings = ["--calibration-sequences", "5", "--sequence-length", "16", *options]
    score.main([*map(str, args), *settings])


def run_prune(root, out, params="8k", name="big", importance="importance-big"):
    scores = root / importance  # a folder may be named by its manifest
    scores = scores / "manifest.json" if (scores / "manifest.json").exists() else scores
    args = [root / name, "--importance", scores, "--params", params]
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
        "layers": (LAYERS,),
    }
    for name in ("groups", "neurons", "hidden"):
        scores = stored[name]
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


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_weights_of_half_precision_give_the_bytes_of_their_float32_copy(study, tmp_path, kind):
    half = load_model(study / "big").to(kind)
    for name, model in (("half", half), ("full", copy.deepcopy(half).float())):
        publish_model(model, tmp_path / name, study / "tokenizer", name="big")
        how = Score(calibration_sequences=5, sequence_length=16)
        score.run(how, tmp_path / name, study / "tokens", tmp_path / f"scores-{name}")
        target, out = Target("params", 8000), tmp_path / f"cut-{name}"
        prune.run(Cut(), tmp_path / name, tmp_path / f"scores-{name}", target, out)
        random_init.run(Depth(), tmp_path / name, 8000, 0, tmp_path / f"random-{name}")
    assert contents(tmp_path / "cut-half") == contents(tmp_path / "cut-full")
    assert contents(tmp_path / "random-half") == contents(tmp_path / "random-full")


# --- refit ------------------------------------------------------------------------------------------


REFIT = ["--refit", "least_squares", "--calibration-sequences", "20", "--sequence-length", "16"]


def test_refit_keeps_the_shape_changes_the_weights_and_repeats_its_bytes(study, tmp_path):
    args = [study / "big", "--importance", study / "importance-big", "--params", "8k"]
    for name, options in (
        ("plain", []),
        ("a", [*REFIT, "--tokens", study / "tokens"]),
        ("b", [*REFIT, "--tokens", study / "tokens"]),
    ):
        prune.main([*map(str, [*args, *options]), "--out", str(tmp_path / name)])
    plain, fitted, again = (contents(tmp_path / name) for name in ("plain", "a", "b"))
    assert fitted == again
    assert fitted.keys() == plain.keys()
    assert {name for name in plain if plain[name] != fitted[name]} == {
        "model.safetensors",
        "manifest.json",
    }
    AutoModelForCausalLM.from_pretrained(tmp_path / "a")


def test_refit_of_half_precision_gives_the_bytes_of_the_float32_copy(study, tmp_path):
    half = load_model(study / "big").to(torch.bfloat16)
    how = Cut(calibration_sequences=20, sequence_length=16, refit="least_squares")
    for name, model in (("half", half), ("full", copy.deepcopy(half).float())):
        publish_model(model, tmp_path / name, study / "tokenizer", name="big")
        scoring, scores = Score(calibration_sequences=5, sequence_length=16), tmp_path / f"s-{name}"
        score.run(scoring, tmp_path / name, study / "tokens", scores)
        tokens, out = study / "tokens", tmp_path / f"cut-{name}"
        prune.run(how, tmp_path / name, scores, Target("params", 8000), out, tokens_folder=tokens)
    assert contents(tmp_path / "cut-half") == contents(tmp_path / "cut-full")


def test_one_command_scores_and_refits_on_a_text(study, tmp_path, capsys):
    text = tmp_path / "words.txt"
    text.write_text(" ".join(f"w{i % 90 + 1}" for i in range(400)))
    out = tmp_path / "small"
    args = [str(study / "big"), "--params", "8k", *REFIT, "--text", str(text), "--out", str(out)]
    prune.main(args)
    model = AutoModelForCausalLM.from_pretrained(out)
    assert abs(count_params(model).non_embedding - 8000) <= 80
    assert "presidents" not in capsys.readouterr().out


def test_text_that_nothing_reads_or_that_is_missing_is_refused(study, tmp_path):
    scores, tokens = study / "importance-big", study / "tokens"
    args = [str(study / "big"), "--importance", str(scores), "--params", "8k"]
    out = tmp_path / "x"
    with pytest.raises(CapgapError, match="nothing reads this text"):
        prune.main([*args, "--tokens", str(tokens), "--out", str(out)])
    how = Cut(refit="least_squares")
    with pytest.raises(CapgapError, match="text is needed to refit on"):
        prune.run(how, study / "big", scores, Target("params", 8000), out)
    with pytest.raises(CapgapError, match=r"prune\.sequence_length"):
        prune.run(how, study / "big", scores, Target("params", 8000), out, tokens_folder=tokens)
    assert not out.exists()


def test_scores_of_another_model_are_refused(study, tmp_path):
    with pytest.raises(CapgapError, match="other weights"):
        run_prune(study, tmp_path / "x", name="other")
    with pytest.raises(CapgapError, match=r"no importance\.safetensors"):
        run_prune(study, tmp_path / "x", importance="tokens")
    scores = {"groups": np.ones((LAYERS, 3), np.float32)}
    save_file(
        scores,
        tmp_path / "importance.safetensors",
        {"weights_sha256": weights_digest(study / "big")},
    )
    with pytest.raises(CapgapError, match="holds scores of groups instead of .* layers"):
        run_prune(study, tmp_path / "x", importance=tmp_path)
    assert not (tmp_path / "x").exists()


def test_score_refuses_what_the_model_cannot_read(study):
    with pytest.raises(CapgapError, match=r"sequence_length: 65 .* 64 positions"):
        run_score(study, "big", "--sequence-length", "65")


def run_random(root, out, seed, *options):
    args = ["--like", root / "big" / "manifest.json", "--seed", seed, "--out", out, *options]
    random_init.main([*map(str, args), "--params", "8k"])


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


# --- stand-alone: any folder, any target -----------------------------------------------------------


@pytest.fixture(scope="module")
def text(study):
    path = study / "text.txt"
    path.write_text(" ".join(f"w{1 + i * i % 97}" for i in range(400)), encoding="utf-8")
    return path


SHORT = ["--calibration-sequences", "3", "--sequence-length", "16"]


def test_prune_scores_on_a_text_where_no_scores_are_given(study, text, tmp_path, capsys):
    teacher = load_model(study / "big")
    plain = tmp_path / "plain"  # a folder from elsewhere: no lineage, no manifest
    teacher.save_pretrained(plain)
    args = [str(plain), "--params", "8k", "--text", str(text), *SHORT, "--out"]
    with pytest.raises(CapgapError, match=r"no tokenizer\.json"):
        prune.main([*args, str(tmp_path / "x")])
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (plain / name).write_bytes((study / "tokenizer" / name).read_bytes())
    for out in "ab":
        prune.main([*args, str(tmp_path / out)])
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    student = AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    lineage = read_lineage(tmp_path / "a", student)
    assert (lineage.name, lineage.init) == ("8k", "pruned-plain")
    # The same as scoring first, on the same tokens.
    prune.text_streams(text, plain, tmp_path / "tokens")
    settings = ["--model", plain, "--tokens", tmp_path / "tokens", "--out", tmp_path / "scores"]
    score.main([*map(str, settings), *SHORT])
    args = [plain, "--params", "8k", "--importance", tmp_path / "scores", "--scored-with", 0]
    prune.main([*map(str, args), "--out", str(tmp_path / "c")])
    assert contents(tmp_path / "a") == contents(tmp_path / "c")
    assert "off the target" in capsys.readouterr().out


def test_prune_takes_a_model_of_the_hub_at_its_commit(study, tmp_path, monkeypatch, capsys):
    snapshot, asked = tmp_path / ("0" * 40), []
    load_model(study / "big").save_pretrained(snapshot)
    monkeypatch.setattr(prune, "download_model", lambda *of: asked.append(of) or snapshot)
    args = ["owner/name", "--params", "8k", "--tokens", study / "tokens", *SHORT, "--out"]
    prune.main([*map(str, args), str(tmp_path / "out")])
    assert asked == [("owner/name", "main")]
    assert f"owner/name at commit {'0' * 40}" in capsys.readouterr().out
    lineage = read_lineage(tmp_path / "out", load_model(tmp_path / "out"))
    assert lineage.init == "pruned-name"


@pytest.mark.parametrize(
    ("target", "check"),
    [
        (["--total-params", "16k"], lambda p: abs(p.total - 16000) <= 160),
        (["--sparsity", "0.5"], lambda p: 0.35 < p.non_embedding / 18000 < 0.65),
        (["--shape", "hidden=32,kv-heads=2,neurons=9"], lambda p: p.embedding == 2 * VOCAB * 32),
        (
            ["--shape", "layers=1", "--depth", "drop_middle"],
            lambda p: p.norm == 3 * HIDDEN,
        ),
        (
            ["--params", "5k", "--depth", "block_influence", "--layers", "1"],
            lambda p: abs(p.non_embedding - 5000) <= 50,
        ),
    ],
)
def test_every_kind_of_target(study, tmp_path, target, check):
    importance = study / "importance-big"
    args = [study / "big", "--importance", importance, *target, "--out", tmp_path / "out"]
    prune.main(list(map(str, args)))
    model = load_model(tmp_path / "out")
    assert check(count_params(model)), count_params(model)
    assert read_lineage(tmp_path / "out", model).params == count_params(model)
    assert logits(model, token_ids()).isfinite().all()


def test_students_of_several_teachers_can_share_a_shape(study, tmp_path):
    big, importance = study / "big", study / "importance-big"
    cut = [big, "--importance", importance, "--out"]
    narrow = "hidden=32,kv-heads=2,neurons=18"
    prune.main(list(map(str, [*cut, tmp_path / "small", "--shape", narrow])))
    words = ["--tokens", study / "tokens", *SHORT]

    def pruned(name, *args):
        prune.main(list(map(str, [*args, "--params", "5k", "--out", tmp_path / name])))
        return load_model(tmp_path / name)

    own = pruned("own", tmp_path / "small", *words)
    like = ["--importance", importance, "--shape-like", tmp_path / "small"]
    shared, free = pruned("shared", big, *like), pruned("free", big, "--importance", importance)
    shapes = [{n: p.shape for n, p in m.named_parameters()} for m in (own, shared, free)]
    assert shapes[0] == shapes[1] != shapes[2]
    kept = shared.model.embed_tokens.weight[0].tolist()  # weights are the big teacher's own
    assert set(kept) <= set(load_model(big).model.embed_tokens.weight[0].tolist())
    prune.main(list(map(str, [*cut, tmp_path / "thin", "--shape", "neurons=5"])))
    with pytest.raises(CapgapError, match=r"neurons 9: the nearest possible is 5"):
        pruned("x", tmp_path / "thin", "--shape-like", big, *words)
    wide = build("llama-mha-tied")
    wide.save_pretrained(tmp_path / "wide")
    with pytest.raises(CapgapError, match="8 channels and 2 .* lends the shape 8 and 1"):
        pruned("x", big, "--importance", importance, "--shape-like", tmp_path / "wide")


def test_impossible_targets_and_unknown_models_are_refused(study, tmp_path):
    def refused(match, *options, model=study / "big"):
        args = [model, "--importance", study / "importance-big", *options]
        with pytest.raises(CapgapError, match=match):
            prune.main([*map(str, args), "--out", str(tmp_path / "x")])

    refused("nearest possible", "--params", "1M")
    refused("nearest possible", "--params", "10")
    refused("nearest possible is 2", "--shape", "layers=3", "--depth", "drop_middle")
    refused(r"sparsity is 1\.5, but must be", "--sparsity", "1.5")
    refused("layers is 1, but depth is keep", "--params", "8k", "--layers", "1")
    refused("no such folder", "--params", "8k", model=tmp_path / "none")
    refused("neither in the cache nor reachable", "--params", "8k", model="nobody/nothing")
    for options in (["--params", "8k", "--sparsity", "0.5"], [], ["--shape", "hidden:3"]):
        args = [study / "big", "--importance", study / "importance-big", *options]
        with pytest.raises(SystemExit):
            prune.main([*map(str, args), "--out", str(tmp_path / "x")])
    assert not (tmp_path / "x").exists()


def test_random_start_has_the_pruned_shape_at_any_depth(study, tmp_path):
    options = ["--depth", "block_influence", "--params", "8k"]
    args = [study / "big", "--importance", study / "importance-big", *options]
    prune.main([*map(str, args), "--out", str(tmp_path / "pruned")])
    args = ["--like", study / "big", *options, "--out", tmp_path / "random"]
    random_init.main(list(map(str, args)))
    pruned, random = (load_model(tmp_path / name) for name in ("pruned", "random"))
    configs = [model.config.to_dict() | {"_name_or_path": ""} for model in (pruned, random)]
    assert configs[0] == configs[1]
    assert {n: p.shape for n, p in pruned.named_parameters()} == {
        n: p.shape for n, p in random.named_parameters()
    }


def test_criteria_give_different_scores(study, tmp_path):
    found = {}
    for criterion in ("mask_gradient", "activation", "magnitude", "random"):
        run_score(study, "big", "--criterion", criterion)
        stored = load_file(study / "importance-big" / "importance.safetensors")
        found[criterion] = stored["neurons"].numpy().tobytes()
    assert len(set(found.values())) == 4
    run_score(study, "big")


@pytest.mark.parametrize("name", MODELS)
def test_pruned_folder_is_accepted_by_an_independent_evaluator(study, tmp_path, name):
    missing = "lm-eval is not there: make lm-eval"
    evaluators = pytest.importorskip("lm_eval.models.huggingface", reason=missing)
    requests = pytest.importorskip("lm_eval.api.instance", reason=missing)
    model = build(name)
    sizes = sizes_of(model)
    groups = max(1, sizes.full.groups - 1)
    hidden = groups * sizes.heads_per_group * sizes.head_dim
    student = cut(model, kept_some(model, groups, 13, hidden))
    about = {"kind": "init", "name": "x", "init": "pruned-y"}
    publish_model(student, tmp_path / "init", study / "tokenizer", **about)
    evaluator = evaluators.HFLM(
        pretrained=str(tmp_path / "init"),
        tokenizer=load_tokenizer(tmp_path / "init"),
        device="cpu",
        dtype="float32",
        max_length=32,
    )
    words = range(5, 25)
    text = " ".join(f"w{i}" for i in words)
    instance = requests.Instance("loglikelihood_rolling", {}, (text,), 0)
    (got,) = evaluator.loglikelihood_rolling([instance], disable_tqdm=True)
    log_p = logits(student, torch.tensor([[0, *words]]))[0, :-1].log_softmax(-1)
    expected = log_p.gather(1, torch.tensor(words)[:, None]).sum().item()
    assert got == pytest.approx(expected, rel=1e-5)
    options = {"max_gen_toks": 3, "until": ["never"]}
    generation = requests.Instance("generate_until", {}, (text, options), 0)
    (said,) = evaluator.generate_until([generation], disable_tqdm=True)
    ids = torch.tensor([list(words)])
    for _ in range(3):
        ids = torch.cat([ids, logits(student, ids)[:, -1:].argmax(-1)], dim=1)
    assert said.split() == [f"w{i}" for i in ids[0, -3:].tolist() if i]
