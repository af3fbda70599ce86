"""A model measured by several processes of a job: the same results as by one, and one reading of it."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from capgap.engine.parallel import DistContext
from capgap.records import reading
from capgap.records.run_records import Metrics

# The three stages one after another, with small shards of targets and a count of what is hashed.
STAGES = """
import hashlib, json, os, sys
from contextlib import nullcontext
from pathlib import Path
from capgap.engine import teacher_targets
from capgap.engine.parallel import join
from capgap.records import reading
from capgap.stages import cache_teacher, evaluate, score

work = Path(sys.argv[1])
hashed, plain = [], hashlib.file_digest

def counted(file, algorithm):
    hashed.append(Path(os.readlink(f"/proc/self/fd/{file.fileno()}")).name)
    return plain(file, algorithm)

hashlib.file_digest = counted
reading.LARGE_BYTES = 0
teacher_targets.SHARD_BYTES = 2_000
with join() as dist:  # once for all three
    for name, words in json.loads((work / "words.json").read_text()):
        stage = {"evaluate": evaluate, "score": score, "cache_teacher": cache_teacher}[name]
        stage.join = lambda: nullcontext(dist)
        stage.main(words)
(work / f"hashed-{os.environ.get('RANK', 'alone')}.json").write_text(json.dumps(hashed))
"""
PROCESSES = 3  # which divides neither the batches nor the shards


@pytest.fixture
def measured(token_streams, tokenizer_file, tiny_model, tmp_path):
    """Function that runs the stages by some processes and gives the folder of their results."""
    model, streams = tmp_path / "model", token_streams()
    with_manifest(model, tiny_model(9, hidden=32, heads=4), tokenizer_file)
    (tmp_path / "sharing.py").write_text(STAGES)

    def run(processes, criterion="mask_gradient"):
        work = tmp_path / f"by-{processes}"
        work.mkdir()
        shared = ["--token-streams", str(streams)]
        text = ["--sequence-length", "16"]
        stages = [
            (
                "evaluate",
                ["--model", model, *text, "--batch-tokens", "64", "--out", work / "m.json"],
            ),
            (
                "score",
                [
                    "--model",
                    model,
                    *text,
                    "--calibration-sequences",
                    "640",
                    "--criterion",
                    criterion,
                    "--out",
                    work / "importance",
                ],
            ),
            (
                "cache_teacher",
                [
                    "--teacher",
                    model,
                    *text,
                    "--kind",
                    "sampled",
                    "--entries",
                    "8",
                    "--unique-tokens",
                    "960",
                    "--batch-tokens",
                    "64",
                    "--scratch",
                    work / "scratch",
                    "--out",
                    work / "targets",
                ],
            ),
        ]
        given = [(name, [*map(str, words), *shared]) for name, words in stages]
        (work / "words.json").write_text(json.dumps(given))
        words = [sys.executable, "-m", "sharing", str(work)]
        if processes > 1:
            launcher = ["-m", "capgap.workflow.node", "1", str(processes), "0"]
            words = [sys.executable, *launcher, "sharing", str(work)]
        path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
        done = subprocess.run(
            words,
            capture_output=True,
            text=True,
            timeout=300,
            env=os.environ | {"PYTHONPATH": path},
        )
        assert done.returncode == 0, done.stderr
        return work

    return run


def with_manifest(folder, model, tokenizer_file):
    """A model folder as capgap publishes it."""
    from capgap.engine.counting import count_params
    from capgap.records.artifacts import publish_folder
    from capgap.records.run_records import Lineage

    with publish_folder(folder) as temporary:
        model.save_pretrained(temporary)
        tokenizer_file(temporary)
        lineage = Lineage(
            kind="teacher", name="t", tokens=0, seed=0, params=count_params(model), init=None
        )
        (temporary / "lineage.json").write_text(lineage.to_json())


def test_processes_that_share_the_text_find_what_one_finds(measured):
    one, several = measured(1), measured(PROCESSES)
    first, second = (Metrics.read(work / "m.json") for work in (one, several))
    assert first == second  # every digit
    scores = [load_file(work / "importance/importance.safetensors") for work in (one, several)]
    assert scores[0].keys() == scores[1].keys()
    for name, values in scores[0].items():
        np.testing.assert_allclose(scores[1][name], values, rtol=1e-7, err_msg=name)
    manifests = [(work / "targets/manifest.json").read_bytes() for work in (one, several)]
    assert manifests[0] == manifests[1]
    assert len(list((several / "targets").glob("shard-*"))) > PROCESSES
    hashed = [json.loads((several / f"hashed-{n}.json").read_text()) for n in range(PROCESSES)]
    weights = [name for names in hashed for name in names if name == "model.safetensors"]
    assert len(weights) == 1  # by one of them, once for all stages


def test_every_item_is_dealt_to_one_process_and_counted_once():
    dealt = [list(DistContext(rank, 3).deal("abcdefg")) for rank in range(3)]
    assert dealt == [["a", "d", "g"], ["b", "e"], ["c", "f"]]
    # a model that is shared must be run by all
    together = [list(DistContext(rank, 3, shard=True).deal("abcdefg")) for rank in range(3)]
    assert together == [["a", "d", "g"], ["b", "e", "g"], ["c", "f", "g"]]
    assert [list(DistContext(rank, 3, shard=True).deal("abc")) for rank in range(3)] == [
        ["a"],
        ["b"],
        ["c"],
    ]


def test_values_come_in_the_order_of_the_items(monkeypatch):
    """The sum over processes is of vectors in which each has its own places."""
    sent = []
    monkeypatch.setattr(DistContext, "sum", lambda self, values: sent.append(values) or values)
    own = {0: [1.0, 4.0], 1: [2.0, 5.0], 2: [3.0, 99.0]}  # the last was run once more for nothing
    for rank, values in own.items():
        DistContext(rank, 3, shard=True).in_order(values, 5)
    assert torch.stack(sent).sum(0).tolist() == [1.0, 2.0, 3.0, 4.0, 5.0]


def test_a_large_file_is_hashed_once_for_the_processes_of_a_machine(tmp_path, monkeypatch):
    monkeypatch.setenv(reading.DIGESTS, str(tmp_path))
    monkeypatch.setattr(reading, "LARGE_BYTES", 4)
    path, read = tmp_path / "weights", []
    plain = reading.hashlib.file_digest
    monkeypatch.setattr(
        reading.hashlib, "file_digest", lambda *words: read.append(1) or plain(*words)
    )
    path.write_bytes(b"weights")
    first = reading.digest(path)
    assert reading.digest(path) == first
    assert len(read) == 1
    os.replace(path, tmp_path / "old")
    path.write_bytes(b"changed")  # as long, another file
    assert reading.digest(path) != first
    assert len(read) == 2
