"""
The shipped studies of hub models, shrunken, from download to law: every architecture in its
published layout (grouped queries, tied embeddings, padded vocabulary, float16), random weights.
"""

import csv
import io
import json

import pyarrow
import pyarrow.parquet
import pytest
import torch
import yaml
from hub_configs import MODELS
from hub_server import hub_server
from model_folders import byte_level_bpe
from repository import SOURCE, WORDS, write_study
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
)

from capgap.cost.architectures import shape_of_config
from capgap.engine.counting import count_params

pytestmark = pytest.mark.slow

ENTRIES, PADDED, POSITIONS = 300, 304, 64
SIZES = {"small": (2, 24, 3, 1), "large": (3, 48, 6, 2)}  # layers, hidden, heads, grouped kv_heads


def config_of(shape: dict, size: str):
    """The configuration of a published shape at another size."""
    layers, hidden, heads, grouped = SIZES[size]
    kv_heads = grouped if "kv_heads" in shape else heads
    neurons = 2 * round(hidden * shape["intermediate"] / shape["hidden"] / 2)
    common = {"bos_token_id": 0, "eos_token_id": 0, "tie_word_embeddings": shape.get("tied", False)}
    match shape["family"]:
        case "gpt2":
            config = GPT2Config(
                vocab_size=PADDED, n_layer=layers, n_embd=hidden, n_head=heads, n_inner=neurons,
                n_positions=POSITIONS, **common,
            )  # fmt: skip
        case "gpt_neox":
            config = GPTNeoXConfig(
                vocab_size=PADDED, num_hidden_layers=layers, hidden_size=hidden,
                num_attention_heads=heads, intermediate_size=neurons, rotary_pct=0.25,
                max_position_embeddings=POSITIONS, **common,
            )  # fmt: skip
        case "llama":
            config = LlamaConfig(
                vocab_size=PADDED, num_hidden_layers=layers, hidden_size=hidden,
                num_attention_heads=heads, num_key_value_heads=kv_heads, intermediate_size=neurons,
                max_position_embeddings=POSITIONS, **common,
            )  # fmt: skip
    return config


def folder_files(path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


def documents(number: int, seed: int) -> list[str]:
    draw = torch.Generator().manual_seed(seed)
    picks = torch.randint(len(WORDS), (number, 120), generator=draw).tolist()
    return [" ".join(WORDS[i] for i in row) for row in picks]


def data_set(name: str, split: str, rows: list[str]) -> dict[str, bytes]:
    """Files of a data set of one configuration."""
    path, table = f"{name}/{split}-00000-of-00001.parquet", io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"text": rows}), table)
    files = [{"split": split, "path": f"{name}/{split}-*"}]
    card = yaml.safe_dump({"configs": [{"config_name": name, "data_files": files}]})
    return {"README.md": f"---\n{card}---\n".encode(), path: table.getvalue()}


def tokenizer_files(path) -> None:
    words = byte_level_bpe(documents(50, 9), ENTRIES, model_max_length=POSITIONS)
    words.save_pretrained(path)


def shrink(study: dict, hub, tmp_path) -> dict[str, torch.nn.Module]:
    """Fill the hub with small models and texts under a study's names, and adapt the study.

    The smallest and the largest teacher stay. Returns their models as the hub has them.
    """
    names = list(study["teachers"])
    kept = {names[0]: "small", names[-1]: "large"}
    models = {}
    for seed, (name, size) in enumerate(kept.items()):
        teacher = study["teachers"][name]
        known = shape_of_config(MODELS[teacher["model"]][0], name)
        shape = known.model_dump(exclude_none=True)
        config = config_of(shape, size)
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
        model = model.to(getattr(torch, shape.get("stored", "float32")))
        model.save_pretrained(tmp_path / name)
        tokenizer_files(tmp_path / name)
        repo = hub.repo(teacher["model"])
        teacher["revision"] = repo.commit(folder_files(tmp_path / name))
        repo.commit({"config.json": b"{}"})  # main moves on
        models[name] = model
    study["teachers"] = {name: study["teachers"][name] for name in kept}
    study["plan"] |= {"processes": 1, "shard": False}
    study.pop("harness", None)  # its tasks are not on this hub
    train, test = study["corpus"], study["corpus"]["test"]
    for text, split, rows in (
        (train, "train", documents(400, 1)),
        (test, "test", [line + "\n" for line in documents(5, 2)]),
    ):
        repo = hub.repo(text["dataset"], "dataset")
        text["revision"] = repo.commit(data_set(text["name"], split, rows))
    study["prune"] |= {"calibration_sequences": 4, "sequence_length": 32}
    if "layers" in study["prune"]:
        study["prune"]["layers"] = 2
    lengths = {"sequence_length": 32, "batch_tokens": 256, "micro_batch_tokens": 128}
    study["distill"] |= lengths | {"validation_tokens": 256, "validations": 2}
    study["evaluate"] = {"sequence_length": 32, "batch_tokens": 256}
    smallest = models[names[0]]
    size = count_params(smallest).non_embedding
    study["grid"] = {
        "students": [size // 3], "tokens": [2048], "seeds": [1], "arms": ["random_init"],
        "arm_seeds": [1],
    }  # fmt: skip
    study["law"] = {"tie_nats": 0.01}
    study["final"] = {"student": size // 2, "tokens": 2048, "seeds": [1]}
    return models


@pytest.mark.parametrize("name", ["gpt2", "pythia", "llama2-minima", "smollm2-family"])
def test_a_shrunken_study_runs_from_the_hub_to_the_law(name, tmp_path):
    repository = write_study(tmp_path / "study")
    study = yaml.safe_load((SOURCE / f"configs/{name}.yaml").read_text())
    with hub_server() as hub:
        models = shrink(study, hub, tmp_path)
        (repository / "config.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
        online = {"HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "0"}
        repository.capgap("run", "--cores", "2", HF_HOME=str(tmp_path / "home"), **online)
        resolved = [path for _, path, _ in hub.asked if "/resolve/" in path]
    pinned = [teacher["revision"] for teacher in study["teachers"].values()]
    pinned += [text["revision"] for text in (study["corpus"], study["corpus"]["test"])]
    assert all(any(commit in path for commit in pinned) for path in resolved)
    results = repository / f"results/{name}"
    for teacher, model in models.items():
        arrived = AutoModelForCausalLM.from_pretrained(results / f"teachers/{teacher}/model")
        assert type(arrived) is type(model)
        for key, value in model.state_dict().items():
            assert torch.equal(arrived.state_dict()[key], value.float()), key
    students = [AutoModelForCausalLM.from_pretrained(p) for p in results.glob("students/**/model")]
    assert {type(student) for student in students} == {type(model) for model in models.values()}
    rows = list(csv.DictReader((results / "law/runs.csv").open()))
    teachers = {row["teacher"] for row in rows}
    assert teachers == {*study["teachers"], "none"}
    taught = [row for row in rows if row["arm"] == "main"]
    assert json.loads((results / "law/law.json").read_text())["n_runs"] == len(taught) > 1
    assert (results / "report/report.html").is_file()
    again = repository.capgap("run", "--dry-run").stdout
    assert "nothing to do: everything is up to date" in again
