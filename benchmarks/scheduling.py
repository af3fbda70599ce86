"""
What does Snakemake's scheduler cost while a study runs?

A workflow of short jobs, which do nothing but wait, runs on two cores: by Snakemake as it is, and as
`capgap run` starts it, which keeps the scheduler from looking for jobs when none could start
(`capgap.workflow.private.look_again`). Printed: CPU seconds of the scheduler's process and all its jobs, in
turn, and their ratio.

    python benchmarks/scheduling.py
    python benchmarks/scheduling.py --jobs 100   # quick
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

WORKFLOW = """
rule all:
    input: expand("done/{n}", n=range(JOBS))

rule job:
    output: "done/{n}"
    shell: "sleep 0.5; touch {output}"
"""
WAYS = {"snakemake": "snakemake", "capgap": "capgap.workflow.private"}


def cpu_s(module: str, jobs: int) -> float:
    """CPU seconds of a run of the workflow and its jobs."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "Snakefile").write_text(WORKFLOW.replace("JOBS", str(jobs)))
        command = [sys.executable, "-m", module, "--cores", "2", "--quiet", "all"]
        process = subprocess.Popen(command, cwd=folder, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise SystemExit(f"{module} ended with status {status}")
        return usage.ru_utime + usage.ru_stime


def main() -> None:
    """Run both ways in turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=1)
    args = parser.parse_args()
    found: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(args.rounds):
        for name, module in WAYS.items():
            found[name].append(cpu_s(module, args.jobs))
            print(f"{name}: {args.jobs} jobs, {found[name][-1]:.1f} CPU s", flush=True)
    ratio = median(found["snakemake"]) / median(found["capgap"])
    print(f"Snakemake as it is takes {ratio:.2f} times the CPU of capgap's")


if __name__ == "__main__":
    main()
