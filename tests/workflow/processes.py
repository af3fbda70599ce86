"""Start, watch and kill the processes of a study."""

import subprocess
import sys
import time
from pathlib import Path

import psutil


def start(study, *words, **environment) -> subprocess.Popen:
    """Start `python -m words...` in a study."""
    return subprocess.Popen(
        [sys.executable, "-m", *words],
        cwd=study.path,
        env=study.environment(**environment),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def alive(study, text: str = "") -> list[psutil.Process]:
    """Processes that run in a study and have `text` in their command line."""
    found = []
    for process in psutil.process_iter():
        try:
            if (
                process.status() != psutil.STATUS_ZOMBIE
                and Path(process.cwd()) == study.path
                and text in " ".join(process.cmdline())
            ):
                found.append(process)
        except psutil.Error:  # it ended meanwhile
            continue
    return found


def wait_for(condition, seconds: float = 300.0):
    """The first true value of a condition."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.005)
    raise AssertionError(f"nothing after {seconds} s")
