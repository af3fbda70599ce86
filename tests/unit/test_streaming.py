"""A model that is run layer by layer from disk: the numbers of the whole model, with one layer in memory."""

import json
import platform
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pruning_models import build, token_ids
from safetensors.torch import load_file, save_file
from small_models import build_small

from capgap.config import Evaluate, Score, TargetsStage
from capgap.engine import memory_limit, streaming
from capgap.engine.counting import count_params
from capgap.engine.forward import model_output
from capgap.engine.models import load_model, save_model
from capgap.engine.resuming import RunPaths
from capgap.engine.streaming import is_streamed, layer_by_layer, load_frozen, ready
from capgap.errors import CapgapError
from capgap.pruning.importance import measure
from capgap.records.run_records import Lineage
from capgap.stages import cache_teacher, evaluate, score

torch.set_num_threads(1)
EQUAL = (
    "LlamaForCausalLM GPT2LMHeadModel GPTNeoXForCausalLM OPTForCausalLM FalconForCausalLM "
    "Gemma2ForCausalLM Gemma3ForCausalLM Phi3ForCausalLM Qwen3ForCausalLM Olmo2ForCausalLM "
    "StableLmForCausalLM GraniteForCausalLM CohereForCausalLM RobertaForCausalLM"
).split()


def saved(model, folder):
    folder.mkdir()
    lineage = Lineage(kind="teacher", name="t", params=count_params(model))
    save_model(model, folder, lineage, folder)
    return folder


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", EQUAL)
def test_what_enters_the_loss_is_that_of_the_whole_model(name, precision, tmp_path):
    folder = saved(build_small(name), tmp_path / "model")
    whole = load_frozen(folder, precision)
    model = load_frozen(folder, precision, stream=True)
    assert not is_streamed(whole)
    assert is_streamed(model)
    batches = [(torch.randint(3, 500, (rows, 16)),) for rows in (2, 2, 1)]
    seen = 0
    for batch in ready(model, batches):
        with torch.no_grad():
            found = model_output(model, *batch, precision=precision)
            wanted = model_output(whole, *batch, precision=precision)
        assert torch.equal(found.hidden, wanted.hidden)
        assert torch.equal(found.head, wanted.head)
        assert found.cap == wanted.cap
        seen += 1
    assert seen == len(batches)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("MixtralForCausalLM", "block_sparse_moe.*cannot be run layer by layer"),
        ("MptForCausalLM", "cannot be run layer by layer"),
        ("RemBertForCausalLM", "cannot be run layer by layer"),
    ],
)
def test_other_models_are_refused_by_name(name, reason, tmp_path):
    folder = saved(build_small(name), tmp_path / "model")
    with pytest.raises(CapgapError, match=reason):
        load_frozen(folder, "float32", stream=True)


def test_one_layer_is_in_memory_at_a_time(tmp_path):
    folder = saved(build("llama-gqa-untied"), tmp_path / "model")
    model = load_frozen(folder, "float32", stream=True)
    by_layer = layer_by_layer(model)

    def there():
        return [not any(p.is_meta for p in layer.parameters()) for layer in by_layer.layers]

    assert not any(there())
    for place, _ in by_layer.resident(range(len(by_layer.layers))):
        assert there() == [i == place for i in range(len(by_layer.layers))]
    assert not any(there())


def test_blocks_hold_the_tokens_that_fit(tmp_path, monkeypatch):
    folder = saved(build("llama-gqa-untied"), tmp_path / "model")
    model = load_frozen(folder, "float32", stream=True)
    batches = [(torch.zeros(2, 8, dtype=torch.long), number) for number in range(5)]
    wide = 2 * 4 * model.config.hidden_size
    free = 2 * 16 * wide / streaming.STREAMS_SHARE
    monkeypatch.setattr(streaming, "available_bytes", lambda device: free)
    sizes = [len(block) for block in layer_by_layer(model).blocks(iter(batches))]
    assert sizes == [2, 2, 1]
    monkeypatch.setattr(streaming, "available_bytes", lambda device: 0)
    assert [len(block) for block in layer_by_layer(model).blocks(iter(batches))] == [1] * 5


@pytest.mark.parametrize("criterion", ["mask_gradient", "activation", "magnitude"])
@pytest.mark.parametrize("name", ["llama-gqa-untied", "gpt2", "neox", "opt", "gemma2"])
def test_scores_are_those_of_the_whole_model(name, criterion, tmp_path):
    folder = saved(build(name), tmp_path / "model")
    ids = token_ids(6, 13)
    found, wanted = (
        measure(
            load_frozen(folder, "float32", stream=stream, scratch=tmp_path),
            ids[:, :-1],
            ids[:, 1:],
            criterion,
            micro_batch_tokens=24,
        )
        for stream in (True, False)
    )
    for one, other in zip(found, wanted, strict=True):
        assert abs(one - other).max() <= 1e-6 * abs(other).max()


def test_the_stages_publish_the_same(tiny_model, token_streams, tmp_path):
    tokens = token_streams()
    folder = saved(tiny_model(seed=3, hidden=32, heads=4).eval(), tmp_path / "model")
    settings = Evaluate(sequence_length=16, batch_tokens=64)
    assert evaluate.run(settings, folder, tokens, stream=True) == evaluate.run(
        settings, folder, tokens
    )
    scoring = Score(calibration_sequences=4, sequence_length=16)
    targets = TargetsStage(
        kind="top_k", entries=8, unique_tokens=640, sequence_length=16, batch_tokens=48
    )
    for name, stream in (("whole", False), ("streamed", True)):
        score.run(scoring, folder, tokens, tmp_path / f"{name}-scores", stream=stream)
        place = RunPaths(tmp_path / f"{name}-targets", tmp_path / f"{name}-scratch", 60.0)
        cache_teacher.run(targets, folder, tokens, place, stream=stream)
    scores = [load_file(tmp_path / f"{n}-scores/importance.safetensors") for n in NAMES]
    for key, value in scores[0].items():
        torch.testing.assert_close(scores[1][key], value, rtol=1e-6, atol=1e-9)
    for file in sorted((tmp_path / "whole-targets").glob("shard-*")):
        assert file.read_bytes() == (tmp_path / "streamed-targets" / file.name).read_bytes()


NAMES = ("whole", "streamed")


def test_a_model_that_does_not_fit_is_streamed_by_itself(tmp_path, monkeypatch, capsys):
    model = build("llama-gqa-untied")
    folder = saved(model, tmp_path / "model")
    needed = 4 * sum(p.numel() for p in model.parameters())
    for free, streams in ((needed / streaming.FITS_SHARE + 9, False), (needed, True)):
        monkeypatch.setattr(streaming, "available_bytes", lambda device, free=free: free)
        assert is_streamed(load_frozen(folder, "float32")) == streams
    assert "run layer by layer from disk" in capsys.readouterr().out


def test_a_pass_ends_between_layers_when_it_is_asked_to(tmp_path):
    folder = saved(build("llama-gqa-untied"), tmp_path / "model")
    model = load_frozen(folder, "float32", stream=True)
    assert list(ready(model, [(torch.zeros(1, 4, dtype=torch.long),)], lambda: True)) == []


def test_a_head_that_is_stored_beside_tied_embeddings_is_used(tmp_path):
    folder = saved(build_small("LlamaForCausalLM"), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    models = [load_frozen(folder, "float32", stream=stream) for stream in (True, False)]
    heads = [model.get_output_embeddings().weight for model in models]
    assert torch.equal(*heads)
    assert not torch.equal(heads[0], models[0].get_input_embeddings().weight)


def damaged(folder, name, value):
    tensors = load_file(folder / "model.safetensors")
    tensors[name].view(-1)[0] = value
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_numbers_that_are_none_are_refused_when_their_layer_is_read(tmp_path):
    folder = saved(build("llama-gqa-untied"), tmp_path / "model")
    damaged(folder, "model.layers.1.mlp.up_proj.weight", float("nan"))
    model = load_frozen(folder, "float32", stream=True)
    with pytest.raises(CapgapError, match=r"layers\.1\.mlp\.up_proj\.weight holds NaN"):
        list(ready(model, [(torch.zeros(1, 4, dtype=torch.long),)]))


def test_missing_tensors_are_refused(tmp_path):
    folder = saved(build("llama-gqa-untied"), tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CapgapError, match=r"lack model\.layers\.1\.mlp\.up_proj\.weight"):
        load_frozen(folder, "float32", stream=True)


def test_limits_of_a_process_and_of_its_group_count(monkeypatch, tmp_path):
    cpu = torch.device("cpu")
    own = tmp_path / "cgroup"
    free = memory_limit.available_bytes(cpu)
    assert 0 < free < 2**50
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (2**40, 2**40))
    assert memory_limit.available_bytes(cpu) <= free * 2
    unlimited = resource.RLIM_INFINITY
    used = memory_limit._fields(Path("/proc/self/status"))["VmData"]
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (used + 10 * 2**20,) * 2)
    assert memory_limit.available_bytes(cpu) <= 10 * 2**20
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (unlimited, unlimited))
    group = own / "a" / "b"
    group.mkdir(parents=True)
    (own / "a" / "memory.max").write_text("1000000\n")
    (own / "a" / "memory.current").write_text("600000\n")
    (own / "a" / "memory.stat").write_text("anon 1\ninactive_file 50000\n")
    monkeypatch.setattr(
        memory_limit,
        "_groups",
        lambda: [(f, "memory.max", "memory.current", "inactive_file") for f in (group, own / "a")],
    )
    assert memory_limit.available_bytes(cpu) == 450_000
    shutil.rmtree(own)


# a large tensor that is freed first, then layers that come and go with something small between them
LAYERS_PASS = """
import torch
from capgap.engine.memory_limit import _fields, map_large_tensors
from pathlib import Path
if {mapped}:
    map_large_tensors()
torch.ones(5 * 2**20)
before = _fields(Path("/proc/self/status"))["RssAnon"]
layers = [(torch.ones(2**19), torch.ones(2**14)) for _ in range(50)]  # 2 MiB and 64 KiB
small = [kept for _, kept in layers]
del layers
print(_fields(Path("/proc/self/status"))["RssAnon"] - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators")
@pytest.mark.parametrize(("mapped", "left_mib"), [(True, (-20, 10)), (False, (80, 120))])
def test_freed_layers_go_back_to_the_system(mapped, left_mib):
    done = subprocess.run(
        [sys.executable, "-c", LAYERS_PASS.format(mapped=mapped)],
        check=True,
        capture_output=True,
        text=True,
    )
    assert left_mib[0] <= int(done.stdout) / 2**20 <= left_mib[1]


def test_loading_whole_is_as_ever(tmp_path):
    model = build("llama-gqa-untied")
    folder = saved(model, tmp_path / "model")
    loaded = load_frozen(folder, "float32")
    for (name, one), (_, other) in zip(
        loaded.named_parameters(), load_model(folder).named_parameters(), strict=True
    ):
        assert torch.equal(one, other), name
