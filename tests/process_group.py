"""The processes of one job without torchrun, which would end the others when one ends."""

import os
import subprocess
import sys

from ports import free_ports


def start(script, *words, processes=2, size=None, **variables):
    """Start a script in several processes that find each other on this machine, CPU and gloo.

    size: of the job, if more processes belong to it than are started.
    """
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_ports(1)[0])}
    sizes = dict.fromkeys(["WORLD_SIZE", "LOCAL_WORLD_SIZE"], str(size or processes))
    path = os.pathsep.join([str(script.parent), *filter(None, sys.path)])
    shared = os.environ | address | sizes | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path} | variables
    return [
        subprocess.Popen(
            [sys.executable, str(script), *map(str, words)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(processes)
    ]


def ends(started, timeout_s=120):
    """Exit status, output and errors of every process, when all have ended."""
    try:
        said = [process.communicate(timeout=timeout_s) for process in started]
    finally:
        for process in started:
            process.kill()
    return [(process.returncode, *words) for process, words in zip(started, said, strict=True)]
