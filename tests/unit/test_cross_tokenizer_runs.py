"""A student taught by a teacher with another tokenizer, from start to published artifact."""

import json
import os
import shutil
import subprocess
import sys

import pytest

import capgap as cg
from capgap.config import Depth, Distill, Evaluate, FilesCorpus, PretrainStage, TrainedTokenizer
from capgap.engine.models import load_model
from capgap.engine.resuming import RunPaths
from capgap.engine.run_plan import RunPlan
from capgap.errors import CapgapError
from capgap.records.artifacts import differences
from capgap.records.run_records import TrainRecord
from capgap.stages import corpus, distill, evaluate, pack, pretrain, random_init, tokenizer

SHORT = {"sequence_length": 16, "batch_tokens": 64, "validations": 1, "learning_rate": 0.01}
SHAPE = {"layers": 2, "hidden": 16, "heads": 2, "intermediate": 24}
WORDS = "the state of the union is strong, über 42 people are free and the law is just ".split()
SMALL, LARGE = 275, 300


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Texts, two tokenizers, the text in the tokens of each and a model for each."""
    root = tmp_path_factory.mktemp("world")
    (root / "texts").mkdir()
    for i in range(12):
        words = [WORDS[(i * j + j * j) % len(WORDS)] for j in range(300)]
        (root / "texts" / f"{i}.txt").write_text(" ".join(words), encoding="utf-8")
    texts = FilesCorpus(source="files", pattern=f"{root}/texts/*.txt")
    corpus.run(texts, root / "corpus")
    for vocab in (SMALL, LARGE):
        folder = root / str(vocab)
        made = TrainedTokenizer(source="train", vocab_size=vocab)
        tokenizer.run(made, root / "corpus", folder / "tokenizer")
        pack.run(root / "corpus", folder / "tokenizer", folder / "tokens")
        stage = PretrainStage(tokens=1280, **SHAPE, **SHORT)
        place = RunPaths(folder / "teacher", folder / "scratch", 60)
        pretrain.run(stage, f"t{vocab}", folder / "tokens", folder / "tokenizer", place)
    return root


def model(world, vocab):
    return world / str(vocab) / "teacher" / "model"


def run(world, out, *, student=SMALL, teacher=LARGE, streams=LARGE, seconds=60, **changes):
    return distill.run(
        Distill(**{**SHORT, **changes}),
        model(world, student),
        teacher and model(world, teacher),
        world / str(student) / "tokens",
        tokens=640,
        seed=0,
        run_paths=RunPaths(out, out / "scratch", seconds),
        teacher_streams=streams and world / str(streams) / "tokens",
    )


def files(folder):
    return [
        (folder / name).read_bytes() for name in ("model/manifest.json", "train.json", "curve.csv")
    ]


@pytest.mark.parametrize(("student", "teacher"), [(SMALL, LARGE), (LARGE, SMALL)])
def test_a_student_of_either_vocabulary_learns_and_keeps_its_own(
    world, tmp_path, student, teacher, capsys
):
    record = run(world, tmp_path / "run", student=student, teacher=teacher, streams=teacher)
    said = capsys.readouterr().out
    assert "the teacher has another tokenizer" in said
    assert "of these, 0.00% are pairs of two classes" in said  # the vocabularies are nested
    assert record.lineage.teacher == f"t{teacher}"
    assert record.last_val_loss_nats_per_token < record.start_val_loss_nats_per_token
    assert differences(tmp_path / "run" / "model") == []
    assert load_model(tmp_path / "run" / "model").config.vocab_size == student
    header, *rows = (tmp_path / "run" / "curve.csv").read_text().splitlines()
    terms = [
        float(row.split(",")[header.split(",").index("train_teacher_term_nats_per_token")] or 0)
        for row in rows
    ]
    assert terms[-1] > 0
    with pytest.raises(CapgapError, match="its tokenizer"):  # it reads the student's tokens only
        evaluate.run(
            Evaluate(sequence_length=16), tmp_path / "run/model", world / str(teacher) / "tokens"
        )


def test_a_teachers_flops_are_those_of_its_own_tokens(world, tmp_path):
    alone = run(world, tmp_path / "alone", teacher=None, streams=None).train_flops
    same = run(world, tmp_path / "same", teacher=SMALL, streams=None).train_flops
    other = run(world, tmp_path / "other").train_flops
    counts = [
        json.loads((world / str(vocab) / "tokens/meta.json").read_text())["tokens"]["train"]
        for vocab in (SMALL, LARGE)
    ]
    head = 2 * 16 * (LARGE - SMALL)  # FLOPs of the further rows of the teacher's head
    forward = (same - alone) / 640
    assert other - alone == pytest.approx(640 * (forward + head) * counts[1] / counts[0], rel=1e-3)


def test_micro_batches_change_the_rounding_alone(world, tmp_path):
    whole = run(world, tmp_path / "whole", objective="jensen_shannon", beta=0.5, temperature=2.0)
    parts = run(
        world,
        tmp_path / "parts",
        objective="jensen_shannon",
        beta=0.5,
        temperature=2.0,
        micro_batch_tokens=16,
        loss_chunk_tokens=5,
    )
    assert parts.last_val_loss_nats_per_token == pytest.approx(
        whole.last_val_loss_nats_per_token, rel=1e-5
    )


def test_a_killed_run_ends_in_the_same_bytes(world, tmp_path, monkeypatch):
    run(world, tmp_path / "whole")
    rate = RunPlan.learning_rate

    def dying(plan, step):
        if step == 6:
            raise KeyboardInterrupt
        return rate(plan, step)

    monkeypatch.setattr(RunPlan, "learning_rate", dying)
    with pytest.raises(KeyboardInterrupt):
        run(world, tmp_path / "cut", seconds=0)
    monkeypatch.undo()
    states = list((tmp_path / "cut" / "scratch").glob("*/step-*"))
    assert states
    run(world, tmp_path / "cut")
    assert files(tmp_path / "cut") == files(tmp_path / "whole")


def test_by_hand_the_text_is_packed_for_both(world, tmp_path):
    words = ["--student", model(world, SMALL), "--teacher", model(world, LARGE)]
    words += ["--data", f"{world}/texts/*.txt", "--tokens", 640, "--out", tmp_path / "told"]
    words += ["--scratch", tmp_path / "scratch"]
    for key, value in SHORT.items():
        words += [f"--{key.replace('_', '-')}", value]
    distill.main(list(map(str, words)))
    run(world, tmp_path / "packed")
    assert files(tmp_path / "told") == files(tmp_path / "packed")


def test_python_packs_the_text_for_both_or_takes_it_packed(world, tmp_path):
    student, teacher = model(world, SMALL), model(world, LARGE)
    made = cg.distill(
        student, teacher, f"{world}/texts/*.txt", out=tmp_path / "a", tokens=640, **SHORT
    )
    streams = [world / str(vocab) / "tokens" for vocab in (SMALL, LARGE)]
    again = cg.distill(
        student,
        teacher,
        streams[0],
        teacher_text=streams[1],
        out=tmp_path / "b",
        tokens=640,
        **SHORT,
    )
    assert made.record == again.record
    with pytest.raises(CapgapError, match=r"teacher_text: .* leave it out"):
        cg.distill(
            student,
            teacher,
            ["a", "b", "c"],
            teacher_text=streams[1],
            out=tmp_path / "c",
            tokens=64,
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"streams": None}, "its tokenizer is not the one that .*--teacher-streams .*teacher_text"),
        ({"streams": SMALL}, "was not packed with the tokenizer of"),
        ({"teacher": SMALL}, "is not needed, because .* has the student's tokenizer"),
        ({"teacher": None}, "is not used, because there is no teacher"),
        (
            {"teacher_targets": "top_k", "unique_tokens": 640},
            "teacher_targets: top_k keeps .* set it to online",
        ),
    ],
)
def test_what_does_not_fit_together_is_refused(world, tmp_path, changes, message):
    with pytest.raises(CapgapError, match=message):
        run(world, tmp_path, **changes)


def test_a_text_that_is_another_one_is_refused(world, tmp_path):
    shutil.copytree(world / "texts", tmp_path / "texts")
    (tmp_path / "texts" / "3.txt").write_text("another text. " * 90)
    corpus.run(FilesCorpus(source="files", pattern=f"{tmp_path}/texts/*.txt"), tmp_path / "corpus")
    shutil.copytree(world / str(LARGE), tmp_path / str(LARGE))
    shutil.copytree(world / str(SMALL), tmp_path / str(SMALL))
    shutil.rmtree(tmp_path / str(LARGE) / "tokens")
    pack.run(
        tmp_path / "corpus", world / str(LARGE) / "tokenizer", tmp_path / str(LARGE) / "tokens"
    )
    with pytest.raises(CapgapError, match="do not hold the same text"):
        run(tmp_path, tmp_path / "run")


def test_a_random_init_takes_the_students_tokenizer(world, tmp_path):
    """Of a shape that a teacher with another tokenizer lends."""
    random_init.run(
        Depth(),
        model(world, LARGE),
        2000,
        0,
        tmp_path / "init",
        tokenizer=world / str(SMALL) / "tokenizer",
    )
    made = load_model(tmp_path / "init")
    assert made.config.vocab_size == SMALL
    assert made.config.eos_token_id == 0
    shutil.copytree(world / str(SMALL) / "tokens", tmp_path / str(SMALL) / "tokens")
    record = distill.run(
        Distill(**SHORT),
        tmp_path / "init",
        model(world, LARGE),
        world / str(SMALL) / "tokens",
        tokens=640,
        seed=0,
        run_paths=RunPaths(tmp_path / "run", tmp_path / "scratch", 60),
        teacher_streams=world / str(LARGE) / "tokens",
    )
    assert record.lineage.init == "random"


def test_the_teacher_is_held_in_its_own_precision(world, tmp_path):
    full, half = (
        run(world, tmp_path / precision, teacher_precision=precision).last_val_loss_nats_per_token
        for precision in ("float32", "bfloat16")
    )
    assert full != half
    assert full == pytest.approx(half, abs=0.01)


@pytest.mark.parametrize("words", [[], ["--shard"]])
def test_two_processes_end_as_one(world, tmp_path, words):
    alone = run(world, tmp_path / "alone", micro_batch_tokens=32)
    options = {
        **SHORT,
        "student": model(world, SMALL),
        "teacher": model(world, LARGE),
        "token-streams": world / str(SMALL) / "tokens",
        "teacher-streams": world / str(LARGE) / "tokens",
        "tokens": 640,
        "micro-batch-tokens": 32,
        "out": tmp_path / "both",
        "scratch": tmp_path / "scratch",
    }
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    given = [w for k, v in options.items() for w in (f"--{k.replace('_', '-')}", str(v))]
    done = subprocess.run(
        [*start, "-m", "capgap.stages.distill", *words, *given],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    both = TrainRecord.read(tmp_path / "both" / "train.json")
    assert both.train_flops == alone.train_flops
    assert both.last_val_loss_nats_per_token == pytest.approx(
        alone.last_val_loss_nats_per_token, rel=1e-5
    )
