"""The one exception whose message is meant for the person at the keyboard."""


class CapgapError(Exception):
    """Something a user can mend: the message names the thing, its value, the limit and the mend.

    The command line prints the message without a traceback and exits with status 1.
    """


class Terminated(CapgapError):
    """A job was told to end (SIGTERM) and has saved its state; the next run goes on from it."""
