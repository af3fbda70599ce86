"""A study with teachers of both kinds of tokenizer; a change of one tokenizer reruns what follows from it."""

import csv
import json

from model_folders import byte_level_bpe
from repository import RESULTS, WORDS
from transformers import LlamaConfig, LlamaForCausalLM


def bring(folder):
    """A random model with a tokenizer of its own, as one downloads them."""
    text = [" ".join(reversed(WORDS))] * 9
    words = byte_level_bpe(text, 290, special=["<eos>"], bos_token=None, eos_token="<eos>")
    words.save_pretrained(folder)
    shape = {"hidden_size": 24, "intermediate_size": 64, "num_hidden_layers": 2}
    config = LlamaConfig(vocab_size=290, num_attention_heads=4, **shape)
    LlamaForCausalLM(config).save_pretrained(folder)


def test_teachers_with_their_own_tokenizer_teach_in_a_study(study):
    def change(settings):
        settings["teachers"]["big"] = {"source": "path", "path": "brought"}
        settings["teacher_tokenizers"] = {
            "own": {"source": "train", "vocab_size": 320, "teachers": ["t16k"]},
            "of-big": {"source": "teacher", "teacher": "big"},
        }
        settings["grid"].update(inits=["random"])
        del settings["final"]

    def larger(settings):
        settings["teacher_tokenizers"]["own"]["vocab_size"] = 330

    bring(study / "brought")
    study.configure(change)
    study.capgap("run", "--cores", "2")

    def read(name):
        return json.loads((study / RESULTS / name).read_text())

    packed = {
        "t6k": read("tokens/meta.json"),
        "t16k": read("tokenizers/own/tokens/meta.json"),
        "big": read("tokenizers/of-big/tokens/meta.json"),
    }
    assert [streams["vocab_size"] for streams in packed.values()] == [300, 320, 290]
    assert packed["t6k"]["bytes"] == packed["t16k"]["bytes"] == packed["big"]["bytes"]
    with (study / RESULTS / "law/runs.csv").open() as file:
        rows = {row["teacher"]: row for row in csv.DictReader(file)}
    assert set(rows) == set(packed)
    for name, row in rows.items():
        teacher = read(f"teachers/{name}/metrics.json")["validation"]
        tokens = [packed[of]["tokens"]["validation"] - 1 for of in ("t6k", name)]
        each = tokens[1] / tokens[0]
        loss = float(row["teacher_val_loss_nats_per_token"])
        assert abs(loss - each * teacher["loss_nats_per_token"]) < 1e-6
    for name in ("t16k", "big"):
        run = f"students/3k/random/from-{name}/tokens-5k/seed-0"
        log = next((study / "logs/distill_student").rglob(f"from-{name}/tokens-5k/seed-0.log"))
        assert "the teacher has another tokenizer" in log.read_text()
        assert read(f"{run}/model/config.json")["vocab_size"] == 300
    assert study.planned() == set()

    study.configure(larger)
    planned = study.planned()
    assert {
        "make_own_tokenizer tokenizers/own/tokenizer",
        "pack_own_tokens tokenizers/own/tokens",
        "pretrain_teacher teachers/t16k",
        "evaluate_teacher teachers/t16k",
        "distill_student students/3k/random/from-t16k/tokens-5k/seed-0",
    } <= planned
    assert not [job for job in planned if "t6k" in job or "big" in job or "random_init" in job]
