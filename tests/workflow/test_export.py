"""The final student as a folder that needs nothing of this project."""

import json
import sys

import gguf
import yaml
from hub_server import hub_server
from repository import RESULTS, SOURCE

from capgap.commands import export
from capgap.config.study_file import load_study

LOAD = """
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained("out")
ids = AutoTokenizer.from_pretrained("out")("the law of a river", return_tensors="pt").input_ids
print(model(ids).logits.shape[-1], model.config.vocab_size)
"""


def test_final_student_is_exported_with_a_model_card(study):
    study.capgap("export", "--out", "out", "--data-licence", "CC0-1.0", "--licence", "apache-2.0")
    assert not (study / "out/manifest.json").exists()
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        exported = (study / "out" / name).read_bytes()
        assert exported == (study / RESULTS / "final/model" / name).read_bytes()
    head, card = (study / "out/README.md").read_text().split("---\n")[1:3]
    assert yaml.safe_load(head)["license"] == "apache-2.0"
    final = json.loads((study / RESULTS / "final/final.json").read_text())
    row = next(r for r in final["rows"] if r["teacher"] == final["choice"]["chosen"])
    name = final["choice"]["chosen"]
    teacher = json.loads((study / RESULTS / f"teachers/{name}/metrics.json").read_text())
    law = json.loads((study / RESULTS / "law/law.json").read_text())
    for text in (
        f"| teacher | {name}: trained from random weights",
        f"| test loss | {row['test_loss_by_seed']['0']:.4f} nats per token |",
        f"| test bits per byte | {row['test_bits_per_byte']:.4f} |",
        f"| regret of the choice | {final['regret_nats']:.4f} nats",
        f"| teacher's test loss | {teacher['test']['loss_nats_per_token']:.4f} nats per token |",
        f"| law | {law['verdict']} |",
        "Licence of the data: CC0-1.0",
        "Licence of the teacher: that of the data",
        "| distillation tokens | 8,000 |\n| seed | 0 |",
        "local files `corpus/*.txt`",
        "capgap run --study config.yaml\ncapgap export --study config.yaml --out out "
        "--licence apache-2.0 --data-licence CC0-1.0\n",
        str(study.path),
    ):
        assert (text in card) == (text != str(study.path)), text
    figure = (study / "out/law.png").read_bytes()
    assert figure == (study / RESULTS / "report/law.png").read_bytes()
    assert "fitted law and published law](law.png)" in card
    assert "| study's revision | " in card
    logits, vocabulary = study.command(sys.executable, "-c", LOAD).stdout.split()
    assert logits == vocabulary


DYING = """
import os, shutil, sys
real, copied = shutil.copyfile, []
def copy(source, target):
    if len(copied) == 2:
        os._exit(9)
    copied.append(real(source, target))
shutil.copyfile = copy
from capgap import cli
sys.argv = ["capgap", "export", *sys.argv[1:]]
cli.main()
"""


def test_a_killed_export_leaves_nothing_half_written_and_works_again(study):
    words = ("--out", "out", "--data-licence", "CC0-1.0")
    killed = study.command(sys.executable, "-c", DYING, *words, check=False)
    assert killed.returncode == 9
    assert not (study / "out").exists()
    added = study / RESULTS / "final/model/added.txt"
    added.write_text("mine")
    refused = study.capgap("export", *words, check=False)
    assert "added.txt is not in the manifest of its folder" in refused.stderr
    assert not (study / "out").exists()
    added.unlink()
    study.capgap("export", *words)
    assert (study / "out/README.md").is_file()
    assert [p.name for p in study.path.glob(".out*")] == []


def test_export_refuses_an_unknown_licence_and_an_existing_folder(study):
    result = study.capgap("export", "--out", "out", check=False)
    assert result.returncode == 1
    assert "give --data-licence" in result.stderr
    assert not (study / "out").exists()
    result = study.capgap("export", "--out", "corpus", "--data-licence", "CC0-1.0", check=False)
    assert "corpus exists already" in result.stderr


def test_export_as_gguf(study):
    study.capgap("export", "--out", "small", "--data-licence", "CC0-1.0", "--gguf", "q8_0")
    reader = gguf.GGUFReader(study / "small/small-q8_0.gguf")
    fields = {key: field.contents() for key, field in reader.fields.items()}
    assert fields["general.name"] == "small"
    assert fields["tokenizer.ggml.pre"] == "gpt-2"
    assert (
        "`small-q8_0.gguf` is the same model for llama.cpp"
        in (study / "small/README.md").read_text()
    )


def test_what_is_pushed_is_the_folder_and_a_card_for_strangers(study):
    words = ("--data-licence", "CC0-1.0", "--licence", "cc0-1.0", "--push", "me/small")
    with hub_server() as hub:
        online = {"HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        done = study.capgap("export", "--out", "out", *words, HF_TOKEN=hub.writer, **online)
        repo = hub.repos["model", "me/small"]
        held = {k: v for k, v in repo.commits[repo.main].items() if k != ".gitattributes"}
    assert f"me/small: pushed as commit {repo.main}" in done.stdout
    assert held == {p.name: p.read_bytes() for p in (study / "out").iterdir()}
    assert {"README.md", "law.png", "model.safetensors", "tokenizer.json"} <= set(held)
    head, card = held["README.md"].decode().split("---\n")[1:3]
    assert yaml.safe_load(head)["license"] == "cc0-1.0"
    for text in (
        "# small\n",
        'from_pretrained("me/small")',
        "[arXiv 2311.07052](https://arxiv.org/abs/2311.07052)",
        "Licence of this model: cc0-1.0.",
        f"| study's revision | {study.git('rev-parse', 'HEAD').stdout.strip()} |",
        "--data-licence CC0-1.0 --push me/small\n",
        "## Limits",
    ):
        assert text in card, text
    assert hub.writer not in card


def test_the_card_names_teacher_and_data_of_the_hub():
    study = load_study(yaml.safe_load((SOURCE / "configs" / "gpt2.yaml").read_text()))
    name, teacher = next(iter(study.teachers.items()))
    expected = {"base_model": teacher.model, "datasets": [study.corpus.dataset]}
    assert export._hub_sources(study, name) == expected


def test_a_push_without_a_token_keeps_the_folder_and_names_the_fix(study):
    result = study.capgap(
        "export", "--out", "out", "--data-licence", "CC0-1.0", "--push", "me/small", check=False
    )
    assert result.returncode == 1
    assert "--push: no token" in result.stderr
    assert (study / "out/model.safetensors").exists()
