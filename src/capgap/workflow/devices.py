"""
GPUs of this machine, one job each: `python -m capgap.workflow.devices N COMMAND...`.

Runs a command on N of the devices in CAPGAP_GPUS that no other job of this user has, as the only
ones it sees. Without that variable the command runs as it is: a cluster gives out devices itself.
"""

from __future__ import annotations

import fcntl
import os
import sys
import tempfile
import time
from pathlib import Path

from capgap.errors import CapgapError

VARIABLE = "CAPGAP_GPUS"  # ids of the devices to share out, with commas
VISIBLE = "CUDA_VISIBLE_DEVICES"
WAIT_SECONDS = 0.2


def share_out(number: int) -> None:
    """Have jobs that this process starts share `number` GPUs: those it may see, or the first ones."""
    visible = os.environ.get(VISIBLE)
    ids = list(map(str, range(number))) if visible is None else [*filter(None, visible.split(","))]
    if len(ids) < number:
        raise CapgapError(
            f"gpu={number} is more than the {len(ids)} GPU(s) that {VISIBLE} names; lower it"
        )
    os.environ[VARIABLE] = ",".join(ids[:number])


def claim(number: int, ids: list[str]) -> list[str]:
    """Become the only user of some devices for as long as this process, or what it becomes, lives."""
    if number > len(ids):
        raise CapgapError(f"the job needs {number} GPUs, {len(ids)} are shared out; give it more")
    folder = Path(tempfile.gettempdir()) / f"capgap-gpus-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    while True:
        held: dict[str, int] = {}
        for name in ids:
            if len(held) == number:
                break
            file = os.open(folder / f"{name}.lock", os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                held[name] = file
            except BlockingIOError:
                os.close(file)
        if len(held) == number:
            break
        for file in held.values():  # or two jobs that wait would keep each other waiting
            os.close(file)
        time.sleep(WAIT_SECONDS)
    for file in held.values():
        os.set_inheritable(file, True)
    return list(held)


def main() -> None:
    """Claim devices and become the command."""
    number, *command = sys.argv[1:]
    if VARIABLE in os.environ:
        try:
            names = claim(int(number), os.environ[VARIABLE].split(","))
        except CapgapError as error:
            sys.exit(f"error: {error}")
        os.environ[VISIBLE] = ",".join(names)
        print(f"on GPU {os.environ[VISIBLE] or 'none'}", flush=True)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
