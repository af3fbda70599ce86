"""Parameters by group, FLOPs, loading and saving."""

import json

import pytest
import torch
from model_folders import publish_model
from transformers import AutoModelForCausalLM

from capgap.config.shapes import LlamaShape, forward_flops_per_token, training_flops
from capgap.data.token_streams import Streams
from capgap.engine.counting import count_params, forward_flops
from capgap.engine.evaluation import bits_per_byte, mean_loss
from capgap.engine.models import compute_device, llama_config, load_model, new_model
from capgap.errors import CapgapError
from capgap.records.run_records import ParamGroups

SHAPE = LlamaShape(
    layers=2, hidden=12, heads=4, kv_heads=2, head_dim=4, intermediate=20, vocab=50, tied=True
)


def test_a_folder_without_a_generation_config_is_loaded(tiny_model, tmp_path):
    tiny_model().save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    assert load_model(tmp_path).generation_config.eos_token_id == tiny_model().config.eos_token_id


def test_parameters_by_group_by_hand():
    params = SHAPE.params()
    assert params["embedding"] == 50 * 12
    # per layer: q and o 12 x 16, k and v 12 x 8
    assert params["attention"] == 2 * (2 * 12 * 16 + 2 * 12 * 8)
    assert params["mlp"] == 2 * 3 * 12 * 20
    assert params["norm"] == 5 * 12
    assert params["total"] == 600 + params["non_embedding"]


@pytest.mark.parametrize("tied", [True, False])
def test_arithmetic_agrees_with_the_model(tied):
    shape = LlamaShape(**{**vars(SHAPE), "tied": tied})
    config = llama_config(shape, max_positions=32, bos_id=0, eos_id=0)
    counted = count_params(new_model(config, 0))
    assert counted == ParamGroups(**shape.params())


def test_groups_that_do_not_sum_are_refused():
    with pytest.raises(ValueError, match="Assertion failed"):
        ParamGroups(embedding=1, attention=1, mlp=1, norm=1, non_embedding=3, total=5)


def test_flops_by_hand():
    assert forward_flops_per_token(1000, layers=2, attention_width=16, context=8) == 2000 + 512
    assert training_flops(10, student_forward=100, teacher_forward=50) == 10 * 350
    model = new_model(llama_config(SHAPE, max_positions=32, bos_id=0, eos_id=0), 0)
    params = SHAPE.params()
    matmul = params["attention"] + params["mlp"] + 50 * 12
    assert forward_flops(model, 8) == 2 * matmul + 2 * 2 * 16 * 8


def test_saved_model_loads_with_plain_transformers_and_ours(tiny_model, tmp_path):
    model = tiny_model()
    publish_model(model, tmp_path / "m", tmp_path)
    ids = torch.tensor([[1, 2, 3]])
    expected = model.eval()(ids).logits
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    assert torch.equal(plain(ids).logits, expected)
    assert torch.equal(load_model(tmp_path / "m")(ids).logits, expected)
    assert not list((tmp_path / "m").glob("*.bin"))


def test_pickled_weights_are_not_loaded(tmp_path):
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(CapgapError, match="pickled weights are not loaded"):
        load_model(folder)


def test_an_unknown_architecture_is_refused_by_name(tmp_path):
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architectures": ["NoSuchModel"]}))
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(CapgapError, match="NoSuchModel"):
        load_model(folder)


def test_held_out_loss_equals_the_models_own(tiny_model, token_streams):
    stream, model = Streams(token_streams())["validation"], tiny_model().eval()
    ids = torch.tensor(stream[:129].astype("int64"))
    logits = model(ids[:-1].reshape(4, 32)).logits.reshape(128, -1)
    expected = torch.nn.functional.cross_entropy(logits, ids[1:]).item()
    ours = mean_loss(model, stream[:129], sequence_length=32, batch_tokens=64, split="validation")
    assert ours == pytest.approx(expected, rel=1e-6)
    assert bits_per_byte(ours, 128, 256) == pytest.approx(expected / 2 / 0.693147, rel=1e-5)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("num_hidden_layers", 3, "weights lack model.layers.2"),
        (
            "intermediate_size",
            44,
            r"hold model\.layers\.0\.mlp\.down_proj\.weight with shape \[\d+, \d+\], but config.json "
            r"asks for \[\d+, 44\], and for another shape of \d+ other tensors",
        ),
    ],
)
def test_weights_that_do_not_fit_the_config_are_refused(tiny_model, tmp_path, key, value, message):
    """Transformers would make up what is missing at random, with a warning."""
    tiny_model().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {key: value}))
    with pytest.raises(CapgapError, match=message):
        load_model(tmp_path)


def test_torn_weights_are_refused_by_name(tiny_model, tmp_path):
    tiny_model().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(CapgapError, match=f"{path} is damaged"):
        load_model(tmp_path)


def test_a_job_computes_on_the_gpu_that_is_its_own(monkeypatch):
    assert str(compute_device()) == ("cuda:0" if torch.cuda.is_available() else "cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "3")  # of torchrun
    assert str(compute_device()) == "cuda:3"
