"""A model folder from elsewhere runs no code, asks nothing and is read inside its folder only."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from capgap.config import PathTeacher
from capgap.engine.counting import count_params
from capgap.engine.foreign import without_asking
from capgap.engine.models import load_model, load_shape, load_tokenizer, save_model
from capgap.errors import CapgapError
from capgap.records.run_records import Lineage
from capgap.stages import fetch
from capgap.stages.base import system_message

EVIL = "import pathlib\npathlib.Path({!r}).write_text('ran')\n"


@pytest.fixture
def folder(tmp_path, tiny_model, tokenizer_file):
    """A model folder as it may come from elsewhere: all of it, with code beside it."""
    words, out = tmp_path / "words", tmp_path / "model"
    words.mkdir()
    out.mkdir()
    tokenizer_file(words)
    (words / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    model = tiny_model()
    save_model(model, out, Lineage(kind="teacher", name="m", params=count_params(model)), words)
    for name in ("modeling_x.py", "tokenization_x.py", "configuration_x.py"):
        (out / name).write_text(EVIL.format(str(tmp_path / "ran")))
    return out


def change(path, **keys):
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def fetch_by_hand(folder, out, answers="y\ny\ny\n"):
    """`capgap fetch` of a folder, with somebody who says yes to everything."""
    size = count_params(load_model(folder)).non_embedding
    words = "fetch --source path --name x --trim-vocabulary false".split()
    words += ["--path", str(folder), "--params-non-embedding", str(size), "--out", str(out)]
    return subprocess.run(
        [sys.executable, "-m", "capgap.cli", *words],
        input=answers,
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )


MAP = {
    "AutoConfig": "configuration_x.X",
    "AutoModelForCausalLM": "modeling_x.X",
    "AutoTokenizer": ["tokenization_x.X", "tokenization_x.X"],
}


def test_code_that_comes_with_a_model_is_never_run_and_never_travels(folder, tmp_path):
    change(folder / "config.json", auto_map=MAP, attn_implementation="someone/kernel")
    change(folder / "tokenizer_config.json", auto_map=MAP)
    result = fetch_by_hand(folder, tmp_path / "fetched")
    assert result.returncode == 0, result.stderr
    assert "[y/N]" not in result.stdout + result.stderr
    assert not (tmp_path / "ran").exists()
    fetched = tmp_path / "fetched"
    assert sorted(p.name for p in fetched.glob("*.py")) == []
    for path in fetched.glob("*.json"):
        assert "auto_map" not in path.read_text()
        assert "someone/kernel" not in path.read_text()
    load_tokenizer(fetched)


def test_unknown_model_with_code_is_refused_without_a_question(folder, tmp_path):
    change(folder / "config.json", auto_map=MAP, architectures=["XForCausalLM"], model_type="x")
    for load in (load_model, load_shape):
        with pytest.raises(
            CapgapError, match="knows no causal language model for architecture XForCausalLM"
        ):
            load(folder)
    assert not (tmp_path / "ran").exists()


def test_tokenizer_with_code_alone_is_refused_without_a_question(folder, tmp_path):
    change(folder / "tokenizer_config.json", auto_map=MAP, tokenizer_class="XTokenizer")
    (folder / "tokenizer.json").unlink()
    teacher = PathTeacher(source="path", path=str(folder), params_non_embedding=1)
    with pytest.raises(CapgapError):
        fetch.run(teacher, "x", tmp_path / "out")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "name",
    [
        "pipeline",
        "AutoModelForCausalLM",
        "PreTrainedModel",
        "utils",
        "__doc__",
        "torch",
        3,
        None,
        [],
    ],
)
def test_what_is_no_causal_language_model_is_never_taken_for_one(folder, name):
    """The type of the model decides then; without one the folder is refused."""
    expected = type(load_shape(folder))
    change(folder / "config.json", architectures=[name])
    assert type(load_shape(folder)) is expected
    change(folder / "config.json", architectures=[name], model_type="x")
    with pytest.raises(CapgapError, match="knows no causal language model"):
        load_shape(folder)


@pytest.mark.parametrize("attention", ["flash_attention_2", "someone/kernel", {"": "eager"}, "x"])
def test_attention_is_ours_whatever_the_configuration_names(folder, attention):
    change(folder / "config.json", attn_implementation=attention, _attn_implementation=attention)
    assert load_model(folder).config._attn_implementation == "sdpa"
    assert load_shape(folder).config._attn_implementation == "sdpa"


@pytest.mark.parametrize("name", ["../outside.safetensors", "/x.safetensors", "shard.bin", 3])
def test_index_that_names_files_elsewhere_is_refused(folder, name):
    shutil.move(folder / "model.safetensors", folder.parent / "outside.safetensors")
    shutil.copy(folder.parent / "outside.safetensors", folder / "other.safetensors")
    index = {"metadata": {}, "weight_map": {"model.norm.weight": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CapgapError, match="names .*no .safetensors file in its folder"):
        load_model(folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "model.safetensors", "config.json", "extra"])
def test_link_that_leads_out_is_refused(folder, tmp_path, name):
    outside = tmp_path / "outside"
    outside.write_text("secret")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(outside)
    for load in (load_model, load_tokenizer):
        with pytest.raises(CapgapError, match=f"{name} is a link that leads out") as error:
            load(folder)
        assert "secret" not in str(error.value)


def test_link_that_leads_back_to_itself_is_one_message(folder):
    (folder / "loop").symlink_to("loop")
    load_model(folder)
    (folder / "tokenizer.json").unlink(missing_ok=True)
    (folder / "tokenizer.json").symlink_to("tokenizer.json")
    with pytest.raises((CapgapError, OSError)) as error:
        load_tokenizer(folder)
    assert isinstance(error.value, CapgapError) or system_message(error.value)


def test_links_of_the_hubs_cache_are_followed(folder, tmp_path):
    snapshot = tmp_path / "models--x/snapshots/0123"
    blobs = tmp_path / "models--x/blobs"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for path in list(folder.iterdir()):
        shutil.move(path, blobs / path.name)
        (snapshot / path.name).symlink_to(Path("../../blobs") / path.name)
    load_model(snapshot)


def test_adapter_for_a_model_elsewhere_is_refused(folder):
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "/home/ada/private"}')
    with pytest.raises(CapgapError, match="is an adapter for a model that is elsewhere"):
        load_model(folder)


def test_settings_inside_settings_ask_for_nothing():
    given = {"a": 1, "text_config": {"auto_map": {}, "b": {"kernel_config": 1, "c": 2}}}
    assert without_asking(given) == {"a": 1, "text_config": {"b": {"c": 2}}}
