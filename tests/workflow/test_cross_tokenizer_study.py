"""A study with teachers of both kinds of tokenizer; a change of one tokenizer reruns what follows from it."""

import csv
import json

from repository import RESULTS


def test_teachers_with_their_own_tokenizer_teach_in_a_study(study):
    def change(settings):
        settings["teacher_tokenizers"] = {
            "own": {"source": "train", "vocab_size": 320, "teachers": ["t16k"]}
        }
        settings["grid"].update(inits=["random"])
        del settings["final"]

    def larger(settings):
        settings["teacher_tokenizers"]["own"]["vocab_size"] = 330

    study.configure(change)
    study.capgap("run", "--cores", "2")

    def read(name):
        return json.loads((study / RESULTS / name).read_text())

    packed, own = read("tokens/meta.json"), read("tokenizers/own/tokens/meta.json")
    assert (packed["vocab_size"], own["vocab_size"]) == (300, 320)
    assert packed["bytes"] == own["bytes"]
    with (study / RESULTS / "law/runs.csv").open() as file:
        rows = {row["teacher"]: row for row in csv.DictReader(file)}
    assert set(rows) == {"t6k", "t16k"}
    for name, row in rows.items():
        teacher = read(f"teachers/{name}/metrics.json")["validation"]
        tokens = [streams["tokens"]["validation"] - 1 for streams in (packed, own)]
        each = 1 if name == "t6k" else tokens[1] / tokens[0]
        loss = float(row["teacher_val_loss_nats_per_token"])
        assert abs(loss - each * teacher["loss_nats_per_token"]) < 1e-6
    folder = study / RESULTS / "students/3k/random/from-t16k/tokens-5k/seed-0"
    log = next((study / "logs/distill_student").rglob("from-t16k/tokens-5k/seed-0.log"))
    assert "the teacher has another tokenizer" in log.read_text()
    assert json.loads((folder / "model/config.json").read_text())["vocab_size"] == 300
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
    assert not [job for job in planned if "t6k" in job or "random_init" in job]
