"""`capgap run` as the process on the login node of the test cluster."""

import importlib.util
import subprocess
import sys
import time

from cluster import missing

reason = missing()
if importlib.util.find_spec("snakemake_executor_plugin_slurm") is None:
    reason = "needs snakemake-executor-plugin-slurm (make slurm)"
OPTIONS = [
    *("--profile", "profiles/slurm", "--jobs", "2", "--latency-wait", "5"),
    *("--default-resources", "mem_mb=1000", "runtime=30", "nodes=1"),
    *("slurm_partition=main", "--slurm-no-account"),
    *("--slurm-init-seconds-before-status-checks", "5", "--max-status-checks-per-second", "1"),
]


class Login:
    """`capgap run` as the process on the login node."""

    def __init__(self, study, slurm, *words):
        self.study, self.log = study, study.path / "login.log"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "capgap.cli", "run", *OPTIONS, *words],
            cwd=study.path,
            env=study.environment(
                PATH=slurm.path, CAPGAP_CHECKPOINT_SECONDS="1", PYTHONDONTWRITEBYTECODE=""
            ),
            stdout=self.log.open("a"),
            stderr=subprocess.STDOUT,
        )

    def finish(self, seconds=900) -> int:
        return self.process.wait(seconds)

    def said(self) -> str:
        return self.log.read_text()


def wait_for(condition, login, seconds=240):
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert login.process.poll() is None, login.said()
        assert time.monotonic() < end, f"nothing after {seconds} s: {login.said()}"
        time.sleep(0.3)
    return value


def checkpoints(study):
    return list((study / "scratch").rglob("step-*/manifest.json"))
