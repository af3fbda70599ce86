"""
The `capgap` command: every stage of the workflow by hand, and the study as a whole.
"""

from __future__ import annotations

import difflib
import os
import signal
import sys
from importlib import import_module

from capgap import __version__
from capgap.command_table import COMMANDS, GROUPS, overview
from capgap.terminal import end_by_signal, end_unread, open_streams

BLAS = ("OPENBLAS", "MKL", "GOTO")  # libraries that NumPy and SciPy come with


def main() -> None:
    """Run `capgap <command> ...`; errors of the standard streams end it without a traceback."""
    open_streams()
    # Otherwise `python -m` would import a yaml.py of the working folder, which may have been pulled.
    os.environ["PYTHONSAFEPATH"] = "1"
    # Large tensors in huge pages, if Linux grants them: far fewer page faults. torch reads it once.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    try:
        try:
            dispatch()
        finally:  # here a closed pipe can still be handled, unlike at the interpreter's exit
            sys.stdout.flush()
    except KeyboardInterrupt:  # while a command is loaded; later each command prints how to go on
        end_by_signal(signal.SIGINT)
    except BrokenPipeError:  # as by `capgap ... | head`, which is no error
        end_unread()
    except OSError as error:  # of standard output; commands report their own errors
        end_unread(f"error: standard output: {(error.strerror or str(error)).lower()}")


def one_blas_thread() -> None:
    """Let BLAS compute in one thread, unless the user has chosen a number; before NumPy is imported.

    The law's matrices are so small that a second thread only waits: on a busy machine a fit took
    up to 24 times the CPU time with one thread a core.
    """
    if not any(f"{name}_NUM_THREADS" in os.environ for name in ("OMP", *BLAS)):
        os.environ.update({f"{name}_NUM_THREADS": "1" for name in BLAS})


def dispatch() -> None:
    """Run the command that the first word names; it ends the process."""
    if sys.argv[1:2] == ["law"]:  # `capgap law fit` reads better if there is no study
        sys.argv.pop(1)
    command = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if command in ("-V", "--version"):
        print(f"capgap {__version__}")
    elif command in ("-h", "--help", "help"):
        print(overview())
    elif command in COMMANDS:
        if command in GROUPS["the law"]:
            one_blas_thread()
        sys.argv = [f"capgap {command}", *sys.argv[2:]]
        main_of = import_module(COMMANDS[command].module).main
        import_module("capgap.stages.base").run_stage(main_of)  # heavy, like the command itself
    else:
        close = difflib.get_close_matches(command, COMMANDS, n=1)
        meant = f"did you mean {close[0]}?" if close else "capgap --help lists them"
        sys.exit(f"error: unknown command {command!r}; {meant}")


if __name__ == "__main__":
    main()
