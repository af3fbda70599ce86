"""
What a job costs before it does anything: as a process of its own, and as a fork of the job host.

    python benchmarks/job_start.py [--jobs 5]

Every job is `capgap.stages.evaluate --help` by the launcher, as rules start it, one after the other
and alternating between the two ways. CPU seconds are the job's own and its launcher's; those of the
host itself, which every run pays once, are printed apart.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from capgap.workflow import job_host


def start(timing: Path, **environment) -> tuple[float, float]:
    """Run one job to its end; (CPU seconds, wall seconds)."""
    begun = time.monotonic()
    launch = ["capgap.workflow.launch", 0, 1, 0, timing, "capgap.stages.evaluate", "--help"]
    process = subprocess.Popen(
        [sys.executable, "-m", *map(str, launch)],
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
    )
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    wall_s, _, cpu_s = map(float, timing.read_text().splitlines()[1].split("\t"))
    assert wall_s < time.monotonic() - begun
    forked = job_host.VARIABLE in environment
    launcher_s = used.ru_utime + used.ru_stime  # with the job's, where it is the launcher's child
    return launcher_s + (cpu_s if forked else 0.0), time.monotonic() - begun


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--jobs", type=int, default=5, help="jobs of each kind (default 5)")
    jobs = parser.parse_args().jobs
    if not job_host.possible():
        sys.exit("jobs are no forks on this machine")
    os.environ["OMP_NUM_THREADS"] = "1"
    job_host.start()
    name = os.environ.pop(job_host.VARIABLE)
    own, forked = [], []
    with tempfile.TemporaryDirectory() as folder:
        timing = Path(folder, "timing.tsv")
        start(timing, **{job_host.VARIABLE: name})  # waits until the host has loaded everything
        for _ in range(jobs):
            own.append(start(timing))
            forked.append(start(timing, **{job_host.VARIABLE: name}))
    for label, found in (("own process", own), ("fork", forked)):
        cpu_s, wall_s = (median(values) for values in zip(*found, strict=True))
        print(f"{label:12} {cpu_s:6.2f} CPU s  {wall_s:6.2f} s   (median of {jobs})")
    print(f"ratio        {median(c for c, _ in own) / median(c for c, _ in forked):6.1f}")


if __name__ == "__main__":
    main()
