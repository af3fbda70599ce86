"""How a process of capgap meets whoever started it and whoever reads what it prints."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import NoReturn

PR_SET_PDEATHSIG = 1  # of Linux's prctl


def die_with_parent() -> None:
    """Have Linux kill this process when its parent dies; does nothing on other systems."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == 1:
            os._exit(1)  # it is dead already


def open_streams() -> None:
    """Make the three standard streams usable, whatever this process was started with.

    A stream that is closed becomes the null device, and a character that the encoding lacks is
    written as an escape instead of ending the command.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            mode = "r" if number == 0 else "w"
            null = os.open(os.devnull, os.O_RDONLY if number == 0 else os.O_WRONLY)
            if null != number:  # or a file that is opened later would take the number
                os.dup2(null, number)
                os.close(null)
            setattr(sys, name, open(number, mode, encoding="utf-8"))  # noqa: SIM115
        elif number and hasattr(getattr(sys, name), "reconfigure"):
            getattr(sys, name).reconfigure(errors="backslashreplace")


def end_by_signal(number: int) -> None:
    """End as a signal ends a process, so that whoever started this one sees it."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def end_unread(message: str | None = None) -> NoReturn:
    """End without writing any more output: nobody reads it, or it cannot be written."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.exit(message or 128 + signal.SIGPIPE)
