"""One student from start to published artifact, and the pairs that are refused."""

import json
import re
import shutil
import subprocess
import sys

import pytest
import torch
from outputs import said
from safetensors.torch import load_file, save_file

from capgap.config import Distill, Evaluate, FilesCorpus, PretrainStage, TrainedTokenizer
from capgap.engine import streaming
from capgap.engine.models import load_model, tokenizer_digest
from capgap.engine.resuming import RunPaths
from capgap.engine.run_plan import RunPlan
from capgap.errors import CapgapError
from capgap.records.artifacts import differences
from capgap.records.run_records import Lineage, TrainRecord
from capgap.stages import cache_teacher, corpus, distill, evaluate, pack, pretrain, tokenizer

SHORT = {"sequence_length": 16, "batch_tokens": 64, "validations": 1, "learning_rate": 0.01}
WORDS = "the state of the union is strong and the people are free and the law is just ".split()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with texts, two tokenizers, streams and a teacher for each tokenizer."""
    root = tmp_path_factory.mktemp("world")
    (root / "texts").mkdir()
    for i in range(12):
        words = [WORDS[(i * j + j * j) % len(WORDS)] for j in range(300)]
        (root / "texts" / f"{i}.txt").write_text(" ".join(words))
    texts = FilesCorpus(source="files", pattern=f"{root}/texts/*.txt")
    corpus.run(texts, root / "corpus")
    for vocab in (270, 280):
        folder = root / f"v{vocab}"
        made = TrainedTokenizer(source="train", vocab_size=vocab)
        tokenizer.run(made, root / "corpus", folder / "tokenizer")
        pack.run(root / "corpus", folder / "tokenizer", folder / "tokens")
        shape = {"layers": 2, "hidden": 16, "heads": 2, "intermediate": 24}
        stage = PretrainStage(tokens=640, **shape, **SHORT)
        place = RunPaths(folder / "teacher", folder / "scratch", 60)
        pretrain.run(stage, f"t{vocab}", folder / "tokens", folder / "tokenizer", place)
    shutil.copytree(root / "v270", root / "other")
    return root


def run(
    world,
    out,
    *,
    teacher="v270",
    init="v270",
    seed=0,
    tokens=320,
    trunk=None,
    targets=None,
    seconds=60,
    **changes,
):
    return distill.run(
        Distill(**{**SHORT, **changes}),
        world / init / "teacher" / "model",
        world / teacher / "teacher" / "model" if teacher else None,
        world / "v270" / "tokens",
        tokens=tokens,
        seed=seed,
        run_paths=RunPaths(out, out / "scratch", seconds),
        trunk=trunk,
        targets=targets,
    )


@pytest.mark.parametrize("kept", [False, True])
def test_the_teacher_is_held_in_its_own_precision(world, tmp_path, monkeypatch, kept):
    loaded = {}

    def load(path, **options):
        loaded[path.parts[-3]] = model = load_model(path, **options)
        return model

    for module in (distill, streaming):
        monkeypatch.setattr(module, "load_model", load)
    common, given = (
        (KEPT, [{"targets": tmp_path / name} for name in "ab"]) if kept else ({}, [{}] * 2)
    )
    losses = []
    for name, precision, options in zip("ab", ["float32", "bfloat16"], given, strict=True):
        changes = common | {"teacher_precision": precision}
        if kept:
            made = make_targets(world, tmp_path / name, **changes)
            assert made.settings.precision == precision
        record = run(world, tmp_path / f"run-{name}", init="other", **options, **changes)
        losses.append(record.last_val_loss_nats_per_token)
        matrices = [p for n, p in loaded.pop("v270").named_parameters() if "proj" in n]
        assert {p.dtype for p in matrices} == {getattr(torch, precision)}
        assert {p.dtype for p in loaded.pop("other").parameters()} == {torch.float32}
        assert not loaded
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], abs=0.005)


def test_a_student_is_published_whole_with_its_record(world, tmp_path):
    record = run(world, tmp_path)
    assert differences(tmp_path / "model") == []
    assert TrainRecord.read(tmp_path / "train.json") == record
    assert record.lineage.teacher == "t270"
    assert record.lineage.seed == 0
    assert record.steps == 5
    assert Lineage.read(tmp_path / "model" / "lineage.json") == record.lineage
    lines = (tmp_path / "curve.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["step", "0", "5"]
    assert not list((tmp_path / "scratch").glob("*"))  # the state of a finished run is gone


def test_flops_count_student_three_times_and_teacher_once(world, tmp_path):
    taught = run(world, tmp_path / "a").train_flops
    alone = run(world, tmp_path / "b", teacher=None).train_flops
    assert taught == pytest.approx(alone * 4 / 3)  # teacher and student have one shape here


def test_without_a_teacher_the_weight_does_not_matter(world, tmp_path):
    for name, weight in [("a", 0.1), ("b", 0.9)]:
        run(world, tmp_path / name, teacher=None, teacher_weight=weight)
    first, second = (load_model(tmp_path / name / "model").state_dict() for name in "ab")
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert json.loads((tmp_path / "a" / "train.json").read_text())["lineage"]["teacher"] == "none"


def test_weight_zero_equals_no_teacher(world, tmp_path):
    run(world, tmp_path / "a", teacher_weight=0.0)
    run(world, tmp_path / "b", teacher=None)
    first, second = (load_model(tmp_path / name / "model").state_dict() for name in "ab")
    for key in first:
        torch.testing.assert_close(first[key], second[key], rtol=1e-4, atol=1e-5)


def test_twice_the_same_bytes(world, tmp_path):
    for name in "ab":
        run(world, tmp_path / name)
    for file in ("model/manifest.json", "train.json", "curve.csv"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def place(out):
    return RunPaths(out, out.parent / "scratch", 60)


KEPT = {"teacher_targets": "top_k", "target_entries": 270, "unique_tokens": 320}


def make_targets(world, out, teacher="v270", **changes):
    settings = Distill(**{**SHORT, **KEPT, **changes}).targets_stage()
    return cache_teacher.run(
        settings, world / teacher / "teacher/model", world / "v270/tokens", place(out)
    )


def test_a_targets_that_keeps_all_gives_the_student_of_the_online_teacher(world, tmp_path):
    made = make_targets(world, tmp_path / "targets")
    kept = run(world, tmp_path / "kept", targets=tmp_path / "targets", **KEPT)
    online = run(world, tmp_path / "online", unique_tokens=320)
    assert kept.lineage == online.lineage
    assert kept.last_val_loss_nats_per_token == pytest.approx(
        online.last_val_loss_nats_per_token, abs=1e-4
    )
    assert kept.last_val_loss_nats_per_token < kept.start_val_loss_nats_per_token
    teacher_flops = (
        online.train_flops - kept.train_flops
    )  # spent once, on record beside the targets
    assert made.forward_flops == pytest.approx(teacher_flops)  # one epoch of 320 tokens


@pytest.mark.parametrize("kind", ["online", "sampled"])
def test_killed_and_resumed_with_a_rounded_teacher_ends_in_the_same_bytes(
    world, tmp_path, monkeypatch, kind
):
    """The teacher in bfloat16, online and from disk: batches and targets continue where they were."""
    chosen = {"teacher_precision": "bfloat16", "unique_tokens": 320, "teacher_targets": kind}
    kept = None
    if kind != "online":
        kept = tmp_path / "targets"
        settings = Distill(**{**SHORT, **chosen}).targets_stage()
        cache_teacher.run(
            settings, world / "v270/teacher/model", world / "v270/tokens", place(kept)
        )
    run(world, tmp_path / "whole", tokens=640, targets=kept, **chosen)
    real = RunPlan.learning_rate

    def dying(plan, step):
        if step == 7:
            raise KeyboardInterrupt
        return real(plan, step)

    monkeypatch.setattr(RunPlan, "learning_rate", dying)
    with pytest.raises(KeyboardInterrupt):
        run(world, tmp_path / "cut", tokens=640, targets=kept, seconds=0, **chosen)
    monkeypatch.setattr(RunPlan, "learning_rate", real)
    run(world, tmp_path / "cut", tokens=640, targets=kept, **chosen)
    for file in ("model/manifest.json", "train.json", "curve.csv"):
        assert (tmp_path / "cut" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_a_targets_is_needed_and_of_this_teacher(world, tmp_path):
    with pytest.raises(CapgapError, match="their folder with --targets"):
        run(world, tmp_path / "a", **KEPT)
    make_targets(world, tmp_path / "targets")
    shutil.copytree(world / "v270" / "teacher" / "model", tmp_path / "v270" / "teacher" / "model")
    folder = tmp_path / "v270" / "teacher" / "model"
    (folder / "manifest.json").unlink()
    weights = load_file(folder / "model.safetensors")
    save_file({name: value * 1.01 for name, value in weights.items()}, folder / "model.safetensors")
    with pytest.raises(CapgapError, match="another teacher's weights"):
        run(world, tmp_path / "b", teacher=tmp_path / "v270", targets=tmp_path / "targets", **KEPT)


def test_targets_without_the_teachers_folder_are_the_teacher(world, tmp_path):
    make_targets(world, tmp_path / "targets")
    both = run(world, tmp_path / "both", targets=tmp_path / "targets", **KEPT)
    targets = run(world, tmp_path / "one", targets=tmp_path / "targets", teacher=None, **KEPT)
    kind_from_targets = run(world, tmp_path / "two", targets=tmp_path / "targets", teacher=None)
    alone = run(world, tmp_path / "alone", teacher=None, unique_tokens=320)
    assert both == targets == kind_from_targets
    assert targets.lineage.teacher == "t270"
    assert alone.last_val_loss_nats_per_token != targets.last_val_loss_nats_per_token
    with pytest.raises(CapgapError, match="another settings"):  # they are never passed over
        run(world, tmp_path / "c", targets=tmp_path / "targets", teacher=None, temperature=2.0)
    with pytest.raises(CapgapError, match="objective soft_ce alone"):
        run(world, tmp_path / "c", targets=tmp_path / "targets", objective="reverse_kl")


def test_two_vocabularies_are_refused(world, tmp_path):
    """Unless the text comes in the teacher's tokens, too: test_cross_tokenizer_runs."""
    with pytest.raises(
        CapgapError, match=r"v280.*: its tokenizer is not the one .*teacher-streams"
    ):
        run(world, tmp_path, teacher="v280")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("changed", ["vocabulary", "normalizer"])
def test_equal_width_is_not_enough(world, tmp_path, changed):
    """The same number of entries with other contents, or for other text, is another vocabulary."""
    other = tmp_path / "other"
    shutil.copytree(world / "v270" / "teacher" / "model", other / "v270" / "teacher" / "model")
    folder = other / "v270" / "teacher" / "model"
    (folder / "manifest.json").unlink()
    words = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = words["model"]["vocab"]
    first, second = sorted(vocabulary, key=vocabulary.get)[-2:]
    if changed == "vocabulary":
        vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    else:
        words["normalizer"] = {"type": "Lowercase"}
    (folder / "tokenizer.json").write_text(json.dumps(words))
    refused = pytest.raises(CapgapError, match=r"other/.*: its tokenizer .*is not the one")
    with refused:
        run(world, tmp_path / "out", teacher=other / "v270")
    with refused:  # nor does it learn from text of another tokenizer
        run(world, tmp_path / "out", init=other / "v270", teacher=None)
    with refused:
        evaluate.run(Evaluate(sequence_length=16), folder, world / "v270" / "tokens")
    settings = Distill(**{**SHORT, **KEPT}).targets_stage()
    with refused:
        cache_teacher.run(settings, folder, world / "v270" / "tokens", place(tmp_path / "targets"))


def test_a_tokenizer_is_known_however_its_file_is_written(world, tmp_path):
    """Merges as words with a space between, as older files have them, and other white space."""
    folder = world / "v270" / "tokenizer"
    words = json.loads((folder / "tokenizer.json").read_text())
    words["model"]["merges"] = [" ".join(pair) for pair in words["model"]["merges"]]
    (tmp_path / "tokenizer.json").write_text(json.dumps(words))
    assert tokenizer_digest(tmp_path) == tokenizer_digest(folder)
    assert tokenizer_digest(tmp_path) != tokenizer_digest(world / "v280" / "tokenizer")


def test_sequences_longer_than_the_models_context_are_refused(world, tmp_path):
    with pytest.raises(CapgapError, match=r"4096.*2048 positions"):
        run(world, tmp_path, sequence_length=4096, batch_tokens=4096)


def test_evaluation_of_a_damaged_model_is_refused(world, tmp_path):
    run(world, tmp_path)
    metrics = evaluate.run(Evaluate(sequence_length=16), tmp_path / "model", world / "v270/tokens")
    assert metrics.lineage.teacher == "t270"
    path = tmp_path / "model" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CapgapError, match=r"model\.safetensors has other contents"):
        evaluate.run(Evaluate(sequence_length=16), tmp_path / "model", world / "v270/tokens")


WSD = {"schedule": "wsd", "warmup_tokens": 64}


def test_a_larger_budget_goes_on_from_the_trunk_and_publishes_the_same_bytes(world, tmp_path):
    run(world, tmp_path / "short", **WSD)
    record = run(world, tmp_path / "long", tokens=960, trunk=tmp_path / "short" / "trunk", **WSD)
    run(world, tmp_path / "alone", tokens=960, **WSD)
    assert (record.tokens, record.trunk_tokens) == (960, 768)
    for name in ("model/manifest.json", "trunk/manifest.json", "train.json", "curve.csv"):
        assert (tmp_path / "long" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
    assert differences(tmp_path / "long" / "trunk") == []
    assert not list((tmp_path / "long" / "scratch").glob("*"))


def test_the_trunk_of_another_run_is_refused(world, tmp_path):
    run(world, tmp_path / "short", **WSD)
    for changes in ({"seed": 1}, {"teacher": None}, {"learning_rate": 0.02}):
        with pytest.raises(CapgapError, match="is not the trunk of this run"):
            run(
                world,
                tmp_path / "long",
                tokens=960,
                trunk=tmp_path / "short" / "trunk",
                **{**WSD, **changes},
            )


def test_other_schedules_publish_no_trunk(world, tmp_path):
    assert run(world, tmp_path).trunk_tokens == 0
    assert not (tmp_path / "trunk").exists()


DYING = """
import os, signal, sys
from capgap.stages import distill
from capgap.engine.run_plan import RunPlan
from capgap.stages.base import run_stage

rate = RunPlan.learning_rate

def dying(plan, step):
    if step == 3:
        os.kill(os.getpid(), signal.SIGTERM)
    return rate(plan, step)

RunPlan.learning_rate = dying
run_stage(distill.main, sys.argv[1:])
"""


def arguments(world, out, **changes):
    """Command line of a short distillation."""
    options = {
        **SHORT,
        "student": world / "v270/teacher/model",
        "teacher": world / "v270/teacher/model",
        "token_streams": world / "v270/tokens",
        "tokens": 640,
        "out": out,
        "scratch": f"{out}.scratch",
        **changes,
    }
    return [word for k, v in options.items() for word in (f"--{k.replace('_', '-')}", str(v))]


def test_sigterm_saves_and_ends_with_a_status_of_its_own(world, tmp_path):
    """As Slurm does when it takes the node of a job; the next run ends in the same bytes."""
    run(world, tmp_path / "whole", tokens=640)
    words = arguments(world, tmp_path / "cut")
    ended = subprocess.run(
        [sys.executable, "-c", DYING, *words], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 75
    assert "terminated after step 4/10; the state is saved in" in ended.stderr
    assert not (tmp_path / "cut" / "train.json").exists()
    assert len(list((tmp_path / "cut.scratch").glob("*/*/step-*"))) == 1
    again = subprocess.run(
        [sys.executable, "-m", "capgap.stages.distill", *words],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "resumed after step 4/10" in again.stdout
    for file in ("model/manifest.json", "train.json", "curve.csv"):
        assert (tmp_path / "cut" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_heads_padded_differently_learn_over_the_tokenizer_alone(world, tmp_path):
    """Rows of a head beyond the tokenizer are no tokens, whatever they hold."""
    padded = {}
    for name, rows in [("v270", 288), ("t", 320)]:
        folder = tmp_path / name / "teacher" / "model"
        model = load_model(world / "v270" / "teacher" / "model")
        model.resize_token_embeddings(rows, mean_resizing=False)
        with torch.no_grad():
            model.get_output_embeddings().weight[270:] = 3.0
        model.save_pretrained(folder)
        shutil.copyfile(world / "v270/teacher/model/tokenizer.json", folder / "tokenizer.json")
        padded[name] = tmp_path / name
    kept = run(world, tmp_path / "a", teacher=padded["t"], init=padded["v270"], weight_decay=0.0)
    plain = run(world, tmp_path / "b", weight_decay=0.0)
    assert kept.last_val_loss_nats_per_token == pytest.approx(plain.last_val_loss_nats_per_token)
    settings = Distill(**{**SHORT, **KEPT, "teacher_targets": "sampled"}).targets_stage()
    for name, root in [("kept", padded["t"]), ("plain", world / "v270")]:  # the same is kept
        cache_teacher.run(
            settings, root / "teacher/model", world / "v270/tokens", place(tmp_path / name)
        )
    shards = [(tmp_path / n / "shard-00000.safetensors").read_bytes() for n in ("kept", "plain")]
    assert shards[0] == shards[1]
    first, second = (load_model(tmp_path / name / "model").state_dict() for name in "ab")
    for key in second:
        torch.testing.assert_close(first[key][: len(second[key])], second[key])
    assert first["lm_head.weight"].shape[0] == 288
    assert (first["lm_head.weight"][270:] == 3.0).all()
    measured = [
        evaluate.run(Evaluate(sequence_length=16), tmp_path / name / "model", world / "v270/tokens")
        for name in "ab"
    ]
    assert measured[0].test.loss_nats_per_token == pytest.approx(
        measured[1].test.loss_nats_per_token
    )


def test_text_files_are_packed_with_the_students_tokenizer(world, tmp_path, capsys):
    """The whole of a distillation in one command, ending as with streams that were packed before."""
    words = arguments(world, tmp_path / "told", data=f"{world}/texts/*.txt", tokens=320)
    at = words.index("--token-streams")
    distill.main(words[:at] + words[at + 2 :])
    assert "packed" in capsys.readouterr().out
    run(world, tmp_path / "packed")
    for file in ("model/manifest.json", "train.json", "curve.csv"):
        found = (tmp_path / "told" / file).read_bytes()
        assert found == (tmp_path / "packed" / file).read_bytes()
    assert differences(tmp_path / "told" / "tokens") == []
    assert not list(tmp_path.glob(".corpus-*"))


def test_progress_in_a_log_file_is_plain_lines(world, tmp_path):
    """Step, parts of the loss, speed and time left; no redrawn bars, no colours."""
    log = tmp_path / "log"
    with log.open("w") as file:
        subprocess.run(
            [sys.executable, "-m", "capgap.stages.distill", *arguments(world, tmp_path / "out")],
            stdout=file,
            stderr=subprocess.STDOUT,
            check=True,
        )
    *progress, end = said(log.read_text())
    assert re.fullmatch(
        r"step 10/10  data \d\.\d{3}  teacher \d\.\d{3}  val \d\.\d{3}  lr \S+  [\d,]+ tok/s  left 0:00",
        progress[-1],
    )
    assert end.startswith("validation loss ")
    assert not set(log.read_text()) & {"\r", "\x1b"}


@pytest.mark.parametrize(("init_std", "expected"), [(None, 0.02), (0.1, 0.1)])
def test_weights_of_a_teacher_start_with_the_given_deviation(world, tmp_path, init_std, expected):
    """One step at a tiny rate leaves the 2 x 16 x 16 weights of a projection as they were drawn."""
    shape = {"layers": 2, "hidden": 16, "heads": 2, "intermediate": 24}
    stage = PretrainStage(tokens=64, init_std=init_std, **shape, **{**SHORT, "learning_rate": 1e-9})
    folder = world / "v270"
    place = RunPaths(tmp_path / "teacher", tmp_path / "scratch", 60)
    pretrain.run(stage, "t", folder / "tokens", folder / "tokenizer", place)
    model = load_model(tmp_path / "teacher/model")
    weights = torch.cat([layer.self_attn.q_proj.weight.flatten() for layer in model.model.layers])
    assert weights.std().item() == pytest.approx(expected, rel=0.15)
    assert (
        model.config.initializer_range == expected
    )  # which a random start of this shape gets, too
