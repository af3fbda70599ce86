"""Saved states: their names, what continues from them, and which are removed."""

import fcntl
import os
import shutil

import pytest
import torch
from training_runs import BASE, dying, run, weights

from capgap.config import Distill
from capgap.data.token_streams import Streams
from capgap.engine import checkpoints
from capgap.engine.resuming import JOB, collect_states, discard, hold_state, state_key
from capgap.errors import CapgapError
from capgap.records.artifacts import publish_folder

LESS_MEMORY = [
    {"micro_batch_tokens": 16},
    {"loss_chunk_tokens": 5},
    {"activation_checkpointing": True},
    {"micro_batch_tokens": 16, "loss_chunk_tokens": 5, "activation_checkpointing": True},
]


@pytest.mark.parametrize("less", LESS_MEMORY, ids=str)
def test_less_memory_resumes_and_ends_as_an_undisturbed_run(
    token_streams, tiny_model, tmp_path, less
):
    streams, key = Streams(token_streams()), state_key(Distill(**BASE), {}, [])
    assert state_key(Distill(**BASE, **less), {}, []) == key
    whole = tiny_model()
    run(whole, streams, tmp_path / "whole")

    begun = []
    short_of_memory = dying(lambda step: step == 6, begun, MemoryError)
    with pytest.raises(CapgapError, match="out of memory at step 7/12"):
        run(tiny_model(), streams, tmp_path / key, seconds=0, plan=short_of_memory)
    resumed = tiny_model()
    run(resumed, streams, tmp_path / key, plan=dying(lambda step: False, begun), **less)
    assert begun == list(range(12))  # the first six were not repeated
    assert not torch.equal(weights(resumed), weights(tiny_model()))
    if less == {"activation_checkpointing": True}:
        assert torch.equal(weights(resumed), weights(whole))
    else:  # sums in another order
        torch.testing.assert_close(weights(resumed), weights(whole), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "change",
    [
        {"learning_rate": 0.02},
        {"batch_tokens": 128},
        {"precision": "bfloat16"},
        {"compile": True},
        {"temperature": 2.0},
        {"teacher_weight": 0.4},
    ],
    ids=str,
)
def test_what_decides_the_result_names_another_state(change):
    assert state_key(Distill(**BASE | change), {}, []) != state_key(Distill(**BASE), {}, [])


def test_inputs_are_their_contents_with_a_manifest_or_without(tmp_path):
    with publish_folder(tmp_path / "made") as folder:
        (folder / "weights").write_text("one")
    shutil.copytree(tmp_path / "made", tmp_path / "bare")
    (tmp_path / "bare/manifest.json").unlink()
    keys = {name: state_key(Distill(), {}, [tmp_path / name]) for name in ("made", "bare")}
    assert keys["made"] == keys["bare"]  # one model, wherever it lies
    (tmp_path / "bare/.DS_Store").write_text("x")
    assert state_key(Distill(), {}, [tmp_path / "bare"]) == keys["bare"]
    before = (tmp_path / "bare/weights").stat()
    (tmp_path / "bare/weights").write_text("two")  # in place: name, size and time as before
    os.utime(tmp_path / "bare/weights", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert state_key(Distill(), {}, [tmp_path / "bare"]) != keys["bare"]


@pytest.mark.parametrize(
    "text", [b"", b"null", b'{"files": {}}', b'{"files": {"model', b"\xff\xfe"]
)
def test_a_checkpoint_without_a_sound_manifest_is_passed_over_and_replaced(
    token_streams, tiny_model, tmp_path, text
):
    streams, whole = Streams(token_streams()), tiny_model()
    run(whole, streams, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run_until(tiny_model(), streams, tmp_path / "cut", step=6)
    (tmp_path / "cut/step-000000006/manifest.json").write_bytes(text)
    assert checkpoints.latest(tmp_path / "cut").name == "step-000000005"
    resumed = tiny_model()
    run(resumed, streams, tmp_path / "cut", seconds=0)
    assert torch.equal(weights(resumed), weights(whole))
    for folder in (tmp_path / "cut").glob("step-*"):  # all of them: it starts again
        (folder / "manifest.json").write_bytes(text)
    again = tiny_model()
    run(again, streams, tmp_path / "cut", seconds=0)
    assert torch.equal(weights(again), weights(whole))


def run_until(model, streams, scratch, *, step):
    """Stop after the state of a step is saved."""
    run(model, streams, scratch, seconds=0, plan=dying(lambda begun: begun == step, []))


def state(root, name, out):
    """A state of a job that was killed: root/source/key with one checkpoint."""
    folder = root / name
    hold_state(folder, out).close()
    (folder / "step-000000001").mkdir()
    return folder


def test_collected_is_what_nothing_can_resume(tmp_path):
    root, out = tmp_path / "scratch", tmp_path / "out"
    (out / "done").mkdir(parents=True)
    (out / "again").mkdir()
    (out / "again/train.json").write_text("an earlier result")
    os.utime(out / "again/train.json", (1e9, 1e9))
    kept = {
        state(root, "a/students/x/now/key", out / "unfinished"),
        state(root, "now/key2", out / "again"),  # runs again after it was finished
        state(root, "now/torn", out / "torn"),
        state(root, "now/busy", out / "done"),
    }
    (root / "now/torn" / JOB).write_text("")
    lost = {
        state(root, "a/students/x/before/key", out / "unfinished"),  # of other source
        state(root, "now/key3", out / "done"),
        state(root, "now/empty", out / "empty"),
    }
    (root / "now/empty/step-000000001").rmdir()
    os.utime(root / "now/key3" / JOB, (1e9, 1e9))
    os.utime(root / "now/busy" / JOB, (1e9, 1e9))
    (out / "done/train.json").write_text("finished since")
    with (root / "now/busy" / JOB).open() as running:
        fcntl.flock(running, fcntl.LOCK_EX)
        assert set(collect_states(root, lambda: {"now"})) == lost
    assert {p.parent for p in root.rglob(JOB)} == kept
    assert not (root / "a/students/x/before").exists()


def test_a_finished_job_leaves_no_state_of_other_settings(tmp_path):
    mine = state(tmp_path, "one/mine", tmp_path / "out")
    others = state(tmp_path, "two/other", tmp_path / "out")
    foreign = state(tmp_path, "one/foreign", tmp_path / "elsewhere")
    discard(mine, tmp_path / "out")
    assert not mine.exists()
    assert not others.exists()
    assert foreign.exists()
