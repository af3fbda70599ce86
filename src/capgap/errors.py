"""The one exception whose message is meant for the person at the keyboard."""

import re
import reprlib
import sys

USER_AND_PASSWORD = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*://)(?P<user>[^/@\s:'\"]*)(?P<rest>:[^/@\s]*)?@"
)
QUERY = re.compile(r"(?P<address>[a-z][a-z0-9+.-]*://[^\s?'\"]*)\?[^\s'\"),;]+")


def hide_secrets(text: str) -> str:
    """A text in which addresses have no password, no token as their user, and no query."""

    def shown(match: re.Match) -> str:
        user_is_token = match["scheme"] in ("http://", "https://")
        if match["rest"] is None and not user_is_token:
            return match[0]
        return match["scheme"] + ("***" if user_is_token else f"{match['user']}:***") + "@"

    return QUERY.sub(r"\g<address>?***", USER_AND_PASSWORD.sub(shown, text))


class CapgapError(Exception):
    """Something a user can fix: the message names the thing, its value, the limit and the fix.

    The command line prints the message without a traceback and exits with status 1.
    """


class Terminated(CapgapError):
    """A job got SIGTERM and has saved its state; the next run resumes it."""


def out_of_memory(error: BaseException | None) -> bool:
    """Whether an error reports that memory ran out, on a GPU or in main memory."""
    torch = sys.modules.get("torch")
    if isinstance(error, MemoryError) or (torch and isinstance(error, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the name of its class if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def at_most(lines: list[str], most: int) -> list[str]:
    """The first of some lines for a message, and how many more there are."""
    return [*lines[:most], *[f"and {len(lines) - most} more"] * (len(lines) > most)]


def shown(value: object, limit: int = 80) -> str:
    """At most `limit` characters of a value, for a message; the value may be a whole document."""
    text = value if isinstance(value, str) else reprlib.repr(value)
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text):,} characters)"
