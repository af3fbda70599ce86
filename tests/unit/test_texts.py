"""Further texts and tasks as outcomes: preparing and packing a text, losses on it, scores, settings."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from model_folders import byte_level_bpe, publish_model

from capgap.config import CollectStage, Evaluate, FilesText
from capgap.config.run_grid import NONE, collect_stage, runs_of
from capgap.config.shapes import LlamaShape
from capgap.config.study_file import load_study
from capgap.cost.job_costs import StudyCost
from capgap.data.token_streams import Streams
from capgap.engine.evaluation import mean_loss
from capgap.engine.models import llama_config, load_model, new_model
from capgap.errors import CapgapError
from capgap.law.table.task_scores import task_outcome
from capgap.records.run_records import HarnessRecord, TextLoss
from capgap.stages import evaluate, pack, text

torch.set_num_threads(1)
TINY = Path(__file__).parents[1] / "tiny/config.yaml"
PARAMS = {"embedding": 1, "attention": 1, "mlp": 1, "norm": 0, "non_embedding": 2, "total": 3}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Folder of a small random model with a tokenizer."""
    root = tmp_path_factory.mktemp("model")
    words = byte_level_bpe(["the river and the stone"] * 20, 300)
    words.save_pretrained(root / "words")
    shape = LlamaShape(1, 16, 2, 2, 8, 32, vocab=len(words), tied=True)
    made = new_model(llama_config(shape, max_positions=32, bos_id=0, eos_id=0), seed=0)
    return publish_model(made, root / "model", root / "words")


@pytest.fixture
def texts(tmp_path):
    """Two documents in files."""
    (tmp_path / "news").mkdir()
    (tmp_path / "news/b.txt").write_text("the stone and the tree " * 30)
    (tmp_path / "news/a.txt").write_text("an old river " * 40)
    return tmp_path / "news"


def test_all_documents_of_a_text_are_held_out_and_measured(model, texts, tmp_path):
    source = FilesText(source="files", pattern=str(texts))
    record = text.run(source, "news", tmp_path / "corpus")
    size = sum(path.stat().st_size for path in texts.iterdir())
    assert (record.documents, record.bytes) == ({"test": 2}, {"test": size})
    meta = pack.run(tmp_path / "corpus", model, tmp_path / "tokens", splits=["test"])
    assert list(meta.tokens) == ["test"]
    settings = Evaluate(sequence_length=16, batch_tokens=64, loss_on="completions")
    found = evaluate.on_text(settings, model, tmp_path / "tokens", "news")
    assert (found.text, found.lineage.name) == ("news", "t")
    streams = Streams(tmp_path / "tokens")
    loss = mean_loss(
        load_model(model),
        streams["test"],
        sequence_length=16,
        batch_tokens=64,
        split="test",
        vocab=meta.vocab_size,
        bos_id=meta.bos_id,
    )
    assert found.measured.loss_nats_per_token == loss
    bits = loss * (len(streams["test"]) - 1) / math.log(2) / size
    assert found.measured.bits_per_byte == pytest.approx(bits)
    evaluate.main(
        ["--model", str(model), "--token-streams", str(tmp_path / "tokens"), "--text", "news",
         "--sequence-length", "16", "--batch-tokens", "64", "--out", str(tmp_path / "news.json")]
    )  # fmt: skip
    assert TextLoss.read(tmp_path / "news.json") == found


@pytest.mark.parametrize("pattern", ["nothing/*.txt", "empty/*.txt"])
def test_a_text_without_documents_names_its_key(pattern, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/a.txt").write_text("\n")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(CapgapError, match=r"^evaluate\.texts\.news[.:]"):
        text.run(FilesText(source="files", pattern=pattern), "news", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def study(change=lambda data: None):
    data = yaml.safe_load(TINY.read_text())
    data["evaluate"]["texts"] = {"news": {"source": "files", "pattern": "news/*.txt"}}
    data["harness"] = {"tasks": {"word": 2, "gsm8k": 8}}
    data["law"] = {"metric": ["loss", "news", "word/acc"]}
    change(data)
    return load_study(data)


def test_a_text_is_measured_by_all_and_a_task_only_if_the_law_asks():
    made = study()
    rules = [job.rule for job in StudyCost(made).jobs]
    grid = runs_of(made)
    assert rules.count("evaluate_student_text") == rules.count("harness_student") == len(grid)
    assert rules.count("evaluate_teacher_text") == len(made.teachers)
    assert made.student_harness().shots() == {"word": 2}
    assert made.evaluate.stage() == study(lambda d: d["evaluate"].pop("texts") and d["law"].pop("metric")).evaluate.stage()  # fmt: skip
    stage = CollectStage.model_validate(collect_stage(made).model_dump(mode="json"))
    assert (stage.texts, stage.tasks) == (["news"], ["word/acc"])

    def lead_by_loss(data):
        data["law"] = {}

    without = study(lead_by_loss)
    assert without.student_harness() is None
    assert "harness_student" not in [job.rule for job in StudyCost(without).jobs]
    made = {job.output for job in StudyCost(study()).jobs}
    assert all(need in made for job in StudyCost(study()).jobs for need in job.needs)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda d: d["law"].update(metric="newz"), "law.metric: 'newz' is neither .* there are loss, test, news"),
        (lambda d: d["law"].update(metric=["loss", "loss"]), "law.metric: loss occurs twice"),
        (lambda d: d["law"].update(margins={"x": 0.1}), "law.margins.x: no metric has this name"),
        (lambda d: d["evaluate"]["texts"].update(loss={"source": "files", "pattern": "x"}), "evaluate.texts.loss: a name"),
        (lambda d: d["evaluate"]["texts"].update({"No!": {"source": "files", "pattern": "x"}}), "evaluate.texts.No!: a name"),
        (lambda d: d["evaluate"]["texts"].update(word={"source": "files", "pattern": "x"}), "evaluate.texts.word: a task"),
        (lambda d: d["evaluate"]["texts"]["news"].update(validation_share=0.1), "evaluate.texts.news.validation_share: unknown key"),
        (lambda d: d["evaluate"]["texts"]["news"].pop("pattern"), "evaluate.texts.news.pattern: missing"),
    ],
)  # fmt: skip
def test_what_does_not_fit_together_is_named(change, problem):
    with pytest.raises(CapgapError, match=problem):
        study(change)


def scores(*found):
    """A record with scores (task, metric, filter, value, documents, whether higher is better)."""
    keys = ("task", "metric", "filter", "value", "documents", "higher_is_better")
    rest = {"shots": 0, "task_version": None, "standard_error": None}
    return HarnessRecord(
        lineage={"kind": "student", "name": "s", "params": PARAMS},
        lm_eval_version="0",
        tasks={"word": 0},
        limit=None,
        scores=[dict(zip(keys, one, strict=True)) | rest for one in found],
    )


def test_a_score_becomes_an_outcome_of_its_kind():
    record = scores(
        ("word", "acc", "none", 0.0, 9, True),
        ("text", "bits_per_byte", "none", 1.5, 9, False),
        ("text", "byte_perplexity", "none", 2.8, 9, False),
        ("sums", "exact_match", "strict", 0.2, None, True),
        ("sums", "exact_match", "flexible", 0.3, None, True),
        ("bleu", "bleu", "none", 31.0, 9, True),
        ("brier", "brier_score", "none", 0.4, 9, False),
        ("odd", "mystery", "none", 0.4, 9, None),
    )
    assert task_outcome(record, "word") == ("accuracy:word", 0.05)  # (0 + 0.5) / (9 + 1)
    assert task_outcome(record, "text/bits_per_byte") == ("bits_per_byte:text/bits_per_byte", 1.5)
    assert task_outcome(record, "text/byte_perplexity")[0] == "lower:text/byte_perplexity"
    assert task_outcome(record, "sums/exact_match/flexible")[1] == 0.3
    assert task_outcome(record, "bleu") == ("higher:bleu", 31.0)
    assert task_outcome(record, "brier") == ("lower:brier", 0.4)
    with pytest.raises(
        CapgapError, match="text has several scores; name one of text/bits_per_byte, text/byte"
    ):
        task_outcome(record, "text")
    with pytest.raises(
        CapgapError, match="name one of sums/exact_match/strict, sums/exact_match/flex"
    ):
        task_outcome(record, "sums/exact_match")
    with pytest.raises(CapgapError, match="word/f1 has no such score; name one of word/acc"):
        task_outcome(record, "word/f1")
    with pytest.raises(CapgapError, match="does not state whether more or less of odd"):
        task_outcome(record, "odd")


def test_controls_are_measured_too():
    made = study()
    without = [run for run in runs_of(made) if run.teacher == NONE]
    outputs = {job.output for job in StudyCost(made).jobs}
    assert without
    assert all(
        any(
            f"/{run.init}/from-none/" in output and output.endswith("news.json")
            for output in outputs
        )
        for run in without
    )
    assert np.isfinite(len(json.dumps(made.evaluate.model_dump(mode="json"))))
