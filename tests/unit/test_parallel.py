"""One training job on several processes: the same curve, the same files, states that move between."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.testing._internal.distributed.fake_pg import FakeStore

from capgap.config import Distill
from capgap.engine.parallel import DistContext
from capgap.errors import CapgapError
from capgap.records.artifacts import differences
from capgap.records.run_records import TrainRecord
from capgap.workflow import launch, node

SETTINGS = {
    "sequence_length": 16,
    "batch_tokens": 64,
    "micro_batch_tokens": 16,
    "learning_rate": 0.01,
    "validations": 4,
}
# A distillation in which process `victim` gets SIGTERM while it is at step `last`.
JOB = """
import os, signal, sys, time
from capgap.stages import distill
from capgap.engine.run_plan import RunPlan
from capgap.stages.base import run_stage

victim, last = sys.argv[1:3]
rate = RunPlan.learning_rate

def dying(plan, step):
    mine = os.environ.get("RANK", "0") == victim
    if mine and str(step) == last:
        os.kill(os.getpid(), signal.SIGTERM)
    if mine and step == 3 and last == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if mine and step == 3 and last == "pause":  # long enough to get SIGTERM
        print("pausing", flush=True)
        time.sleep(5)
    return rate(plan, step)

RunPlan.learning_rate = dying
run_stage(distill.main, sys.argv[3:])
"""


@pytest.fixture
def job(token_streams, tokenizer_file, tiny_model, tmp_path):
    """Function that distils a tiny student into a folder by `processes` and gives the outcome.

    nodes: launchers as Slurm starts them, one for each machine; here all on this one. They share the
    processes.
    """
    student, teacher = tmp_path / "student", tmp_path / "teacher"
    for folder, model in [(student, tiny_model()), (teacher, tiny_model(9, hidden=32, heads=4))]:
        model.save_pretrained(folder)
        tokenizer_file(folder)
    script, streams = tmp_path / "job.py", token_streams()
    script.write_text(JOB)

    def start(name, *words, processes=1, ends=("", ""), settings=SETTINGS, nodes=1):
        options = {"student": student, "teacher": teacher, "token-streams": streams}
        options |= {
            "tokens": 64 * 8,
            "out": tmp_path / name,
            "scratch": tmp_path / f"{name}.scratch",
        }
        options |= {key.replace("_", "-"): value for key, value in settings.items()}
        started = [sys.executable, str(script)]
        if processes > 1:
            started = [sys.executable, "-m", "capgap.workflow.node", str(nodes)]
            started += [str(processes // nodes), str(launch.free_port()), script.stem]
        path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
        return [
            subprocess.Popen(
                [*started, *ends, *words]
                + [word for key, value in options.items() for word in (f"--{key}", str(value))],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=os.environ
                | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
                | {node.NODE: str(number), node.FIRST_ADDRESS: "127.0.0.1"},
            )
            for number in range(nodes)
        ]

    def run(name, *words, **options):
        started = start(name, *words, **options)
        ended = [(*process.communicate(), process.returncode) for process in started]
        out, errors, codes = zip(*ended, strict=True)
        done = subprocess.CompletedProcess(name, max(codes), "".join(out), "".join(errors))
        return done, tmp_path / name

    run.start = start
    return run


def check_equal(first, second):
    """Two finished runs have the same records to float tolerance, and the same model."""
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
    assert done.stdout.count("step 8/8") == 1  # only the first process prints
    assert done.stdout.count("validation loss") == 1


def test_two_nodes_of_two_processes_share_the_model_and_follow_the_curve_of_one(job):
    _, alone = job("alone")
    done, spread = job("spread", "--shard", processes=4, nodes=2)
    assert done.returncode == 0, done.stderr
    check_equal(alone, spread)
    assert done.stdout.count("step 8/8") == 1


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_a_node_that_is_told_to_end_ends_all_and_one_process_goes_on(job, processes):
    """Its launcher gets SIGTERM, as from Slurm; with one process a node, models are shared by all."""
    _, alone = job("alone")
    launchers = job.start("cut", "--shard", processes=processes, nodes=2, ends=("0", "pause"))
    next(line for line in launchers[0].stdout if line.startswith("pausing"))
    launchers[1].send_signal(signal.SIGTERM)
    ended = [launcher.communicate(timeout=120) for launcher in launchers]
    assert [launcher.returncode for launcher in launchers] == [75, 75], ended
    assert "the state is saved" in ended[0][1]
    done, cut = job("cut")
    assert done.returncode == 0, done.stderr
    assert "resumed after step" in done.stdout
    check_equal(alone, cut)


@pytest.mark.slow
def test_a_process_that_is_killed_ends_those_of_the_other_node_with_a_reason(job):
    launchers = job.start("lost", processes=2, nodes=2, ends=("1", "kill"))
    ended = [launcher.communicate(timeout=120)[1] for launcher in launchers]
    assert [launcher.returncode for launcher in launchers] == [1, 1]
    assert "was ended by SIGKILL" in ended[1]
    assert "process 0 of 2 lost another one" in ended[0]
    assert "Traceback" not in ended[0]


@pytest.mark.slow
def test_a_state_of_two_that_share_a_model_goes_on_in_one(job):
    """Only the second process gets SIGTERM; both give up the same step between micro-batches."""
    _, alone = job("alone")
    ended, cut = job("cut", "--shard", processes=2, ends=("1", "3"))
    assert "terminated after step 3/8" in ended.stderr
    assert not (cut / "train.json").exists()
    done, _ = job("cut")
    assert done.returncode == 0, done.stderr
    assert "resumed after step 3/8" in done.stdout
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
    assert "resumed after step 3/8" in done.stdout
    check_equal(alone, cut)


# A sharded run of one step with four micro-batches in bfloat16: what is exchanged, and which whole
# matrices of layers are cast, whose copies the backward pass would keep.
COUNTED = """
import json, sys
from pathlib import Path
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from capgap.config import Training
from capgap.config.shapes import LlamaShape
from capgap.data.token_streams import Streams
from capgap.engine.models import llama_config, new_model
from capgap.engine.objectives import data_objective
from capgap.engine.parallel import join
from capgap.engine.run_plan import plan_run
from capgap.engine.training import train
from functools import partial

work, streams = map(Path, sys.argv[1:])
settings = Training(sequence_length=16, batch_tokens=128, micro_batch_tokens=16, validations=1,
                    precision="bfloat16")
shape = LlamaShape(2, 24, 3, 3, 8, 40, 64, False)
model = new_model(llama_config(shape, max_positions=128, bos_id=0, eos_id=0), 0)
layer = {tuple(p.shape) for n, p in model.named_parameters() if ".layers." in n and p.ndim == 2}
casts = []
class Counted(TorchDispatchMode):
    names = []
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function))
        if "_to_copy" in str(function) and (kwargs or {}).get("dtype") == torch.bfloat16:
            casts.append(tuple(args[0].shape))
        return function(*args, **(kwargs or {}))
objective = partial(data_objective, precision="bfloat16")
with join(shard=True) as dist, Counted() as counted:
    train(model, Streams(streams), plan_run(settings, 128), objective, scratch=work / "s",
          say=lambda line: None, dist=dist)
    if dist.rank == 0:
        print("COUNTS", json.dumps([[n for n in counted.names if "c10d" in n], [c for c in casts if c in layer]]))
"""


def test_shards_exchange_gradients_once_a_step_and_layers_are_gathered_in_bfloat16(
    token_streams, tmp_path
):
    script = tmp_path / "counted.py"
    script.write_text(COUNTED)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*torchrun, str(script), str(tmp_path), str(token_streams())],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[:3000]
    line = next(line for line in done.stdout.splitlines() if line.startswith("COUNTS"))
    names, casts = json.loads(line.removeprefix("COUNTS "))
    assert (
        sum("reduce_scatter" in name for name in names) == 3
    )  # two layers and the rest, once each, of four micro-batches
    assert casts == []  # layers arrive in bfloat16


def test_models_are_shared_within_a_node_and_copied_across():
    torch.distributed.init_process_group("fake", rank=0, world_size=8, store=FakeStore())
    try:
        mesh = DistContext(size=8, nodes=2).mesh()
        assert mesh.mesh_dim_names == ("replicate", "shard")
        assert mesh.mesh.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]  # ranks of a node share
        assert DistContext(size=8).mesh().mesh.tolist() == [*range(8)]
        assert DistContext(size=8, nodes=8).mesh().mesh.tolist() == [*range(8)]
    finally:
        torch.distributed.destroy_process_group()


def test_unequal_parts_are_refused():
    assert DistContext(rank=1, size=2).own_sequences(8) == slice(4, 8)
    with pytest.raises(CapgapError, match="4 sequences cannot be shared equally among 3 processes"):
        DistContext(rank=0, size=3).own_sequences(4)


def test_the_number_of_processes_is_no_setting():
    """So that a state moves between numbers of processes."""
    assert not {"processes", "nodes", "shard"} & set(Distill.model_fields)
