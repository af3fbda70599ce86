"""
The `capgap` command: every stage of the workflow by hand, and the study as a whole.
"""

from __future__ import annotations

import difflib
import os
import runpy
import signal
import sys

from capgap import __version__
from capgap.command_table import COMMANDS, overview
from capgap.terminal import end_by_signal, end_unread, open_streams


def main() -> None:
    """Run `capgap <command> ...`, so that whatever it prints last is its own."""
    open_streams()
    os.environ["PYTHONSAFEPATH"] = (
        "1"  # else `python -m` imports yaml.py of a folder that was pulled
    )
    # Large tensors in huge pages, where Linux grants them: far fewer page faults. torch reads it once.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    try:
        try:
            dispatch()
        finally:  # here, where a reader that is gone can still be met; not at the very end
            sys.stdout.flush()
    except KeyboardInterrupt:  # while a command is loaded; later each says how to go on
        end_by_signal(signal.SIGINT)
    except BrokenPipeError:  # of `capgap ... | head`: nobody reads on, and nothing is wrong
        end_unread()
    except OSError as error:  # of the output itself; commands report their own
        end_unread(f"error: standard output: {(error.strerror or str(error)).lower()}")


def dispatch() -> None:
    """Hand over to the module that `python -m` would run."""
    if sys.argv[1:2] == ["law"]:  # `capgap law fit` reads better if there is no study
        sys.argv.pop(1)
    command = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if command in ("-V", "--version"):
        print(f"capgap {__version__}")
    elif command in ("-h", "--help", "help"):
        print(overview())
    elif command in COMMANDS:
        sys.argv = [f"capgap {command}", *sys.argv[2:]]
        runpy.run_module(COMMANDS[command].module, run_name="__main__", alter_sys=True)
    else:
        close = difflib.get_close_matches(command, COMMANDS, n=1)
        meant = f"did you mean {close[0]}?" if close else "capgap --help lists them"
        sys.exit(f"error: unknown command {command!r}; {meant}")


if __name__ == "__main__":
    main()
