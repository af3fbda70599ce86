"""SIGTERM to some processes of a job whose others are done: all end as interrupted, nothing is lost."""

import os

import process_group
import pytest
from test_shared_stages import with_manifest

# Targets by two processes. The second gets SIGTERM in the middle of its part, while the first is
# done and waits; it may get the signal, too.
CACHING = """
import os, signal, sys, time
from pathlib import Path
from capgap.engine import teacher_targets
from capgap.engine.parallel import DistContext
from capgap.stages import cache_teacher
from capgap.stages.base import run_stage

both, waiting = sys.argv[1] == "both", Path(sys.argv[2])
rank, agree, reduce = os.environ["RANK"], DistContext.any_process, teacher_targets.reduce_to_targets
teacher_targets.SHARD_BYTES = 8 * 16 * 16  # eight windows of 16 tokens, 16 bytes each
calls = []

def waits(dist, *flags):
    waiting.write_text(str(os.getpid()))
    return agree(dist, *flags)

def reduced(*arguments):
    calls.append(1)
    if rank == "1" and len(calls) == 2 and sys.argv[1] != "none":
        end = time.monotonic() + 60
        while not waiting.exists() and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(0.3)  # it is in the collective now
        if both:
            os.kill(int(waiting.read_text()), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
    return reduce(*arguments)

if rank == "0":
    DistContext.any_process = waits
teacher_targets.reduce_to_targets = reduced
run_stage(cache_teacher.main, sys.argv[3:])
"""


@pytest.mark.parametrize("told", ["one", "both"])
def test_a_process_that_is_done_ends_with_those_that_are_told_to(
    token_streams, tokenizer_file, tiny_model, tmp_path, told
):
    teacher, script = tmp_path / "teacher", tmp_path / "caching.py"
    with_manifest(teacher, tiny_model(9, hidden=32, heads=4), tokenizer_file)
    script.write_text(CACHING)
    options = ["--teacher", teacher, "--token-streams", token_streams(), "--sequence-length", "16"]
    options += ["--kind", "sampled", "--entries", "8", "--unique-tokens", "256"]
    options += ["--batch-tokens", "16", "--scratch", tmp_path / "scratch"]

    def run(who, name, processes=2):
        words = [who, tmp_path / f"waiting-{name}", *options, "--out", tmp_path / name]
        return process_group.ends(process_group.start(script, *words, processes=processes))

    cut = run(told, "cut")
    assert [status for status, _, _ in cut] == [os.EX_TEMPFAIL] * 2, cut
    said = [errors for _, _, errors in cut]
    assert "terminated after 128 tokens of one of 2 processes" in said[0]
    assert "terminated after 32 tokens of one of 2 processes" in said[1]
    assert "lost another" not in "".join(said)
    assert not (tmp_path / "cut").exists()
    done = [*run("none", "cut"), *run("none", "whole", processes=1)]
    assert [status for status, _, _ in done] == [0] * 3, done
    assert "resumed after 128 tokens" in done[0][1]
    manifests = [(tmp_path / name / "manifest.json").read_bytes() for name in ("cut", "whole")]
    assert manifests[0] == manifests[1]
