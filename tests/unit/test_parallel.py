"""One training job on two processes: the same curve, the same files, states that move between."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from capgap.config import Distill
from capgap.engine.parallel import DistContext
from capgap.errors import CapgapError
from capgap.records.artifacts import differences
from capgap.records.run_records import TrainRecord

SETTINGS = {
    "sequence_length": 16,
    "batch_tokens": 64,
    "micro_batch_tokens": 16,
    "learning_rate": 0.01,
    "validations": 4,
}
# A distillation in which process `victim` gets SIGTERM while it is at step `last`.
JOB = """
import os, signal, sys
from capgap.stages import distill
from capgap.engine.run_plan import RunPlan
from capgap.stages.base import run_stage

victim, last = sys.argv[1:3]
rate = RunPlan.learning_rate

def dying(plan, step):
    if (str(step), os.environ.get("RANK", "0")) == (last, victim):
        os.kill(os.getpid(), signal.SIGTERM)
    return rate(plan, step)

RunPlan.learning_rate = dying
run_stage(distill.main, sys.argv[3:])
"""


@pytest.fixture
def job(token_streams, tokenizer_file, tiny_model, tmp_path):
    """Function that distils a tiny student into a folder by `processes` and gives the outcome."""
    student, teacher = tmp_path / "student", tmp_path / "teacher"
    for folder, model in [(student, tiny_model()), (teacher, tiny_model(9, hidden=32, heads=4))]:
        model.save_pretrained(folder)
        tokenizer_file(folder)
    script, streams = tmp_path / "job.py", token_streams()
    script.write_text(JOB)

    def run(name, *words, processes=1, ends=("", ""), settings=SETTINGS):
        options = {"student": student, "teacher": teacher, "token-streams": streams}
        options |= {
            "tokens": 64 * 8,
            "out": tmp_path / name,
            "scratch": tmp_path / f"{name}.scratch",
        }
        options |= {key.replace("_", "-"): value for key, value in settings.items()}
        start = [sys.executable]
        if processes > 1:
            start += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
            start += [str(processes)]
        done = subprocess.run(
            [*start, str(script), *ends, *words]
            + [word for key, value in options.items() for word in (f"--{key}", str(value))],
            capture_output=True,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        return done, tmp_path / name

    return run


def check_equal(first, second):
    """Two finished runs tell the same to float tolerance, and hold the same model."""
    curves = [
        np.genfromtxt(folder / "curve.csv", delimiter=",", skip_header=1, filling_values=0.0)
        for folder in (first, second)
    ]
    assert curves[0].shape == (5, 6)
    np.testing.assert_allclose(*curves, rtol=2e-6, atol=2e-6)
    weights = [load_file(folder / "model" / "model.safetensors") for folder in (first, second)]
    assert weights[0].keys() == weights[1].keys()
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-4, atol=1e-5)
    records = [TrainRecord.read(folder / "train.json") for folder in (first, second)]
    assert records[0].train_flops == records[1].train_flops
    assert records[0].lineage == records[1].lineage
    assert differences(second / "model") == []
    configs = [
        json.loads((folder / "model" / "config.json").read_text()) for folder in (first, second)
    ]
    assert configs[0] == configs[1]


def test_two_processes_with_copies_follow_the_curve_of_one(job):
    _, alone = job("alone")
    done, both = job("both", processes=2)
    assert done.returncode == 0, done.stderr
    check_equal(alone, both)
    assert done.stdout.count("step 8/8") == 1  # the first process alone speaks
    assert done.stdout.count("validation loss") == 1


@pytest.mark.slow
def test_a_state_of_two_that_share_a_model_goes_on_in_one(job):
    """Only the second process gets SIGTERM; both save and stop after the same step."""
    _, alone = job("alone")
    ended, cut = job("cut", "--shard", processes=2, ends=("1", "3"))
    assert "terminated after step 4/8" in ended.stderr
    assert not (cut / "train.json").exists()
    done, _ = job("cut")
    assert done.returncode == 0, done.stderr
    assert "resumed after step 4/8" in done.stdout
    check_equal(alone, cut)


@pytest.mark.slow
def test_a_shared_teacher_is_held_in_its_own_precision(job):
    settings = {**SETTINGS, "teacher_precision": "bfloat16"}
    _, alone = job("alone", settings=settings)
    _, wide = job("wide", "--shard", processes=2)
    done, both = job("both", "--shard", processes=2, settings=settings)
    assert done.returncode == 0, done.stderr
    losses = [
        TrainRecord.read(folder / "train.json").last_val_loss_nats_per_token
        for folder in (alone, both, wide)
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    assert abs(losses[2] - losses[1]) > 10 * abs(losses[0] - losses[1])


@pytest.mark.slow
def test_a_state_of_one_goes_on_in_two_that_share_the_model(job):
    """With layers computed twice, as large models need it; rank 0 puts the model together."""
    settings = {**SETTINGS, "activation_checkpointing": True}
    _, alone = job("alone")
    ended, _ = job("cut", ends=("0", "3"), settings=settings)
    assert ended.returncode == 75
    done, cut = job("cut", "--shard", processes=2, settings=settings)
    assert done.returncode == 0, done.stderr
    assert "resumed after step 4/8" in done.stdout
    check_equal(alone, cut)


def test_unequal_parts_are_refused():
    assert DistContext(rank=1, size=2).own_sequences(8) == slice(4, 8)
    with pytest.raises(CapgapError, match="4 sequences cannot be shared equally among 3 processes"):
        DistContext(rank=0, size=3).own_sequences(4)


def test_the_number_of_processes_is_no_setting():
    """So that a state moves between numbers of processes."""
    assert not {"processes", "shard"} & set(Distill.model_fields)
