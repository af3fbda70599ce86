"""The one exception whose message is meant for the person at the keyboard."""

import reprlib
import sys


class CapgapError(Exception):
    """Something a user can mend: the message names the thing, its value, the limit and the mend.

    The command line prints the message without a traceback and exits with status 1.
    """


class Terminated(CapgapError):
    """A job was told to end (SIGTERM) and has saved its state; the next run goes on from it."""


def out_of_memory(error: BaseException | None) -> bool:
    """Whether an error says that memory ran out, on a GPU or in main memory."""
    torch = sys.modules.get("torch")
    if isinstance(error, MemoryError) or (torch and isinstance(error, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def shown(value: object, limit: int = 80) -> str:
    """A value in a message: at most `limit` characters of it, for a value may be a whole document."""
    text = value if isinstance(value, str) else reprlib.repr(value)
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text):,} characters)"
