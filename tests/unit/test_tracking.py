"""Trackers get the learning curve of a run, offline, and neither results nor reruns depend on them."""

import json
import math
import os
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
import torch

import capgap as cg
from capgap.config import Distill
from capgap.config.study_file import load_study
from capgap.workflow import rule_params, tracking

CURVE = (
    "learning_rate train_data_ce_nats_per_token train_teacher_term_nats_per_token "
    "val_loss_nats_per_token"
).split()


@pytest.fixture
def students(tiny_model, tokenizer_file, token_streams, tmp_path, monkeypatch):
    """Function that trains a student with these trackers, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    tokens = token_streams(tokens=2000)
    tiny_model().save_pretrained(tmp_path / "start")
    tokenizer_file(tmp_path / "start")

    def train(out, *trackers):
        return cg.distill(
            "start",
            None,
            tokens,
            out=out,
            tokens=512,
            track=list(trackers),
            sequence_length=16,
            batch_tokens=64,
            validations=2,
            validation_tokens=256,
        )

    return train


def files(folder):
    """Contents of a run's results by name."""
    return {
        path.relative_to(folder): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_tensorboard_gets_the_curve_and_the_result_is_the_same_without_it(students, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = students("watched", "tensorboard")
    students("unwatched")
    assert files(tmp_path / "watched") == files(tmp_path / "unwatched")
    events = EventAccumulator(str(tmp_path / "tracking/tensorboard/watched"))
    events.Reload()
    assert sorted(events.Tags()["scalars"]) == CURVE
    shown = [(e.step, e.value) for e in events.Scalars("val_loss_nats_per_token")]
    expected = run.curve[["tokens", "val_loss_nats_per_token"]].to_numpy().tolist()
    assert [step for step, _ in shown] == [0, 256, 512]
    assert [value for _, value in shown] == pytest.approx([v for _, v in expected], rel=1e-6)


def watch(*trackers):
    """Send a curve of two points."""
    with tracking.tracked(list(trackers), Path("runs/watched")) as send:
        send(0, {"val_loss_nats_per_token": 4.0, "train_data_ce_nats_per_token": math.nan})
        send(256, {"val_loss_nats_per_token": 3.5, "train_data_ce_nats_per_token": 3.25})


def test_mlflow_writes_into_the_folder_without_a_server(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    watch("mlflow")
    [run] = mlflow.search_runs(experiment_names=["capgap"], output_format="list")
    assert run.info.run_name == "runs/watched"
    assert run.data.metrics["val_loss_nats_per_token"] == 3.5
    assert run.data.metrics["train_data_ce_nats_per_token"] == 3.25
    assert mlflow.active_run() is None
    assert (tmp_path / "tracking/mlflow/mlflow.db").is_file()


def test_wandb_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    watch("wandb")
    [run] = (tmp_path / "tracking/wandb").rglob("*.wandb")
    for _ in range(600):  # W&B's own process writes on after finish() has returned
        data = run.read_bytes()
        if b"runs/watched" in data and b"val_loss_nats_per_token" in data:
            break
        time.sleep(0.1)
    else:
        pytest.fail(f"the curve is not in {run}, {len(data)} bytes")


def test_trackio_on_this_machine(tmp_path):
    """In a process of its own: trackio looks for its folder when it is imported."""
    pytest.importorskip("trackio")
    code = "import sys; sys.path.append(sys.argv[1]); from test_tracking import watch; watch('trackio')"
    subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parent)],
        check=True,
        cwd=tmp_path,
        env=os.environ | {"TRACKIO_DIR": str(tmp_path / "store")},
        capture_output=True,
    )
    with closing(sqlite3.connect(tmp_path / "store/capgap.db")) as store:
        rows = store.execute("select run_name, step, metrics from metrics order by step").fetchall()
    assert [(name, step) for name, step, _ in rows] == [("runs/watched", 0), ("runs/watched", 256)]
    assert json.loads(rows[1][2])["val_loss_nats_per_token"] == 3.5


def test_a_tracker_that_is_not_installed_is_refused_before_the_work(students, monkeypatch):
    from accelerate import tracking as trackers

    monkeypatch.setattr(trackers, "get_available_trackers", lambda: [])
    with pytest.raises(cg.CapgapError, match=r"wandb is not installed.*pip install wandb"):
        students("watched", "wandb")


def test_a_tracker_that_fails_is_left_out_and_training_goes_on(students, capsys, monkeypatch):
    pytest.importorskip("tensorboard")
    from accelerate.tracking import TensorBoardTracker

    def fail(*_, **__):
        raise ConnectionError("the server is away")

    monkeypatch.setattr(TensorBoardTracker, "log", fail)
    students("watched", "tensorboard")
    said = capsys.readouterr().out
    assert (
        said.count("tracking by tensorboard stopped, training continues: the server is away") == 1
    )


def test_track_decides_no_rerun_and_reaches_the_jobs(monkeypatch):
    plain, watched = Distill(), Distill(track="[tensorboard, wandb]")
    assert watched.track == ["tensorboard", "wandb"]
    specs = [rule_params.spec("distill", s, "distill_student") for s in (plain, watched)]
    assert specs[0] == specs[1]
    assert "track" not in json.loads(specs[0])["settings"]
    study = load_study(STUDY | {"distill": {"track": ["wandb"]}})
    monkeypatch.setenv(tracking.SETTINGS, "{}")
    monkeypatch.setenv(rule_params.SOURCES, "{}")
    rule_params.hand_down(study)
    assert tracking.trackers_of("distill") == ["wandb"]
    assert tracking.trackers_of("pretrain") == []
    assert rule_params.handed_down() == study
    shown = study.model_dump_json(exclude=study.watching())
    assert shown == load_study(STUDY).model_dump_json(exclude=study.watching())


STUDY = {
    "study": "small",
    "corpus": {"source": "files", "pattern": "*.txt"},
    "tokenizer": {"source": "train", "vocab_size": 300},
    "teachers": {
        "t": {"source": "pretrain", "layers": 2, "hidden": 32, "heads": 2, "intermediate": 64}
    },
    "pretrain": {"tokens": 8192},
    "grid": {"students": [1000], "tokens": [8192], "seeds": [0]},
}


def test_no_tracker_is_imported_unless_asked_for(students):
    before = set(sys.modules)
    students("unwatched")
    assert not {"wandb", "mlflow", "trackio"} & (set(sys.modules) - before)
