"""Commands of capgap in forked processes, which cost no start-up, and may be killed at any moment."""

import atexit
import importlib
import os
import runpy
import signal
import struct
import sys
import time
import warnings
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

KILLER = Path(__file__).parents[1] / "killer"  # a folder for PYTHONPATH
LIMIT_S = 180  # what takes longer hangs
NEVER = -1


class Ended(NamedTuple):
    """How a command ended: its status (negative: the signal), what it printed, disk calls, seconds."""

    status: int
    text: str
    calls: int
    seconds: float

    @property
    def outcome(self) -> str:
        """done, refused, or what must not happen."""
        if self.status == -signal.SIGALRM:
            return "hang"
        if "Traceback (most recent call last)" in self.text:
            return f"traceback: {self.text[-600:]}"
        if self.status == 0:
            return "done"
        return "refused" if "rror" in self.text else f"traceback: status {self.status} {self.text}"


def load(commands) -> None:
    """Import what commands need, once for all trials."""
    from capgap.command_table import COMMANDS

    for command in commands:
        importlib.import_module(COMMANDS[command].module)
    for module in ("dvc.config", "dvc.fs", "snakemake.cli"):
        importlib.import_module(module)


def forked(repository, words, *, moment=NEVER, victims="group", after=None, home=None) -> Ended:
    """Run `capgap words` in a repository.

    moment: kill before that call that changes the disk, counted from 1 over all processes.
    after: kill after so many seconds instead. victims: the whole group, or the command alone.
    home: folder for what the trial itself writes, beside the repository if none is given.
    """
    home = home or repository.path.parent
    counter, out = home / "counter", home / "printed"
    counter.write_bytes(bytes(8))
    out.write_bytes(b"")
    begun = time.monotonic()
    pid = os.fork()
    if not pid:
        _child(repository, words, moment, victims, counter, out)
    end = begun + (LIMIT_S if after is None else after)
    status = None
    while status is None and time.monotonic() < end:
        done, raw = os.waitpid(pid, os.WNOHANG)
        status = os.waitstatus_to_exitcode(raw) if done else None
        time.sleep(0 if done else 0.005)
    seconds = time.monotonic() - begun
    if status is None:
        _kill(pid, victims)
        os.kill(pid, signal.SIGKILL)  # it may not have had the time to make a group of its own
        os.waitpid(pid, 0)
        status = -signal.SIGALRM if after is None else -signal.SIGKILL
    if victims != "root" or status != -signal.SIGKILL:  # others have to end by themselves
        _kill(pid, "group")
    calls = struct.unpack("q", counter.read_bytes())[0]
    return Ended(status, out.read_text(errors="replace"), calls, seconds)


def _kill(pid, victims) -> None:
    with suppress(ProcessLookupError):  # all of it has ended
        (os.kill if victims == "root" else os.killpg)(pid, signal.SIGKILL)


def _child(repository, words, moment, victims, counter, out) -> None:
    """Become the command. Does not return."""
    status = 70
    try:
        os.setsid()
        atexit._clear()  # pytest's, which would remove the folders of earlier runs of the tests
        for name, fd in (("/dev/null", 0), (out, 1), (out, 2)):
            flags = os.O_RDONLY if fd == 0 else os.O_WRONLY | os.O_CREAT | (os.O_TRUNC * (fd == 1))
            os.dup2(os.open(name, flags | os.O_APPEND, 0o644), fd)
        sys.stdin, sys.stdout, sys.stderr = map(os.fdopen, (0, 1, 2), "rww", (-1, -1, 1))
        signal.alarm(0)
        warnings.simplefilter("ignore")
        os.chdir(repository.path)
        os.environ.update(repository.environment())
        os.environ["PYTHONPATH"] = f"{KILLER}:{repository.path / 'src'}"
        os.environ["CAPGAP_KILL"] = f"{moment}:{counter}:{victims}:{os.getpid()}"
        sys.argv = ["capgap", *map(str, words)]
        from capgap import cli

        runpy.run_path(str(KILLER / "sitecustomize.py"))
        try:
            cli.main()
            status = 0
        except SystemExit as end:
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr)
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):
                stream.flush()
        os._exit(status)
