"""
Kills a command at its n-th call that changes the disk, counted over all of its processes.

Python runs a module of this name at its start if its folder is on PYTHONPATH; a forked command runs it
itself. CAPGAP_KILL holds: moment, file of the counter, root | group (which processes die).
"""

import builtins
import io
import mmap
import os
import signal
import struct


def arm() -> None:
    """Count calls, and kill before the one that CAPGAP_KILL names; nothing without that variable."""
    if "CAPGAP_KILL" not in os.environ:
        return
    moment, counter, victims, root = os.environ["CAPGAP_KILL"].split(":")
    with open(counter, "r+b") as file:
        count = mmap.mmap(file.fileno(), 8)

    def step():
        now = struct.unpack("q", count[:8])[0] + 1
        count[:8] = struct.pack("q", now)
        if now == int(moment):
            if victims == "root":
                os.kill(int(root), signal.SIGKILL)
            else:
                os.killpg(int(root), signal.SIGKILL)

    def dying(owner, name):
        real = getattr(owner, name)

        def call(*given, **options):
            step()
            return real(*given, **options)

        setattr(owner, name, call)

    for name in ("rename", "replace", "fsync", "mkdir", "rmdir", "unlink", "chmod", "link"):
        dying(os, name)
    real_open = io.open

    def opened(file, mode="r", *given, **options):
        if isinstance(mode, str) and set(mode) & set("wax+"):
            step()
        return real_open(file, mode, *given, **options)

    io.open = builtins.open = opened


arm()
