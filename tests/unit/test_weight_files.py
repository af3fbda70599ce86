"""What a folder holds is what is used, or it is refused with the name of the file."""

import json
import shutil

import pytest
import small_models
import torch
import transformers
from safetensors.torch import load_file, save_file

from capgap.engine.models import load_model, load_shape
from capgap.engine.weight_files import read_weights, weight_files
from capgap.errors import CapgapError
from capgap.pruning.store import weights_digest
from capgap.pruning.surgery import cut, keep_all

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"


@pytest.fixture
def folder(tmp_path):
    small_models.build_small("LlamaForCausalLM").save_pretrained(tmp_path / "m")
    return tmp_path / "m"


@pytest.fixture
def shards(tmp_path):
    model = small_models.build_small("LlamaForCausalLM")
    model.save_pretrained(tmp_path / "shards", max_shard_size="40KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    return tmp_path / "shards"


def change(folder, file="config.json", **values):
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def rewrite(path, **tensors):
    """Other tensors in a file; those that are None go."""
    kept = {name: t for name, t in (load_file(path) | tensors).items() if t is not None}
    save_file(kept, path, metadata={"format": "pt"})


def logits(model):
    with torch.no_grad():
        return model(input_ids=torch.arange(3, 20)[None]).logits


@pytest.mark.parametrize("dtype", [torch.float32, None])
def test_shards_are_read_as_the_index_has_them_whatever_lies_beside(shards, capsys, dtype):
    """Transformers itself would take model.safetensors and overlook the shards."""
    expected = logits(small_models.build_small("LlamaForCausalLM"))
    digest = weights_digest(shards)
    other = small_models.build_small("LlamaForCausalLM", seed=1)
    for name in (SINGLE, "consolidated.safetensors", "model-00009-of-00009.safetensors"):
        save_file({k: v.clone() for k, v in other.state_dict().items()}, shards / name)
    torch.testing.assert_close(logits(load_model(shards, dtype=dtype)), expected)
    assert weights_digest(shards) == digest
    said = capsys.readouterr().out
    assert all(name in said for name in (SINGLE, "consolidated.safetensors", "00009-of-00009"))


def test_tensors_that_the_config_does_not_use_are_refused(folder):
    """Biases of attention in the file, and a config without them: another model."""
    config = transformers.LlamaConfig(
        **{key: value for key, value in small_models.SMALL.items() if key != "vocab_size"}
        | {"vocab_size": 64, "attention_bias": True}
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    load_model(folder)
    change(folder, attention_bias=False)
    with pytest.raises(
        CapgapError, match=r"hold model\.layers\.0\.self_attn\.k_proj\.bias and 7 other"
    ):
        load_model(folder)
    change(folder, attention_bias=True, num_hidden_layers=1)
    with pytest.raises(CapgapError, match=r"hold model\.layers\.1\."):
        load_model(folder)


def test_a_head_of_its_own_stays_one_whatever_the_config_says(folder, tmp_path):
    expected = logits(small_models.build_small("LlamaForCausalLM"))
    change(folder, tie_word_embeddings=True)
    model = load_model(folder)
    torch.testing.assert_close(logits(model), expected)
    model.save_pretrained(tmp_path / "again")
    torch.testing.assert_close(logits(load_model(tmp_path / "again")), expected)
    student = cut(model, keep_all(model))
    torch.testing.assert_close(logits(student), expected)


def test_frequencies_of_old_files_are_no_other_model(folder):
    rewrite(folder / SINGLE, **{"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)})
    expected = logits(small_models.build_small("LlamaForCausalLM"))
    torch.testing.assert_close(logits(load_model(folder)), expected)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, None])
def test_a_weight_that_is_no_number_is_refused(folder, value, dtype):
    name = "model.layers.1.mlp.down_proj.weight"
    weight = load_file(folder / SINGLE)[name]
    weight[3, 5] = value
    rewrite(folder / SINGLE, **{name: weight})
    with pytest.raises(
        CapgapError, match=f"{folder}: .*model.layers.1.mlp.down_proj.weight holds NaN"
    ):
        load_model(folder, dtype=dtype)


def test_an_index_and_shards_that_disagree_are_refused_by_name(shards):
    index = json.loads((shards / INDEX).read_text())
    first = next(file for file in weight_files(shards) if len(load_file(file)) > 1)
    name = next(iter(load_file(first)))
    (shards / INDEX).write_text(
        json.dumps(index | {"weight_map": {**index["weight_map"], "x": first.name}})
    )
    with pytest.raises(CapgapError, match=f"{first}: .*places x there, but it is in no file"):
        load_model(shards)
    fewer = {n: f for n, f in index["weight_map"].items() if n != name}
    (shards / INDEX).write_text(json.dumps(index | {"weight_map": fewer}))
    with pytest.raises(CapgapError, match=f"{first}: holds {name}, which {INDEX} does not have"):
        read_weights(shards)
    (shards / INDEX).write_text(json.dumps(index))
    first.unlink()
    with pytest.raises(CapgapError, match=f"{first}: no such file, but {INDEX} names it"):
        load_model(shards)
    for damaged in ("{", "[]", '{"weight_map": {"a": 3}}', '{"weight_map": {}}'):
        (shards / INDEX).write_text(damaged)
        with pytest.raises(CapgapError, match=f"{INDEX} (is damaged|names 3)"):
            load_model(shards)


def test_two_files_without_an_index_are_refused(folder):
    shutil.move(folder / SINGLE, folder / "a.safetensors")
    shutil.copy(folder / "a.safetensors", folder / "b.safetensors")
    with pytest.raises(CapgapError, match=r"2 \.safetensors files \(a\.safetensors"):
        load_model(folder)


def test_a_pointer_of_git_lfs_is_refused_by_name(folder):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n"
    (folder / SINGLE).write_text(pointer)
    with pytest.raises(CapgapError, match=f"{folder / SINGLE}: a pointer of Git LFS"):
        load_model(folder)
    with pytest.raises(CapgapError, match="git lfs pull"):
        load_shape(folder)


def test_the_class_follows_from_the_model_type_where_architectures_do_not_name_one(folder):
    expected = logits(small_models.build_small("LlamaForCausalLM"))
    for names in (None, [], ["LlamaModel"], ["LlamaForSequenceClassification"]):
        change(folder, architectures=names)
        model = load_model(folder)
        assert type(model).__name__ == "LlamaForCausalLM"
        torch.testing.assert_close(logits(model), expected)
    rewrite(folder / SINGLE, **{"lm_head.weight": None})
    with pytest.raises(CapgapError, match=r"lack lm_head\.weight"):
        load_model(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantised .gptq"),
        ({"quantization_config": {"load_in_4bit": True}}, "quantised .unknown method"),
        (
            {"architectures": None, "model_type": None},
            r"architecture \(none\) and model_type \(none\)",
        ),
        ({"architectures": ["T5Model"], "model_type": "t5"}, "T5Model and model_type t5"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0, but must be at least 1"),
        ({"num_key_value_heads": -2}, "num_key_value_heads is -2, but must be at least 1"),
        ({"num_attention_heads": 5}, "hidden size .32. is not a multiple of .* heads .5."),
        ({"hidden_size": "32"}, "Field 'hidden_size' expected int, got str .value: '32'"),
        ({"rope_parameters": {"rope_type": "spiral"}}, "rope_type is 'spiral', which transformers"),
        ({"hidden_act": "nonesuch"}, "hidden_act is 'nonesuch', which transformers does not have"),
        ({"dtype": "float99"}, "dtype is 'float99'"),
        ({"head_dim": 16}, r"k_proj.weight with shape \[16, 32\], .* asks for \[32, 32\]"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1,000,000,000"),
        ({"hidden_size": 10**9}, "hidden_size is 1,000,000,000"),
        ({"vocab_size": 10**12}, "vocab_size is 1,000,000,000,000"),
    ],
)
def test_a_config_that_is_not_the_models_ends_in_one_message(folder, changes, message):
    change(folder, **changes)
    with pytest.raises(CapgapError, match=message) as caught:
        load_model(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def wrapper(tmp_path, model_class, config_class, text):
    config = config_class(
        text_config=text,
        vision_config={
            "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "image_size": 28,
            "num_attention_heads": 2, "patch_size": 14,
        },
    )  # fmt: skip
    torch.manual_seed(0)
    whole = model_class(config).eval()
    whole.save_pretrained(tmp_path / "wrapper")
    return whole


@pytest.mark.parametrize("dtype", [torch.float32, None])
def test_of_a_model_for_text_and_pictures_the_language_model_is_taken(tmp_path, dtype):
    text = {
        "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 4,
        "layer_types": ["sliding_attention", "full_attention"],
    }  # fmt: skip
    whole = wrapper(
        tmp_path, transformers.Gemma3ForConditionalGeneration, transformers.Gemma3Config, text
    )
    model = load_model(tmp_path / "wrapper", dtype=dtype)
    assert type(model).__name__ == "Gemma3ForCausalLM"
    with torch.no_grad():
        ids = torch.arange(3, 20)[None]
        expected = whole(input_ids=ids, token_type_ids=torch.zeros_like(ids)).logits
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)
    rewrite(tmp_path / "wrapper" / SINGLE, **{"model.language_model.layers.7.x": torch.ones(2)})
    with pytest.raises(CapgapError, match=r"hold model\.layers\.7\.x"):
        load_model(tmp_path / "wrapper")
