"""Jobs as forks of one process: the same bytes, an end of their own, and no job left behind."""

import os
import signal
import subprocess
import sys
import time

import pytest
from repository import RESULTS

from capgap.workflow import job_host

pytestmark = pytest.mark.skipif(not job_host.possible(), reason="jobs cannot be forks here")


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    """A host, and the environment that leads jobs to it. It finds a stage of this test's own."""
    folder = tmp_path_factory.mktemp("stage")
    (folder / "print_threads.py").write_text(PRINT_THREADS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(job_host.VARIABLE, "")
        patch.setenv("PYTHONPATH", str(folder))
        for name in job_host.ONE_THREAD:
            patch.delenv(name, raising=False)
        process = job_host.start()
        environment = {job_host.VARIABLE: os.environ[job_host.VARIABLE]}
    yield environment
    process.kill()
    process.wait()


PRINT_THREADS = """
from capgap.stages.base import run_stage  # as every stage has it
import os
import torch

def main(options):
    torch.rand(2000, 2000).exp()
    print(torch.get_num_threads(), len(os.listdir("/proc/self/task")), "threads")
"""


def distillation(study, out, tokens="5k"):
    """Command line of one distillation through the launcher."""
    results = study.path / RESULTS
    return [
        *(sys.executable, "-m", "capgap.workflow.launch", study / "timing.tsv"),
        *("capgap.stages.distill", "--init", results / "inits/3k/pruned-t6k/model"),
        *("--teacher", results / "teachers/t6k/model", "--token-streams", results / "tokens"),
        *("--tokens", tokens, "--scratch", study / "scratch", "--out", study / out),
        *("--sequence-length", 32, "--batch-tokens", 256),
    ]


def started(study, words, **environment):
    """A launcher that writes to out.log, once its job trains."""
    log = (study / "out.log").open("w")
    process = subprocess.Popen(
        list(map(str, words)), cwd=study.path, env=study.environment(**environment),
        stdout=log, stderr=log,
    )  # fmt: skip
    end = time.monotonic() + 120
    while "step " not in (text := (study / "out.log").read_text()):
        assert process.poll() is None, text
        assert time.monotonic() < end, text
        time.sleep(0.1)
    return process


def test_a_forked_job_gives_the_same_bytes_and_its_cost(study, host):
    study.command(*distillation(study, "forked"), **host)
    forked = (study / "timing.tsv").read_text()
    study.command(*distillation(study, "own"))
    own = (study / "timing.tsv").read_text()
    for name in ("model/model.safetensors", "train.json", "curve.csv"):
        assert (study / "forked" / name).read_bytes() == (study / "own" / name).read_bytes()
    for text in (forked, own):
        names, values = (line.split("\t") for line in text.splitlines())
        assert names == ["s", "max_rss", "cpu_time"]
        seconds, memory, cpu = map(float, values)
        assert cpu > 0
        assert seconds > 0
        assert 100 < memory < 4000  # MiB: PyTorch is loaded


def test_a_forked_job_has_one_thread(study, host):
    words = (sys.executable, "-m", "capgap.workflow.launch", study / "timing.tsv")
    assert "1 1 threads" in study.command(*words, "print_threads", **host).stdout


def test_a_jobs_error_and_status_are_its_launchers(study, host):
    words = distillation(study, "out")
    words[words.index("--teacher") + 1] = "nowhere"
    result = study.command(*words, check=False, **host)
    assert result.returncode == 1
    assert "error: nowhere" in result.stderr
    assert not (study / "timing.tsv").exists()


def test_a_job_that_is_told_to_end_saves_its_state(study, host):
    process = started(study, distillation(study, "out", "50M"), **host)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == os.EX_TEMPFAIL
    assert "the state is saved" in (study / "out.log").read_text()


def test_no_job_outlives_its_launcher(study, host):
    process = started(study, distillation(study, "out", "50M"), **host)
    assert len(jobs_in(study)) == 2  # the launcher and the job
    process.kill()
    process.wait()
    end = time.monotonic() + 20
    while jobs_in(study):
        assert time.monotonic() < end
        time.sleep(0.1)


def jobs_in(study):
    """Processes whose output is this study's log."""
    found = []
    for process in filter(str.isdecimal, os.listdir("/proc")):
        try:
            if os.readlink(f"/proc/{process}/fd/1") == str(study / "out.log"):
                found.append(int(process))
        except OSError:
            continue
    return found


def test_without_a_host_of_this_python_a_job_is_a_process_of_its_own(study):
    study.command(*distillation(study, "out"), **{job_host.VARIABLE: "capgap-nobody"})
    assert (study / "out/train.json").is_file()
