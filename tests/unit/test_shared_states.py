"""States of a sharded model: written in parts, resumed to the same bits, never half."""

import json
import shutil

import process_group
import pytest
import torch
from safetensors.torch import load_file, save_file
from training_runs import dying, run, weights

from capgap.data.token_streams import Streams
from capgap.engine import checkpoints
from capgap.engine.parallel import DistContext
from capgap.engine.state_files import WEIGHTS, StateFiles, name_of
from capgap.engine.training import TRUNK
from capgap.errors import CapgapError

WSD = {"schedule": "wsd", "warmup_tokens": 64 * 4, "decay_share": 0.25, "micro_batch_tokens": 16}
# Runs of 12 steps, one after another, by the processes of one group. Of each the first one prints the
# digest of the whole model, the steps that were begun, and what was exchanged to save states.
RUNS = """
import errno, hashlib, json, os, signal, sys, time
from functools import partial
from pathlib import Path
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from capgap.config.shapes import LlamaShape
from capgap.data.token_streams import Streams
from capgap.engine import checkpoints, saving
from capgap.engine.models import llama_config, new_model
from capgap.engine.objectives import data_objective
from capgap.engine.parallel import join
from capgap.engine.run_plan import RunPlan, plan_run
from capgap.engine.training import train
from capgap.errors import Terminated
from training_runs import settings

work, streams, names = Path(sys.argv[1]), Streams(Path(sys.argv[2])), sys.argv[3:]
begun, exchanged, rate, save_file = [], [], RunPlan.learning_rate, saving.save_file
last = os.environ["RANK"] == str(int(os.environ["WORLD_SIZE"]) - 1)

class Counted(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if "c10d" in str(function):
            sizes = [t.numel() for t in torch.utils._pytree.tree_leaves(args) if hasattr(t, "numel")]
            exchanged.append([str(function), max(sizes)])
        return function(*args, **(kwargs or {}))

def counted(method):
    def wrapped(*arguments):
        with Counted():
            return method(*arguments)
    return wrapped

def stepping(plan, step):
    begun.append(step)
    if last and (name, step) in [("told", 6), ("trunk", 9)]:
        os.kill(os.getpid(), signal.SIGTERM)
    return rate(plan, step)

def slow(tensors, path):
    # two more steps must begin before the file is written, and the process may die in the middle of it
    saved, end = max(begun, default=0), time.monotonic() + 60
    while name == "whole" and last and max(begun) < min(saved + 2, 11) and time.monotonic() < end:
        time.sleep(0.01)
    assert time.monotonic() < end
    if name == "full" and last and saved >= 6:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    save_file(tensors, path)
    if name == "killed" and last and saved >= 6:
        path.write_bytes(path.read_bytes()[:-100])
        os.kill(os.getpid(), signal.SIGKILL)

RunPlan.learning_rate, saving.save_file = stepping, slow
saving.Saves._begin, saving.Saves.finish = counted(saving.Saves._begin), counted(saving.Saves.finish)
with join(shard=True) as dist:
    for name in names:
        begun.clear()
        exchanged.clear()
        model = new_model(llama_config(LlamaShape(2, 24, 3, 3, 8, 40, 64, True), max_positions=128,
                                       bos_id=0, eos_id=0), 0)
        ended = None
        try:
            chosen = settings(**json.loads(os.environ["WSD"]) if name[:5] == "trunk" else {})
            train(model, streams, plan_run(chosen, 64 * 12), data_objective, scratch=work / name.split("-")[0],
                  checkpoint_seconds=1e9 if name in ("told", "trunk") else 0, dist=dist)
        except Terminated as error:
            ended = str(error)
        whole = checkpoints.whole_weights(model)
        if dist.rank == 0:
            digest = hashlib.sha256(b"".join(v.numpy().tobytes() for v in whole.values())).hexdigest()
            print("RUN", json.dumps([name, digest, begun, exchanged, ended]), flush=True)
            save_file(whole, work / f"{name}.safetensors")
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("script") / "runs.py"
    path.write_text(RUNS)
    return path


@pytest.fixture
def runs(script, token_streams, tmp_path):
    """Function that runs trainings of these names, their states below `tmp_path`; their outcomes."""
    streams = token_streams()

    def start(*names, processes=2, statuses=(0, 0)):
        words = [script, tmp_path, streams, *names]
        started = process_group.start(*words, processes=processes, WSD=json.dumps(WSD))
        ended = process_group.ends(started)
        assert [status for status, _, _ in ended] == [*statuses], ended
        lines = [line[4:] for line in ended[0][1].splitlines() if line.startswith("RUN ")]
        return [json.loads(line) for line in lines], ended

    return start


def test_a_run_that_is_killed_while_it_writes_a_part_ends_in_the_same_bits(
    runs, token_streams, tiny_model, tmp_path
):
    """Two processes; the second is killed in the middle of a file that training does not wait for."""
    [[_, whole, steps, exchanged, _]], ended = runs("whole", "killed", statuses=(1, -9))
    assert steps == list(range(12))
    assert "lost another one" in ended[0][2]
    # no gathering: flags, places and digests of 64 bytes from each process
    assert {name for name, _ in exchanged} == {"c10d.allreduce_.default"}
    assert max(size for _, size in exchanged) <= 2 * 64

    saved = sorted(path for path in (tmp_path / "killed").iterdir() if path.is_dir())
    assert [path for path in saved if not checkpoints.is_whole(path)] == []
    assert 2 <= len(saved) <= checkpoints.KEEP
    parts = [load_file(saved[-1] / name_of(WEIGHTS, part, 2)) for part in range(2)]
    for name, parameter in tiny_model().named_parameters():
        assert [len(part[name]) for part in parts] == [len(parameter) // 2] * 2

    for name in ("truncated", "missing", "alone"):
        shutil.copytree(tmp_path / "killed", tmp_path / name)
    newest = saved[-1].name
    cut = tmp_path / "truncated" / newest / name_of("optimizer", 1, 2)
    cut.write_bytes(cut.read_bytes()[:-7])
    for path in (tmp_path / "missing").glob("step-*"):
        (path / name_of(WEIGHTS, 1, 2)).unlink()
    found, ended = runs(
        "killed-again", "truncated", "missing", "told", "told-again", "trunk", "trunk-again"
    )
    done = [int(path.name[5:]) for path in saved]
    firsts = [done[-1], done[-2], 0, 0, 7, 0, 9]
    assert [steps[0] for _, _, steps, _, _ in found] == firsts
    assert [steps[-1] for _, _, steps, _, _ in found] == [11, 11, 11, 6, 11, 9, 11]
    same = [digest == whole for _, digest, *_ in found]
    assert same == [True, True, True, False, True, False, False]
    said = ended[0][1]
    assert f"truncated/{newest} is damaged and was skipped" in said
    assert "no other checkpoint is left, so the run begins again" in said
    assert "terminated after step 7/12; the state is saved" in found[3][4]

    # one process reads what two have written
    model, alone = tiny_model(), tiny_model()
    run(model, Streams(token_streams()), tmp_path / "one")
    assert checkpoints.latest(tmp_path / "alone").name == newest
    run(alone, Streams(token_streams()), tmp_path / "alone")
    torch.testing.assert_close(weights(alone), weights(model), rtol=1e-4, atol=1e-5)
    trunk, steps = tmp_path / "trunk" / TRUNK, []
    assert (trunk / name_of(WEIGHTS, 1, 2)).is_file()
    branch = {"trunk": trunk, "plan": dying(lambda step: False, steps), **WSD}
    run(tiny_model(), Streams(token_streams()), tmp_path / "branch", **branch)
    assert steps == [9, 10, 11]


@pytest.mark.slow
def test_other_numbers_of_processes_go_on_from_a_state_in_parts(runs, tmp_path):
    runs("whole")
    runs("told")
    [[_, _, steps, *_]], _ = runs("told-again", processes=4, statuses=(0,) * 4)
    assert steps == list(range(7, 12))
    found, expected = (load_file(tmp_path / f"{n}.safetensors") for n in ("told-again", "whole"))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_disk_that_is_full_for_one_process_ends_all(runs, tmp_path):
    """Each with a message, at the end of the same step, and the state before stays."""
    _, ended = runs("full", statuses=(1, 1))
    assert "saving failed in another process of the job" in ended[0][2]
    assert "no space left on the disk" in ended[1][2]
    states = sorted(path for path in (tmp_path / "full").iterdir() if path.is_dir())
    assert [path for path in states if not checkpoints.is_whole(path)] == []
    assert states


def test_new_states_outlive_damaged_ones_of_later_steps(tiny_model, tmp_path):
    model = tiny_model()
    optimizer = torch.optim.AdamW(model.parameters())
    for step in (10, 11):
        checkpoints.save(tmp_path, step, model, optimizer, {})
        (checkpoints.folder_of(tmp_path, step) / name_of(WEIGHTS)).write_bytes(b"torn")
    assert checkpoints.load_latest(tmp_path, model, optimizer) is None
    checkpoints.save(tmp_path, 1, model, optimizer, {})
    assert checkpoints.load_latest(tmp_path, model, optimizer)[0] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000001"]


class Beside(DistContext):
    """One of two processes; `other` has the other one's flags of each exchange."""

    def __init__(self, *other):
        super().__init__(rank=0, size=1)
        object.__setattr__(self, "other", list(other))

    def any_process(self, *flags):
        return [mine or theirs for mine, theirs in zip(flags, self.other.pop(0), strict=True)]


def test_a_state_that_only_some_processes_see_is_no_damage(tiny_model, tmp_path):
    model = tiny_model()
    checkpoints.save(tmp_path, 3, model, torch.optim.AdamW(model.parameters()), {})
    folder = checkpoints.folder_of(tmp_path, 3)
    with pytest.raises(CapgapError, match="others do not; put scratch where all"):
        checkpoints.is_whole(folder, Beside([False], [False, True, True]))
    with pytest.raises(CapgapError, match="reading it failed in another process"):
        checkpoints.is_whole(folder, Beside([True]))
    assert checkpoints.is_whole(folder, Beside([False], [True, False, False]))
    assert not checkpoints.is_whole(folder, Beside([False], [True, False, True]))


def test_rows_of_all_parts_are_the_tensor(tmp_path):
    """Processes that have no row of it write none."""
    tensor = torch.arange(6.0).view(3, 2)
    for part, rows in enumerate([tensor[:2], tensor[2:], tensor[3:]]):
        save_file({"a": rows.clone()}, tmp_path / name_of(WEIGHTS, part, 3))
    stored, found = StateFiles(tmp_path, WEIGHTS, 3), torch.zeros(3, 2)
    stored.fill("a", found)
    assert torch.equal(found, tensor)
    for shape in ((4, 2), (3, 1), (3, 4)):
        with pytest.raises(CapgapError, match=r"a has the shape \[3, 2\] there and"):
            stored.fill("a", torch.zeros(shape))
    (tmp_path / name_of(WEIGHTS, 2, 3)).unlink()
    with pytest.raises(CapgapError, match="does not see all of this state"):
        StateFiles(tmp_path, WEIGHTS, 3)
