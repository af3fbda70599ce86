"""
The `capgap` command: every stage of the workflow by hand, and the study as a whole.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys

from capgap import __version__
from capgap.terminal import end_by_signal, end_unread, open_streams

COMMANDS = {
    "run": ("capgap.commands.run", "run a study: everything that is not up to date"),
    "plan": ("capgap.commands.plan", "what a study will cost, before it is paid"),
    "pin": ("capgap.commands.pin", "ask the hub about the commits that a study pins"),
    "clean": ("capgap.commands.clean", "remove what killed jobs left and nothing can resume"),
    "verify": ("capgap.commands.verify", "check every result against its manifest and record"),
    "save": ("capgap.commands.save", "hand a finished study to DVC, for colleagues to pull"),
    "push": ("capgap.commands.push", "store a saved study in the remote"),
    "pull": ("capgap.commands.pull", "fetch a study's results from the remote, small ones or all"),
    "export": ("capgap.commands.export", "hand over the final student with a model card"),
    "accept": ("capgap.commands.accept", "keep results under source that gives the same ones"),
    "summary": ("capgap.commands.summary", "print what a study found"),
    "tensorboard": ("capgap.commands.tensorboard", "show learning curves in TensorBoard"),
    "corpus": ("capgap.stages.corpus", "read a corpus and split it by document"),
    "tokenizer": ("capgap.stages.tokenizer", "train a tokenizer, or take a teacher's"),
    "pack": ("capgap.stages.pack", "turn a corpus into token streams"),
    "pretrain": ("capgap.stages.pretrain", "train a teacher from a random start"),
    "fetch": ("capgap.stages.fetch", "bring in a teacher that exists already"),
    "trim": ("capgap.commands.trim", "trim a model's vocabulary to what a text uses"),
    "cache-teacher": (
        "capgap.stages.cache_teacher",
        "keep a teacher's targets on disk for all its students",
    ),
    "score": ("capgap.stages.score", "measure the importance of a teacher's units"),
    "prune": ("capgap.stages.prune", "cut a teacher down to a student's start"),
    "random-init": ("capgap.stages.random_init", "make a random start of a student's size"),
    "distill": ("capgap.stages.distill", "train a student, with a teacher or without"),
    "evaluate": ("capgap.stages.evaluate", "measure a model on held-out text"),
    "harness": ("capgap.stages.harness", "measure a model on tasks of lm-evaluation-harness"),
    "collect": ("capgap.stages.collect", "gather finished runs into runs.csv"),
    "fit": ("capgap.stages.fit", "fit the law on a table of runs"),
    "choose": ("capgap.stages.choose", "choose a teacher for a student size by the law"),
    "recommend": ("capgap.commands.recommend", "recommend a teacher by a fitted law, or abstain"),
    "compare": ("capgap.stages.compare", "hold the choice against its alternatives"),
    "metrics": ("capgap.stages.metrics", "write the few numbers revisions are compared by"),
    "report": ("capgap.stages.report", "write the report"),
}


def main() -> None:
    """Run `capgap <command> ...`, so that whatever it prints last is its own."""
    open_streams()
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
    if sys.argv[1:2] == ["law"]:  # `capgap law fit` reads better where there is no study
        sys.argv.pop(1)
    command = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if command in ("-V", "--version"):
        print(f"capgap {__version__}")
    elif command in COMMANDS:
        sys.argv = [f"capgap {command}", *sys.argv[2:]]
        runpy.run_module(COMMANDS[command][0], run_name="__main__", alter_sys=True)
    else:
        width = max(map(len, COMMANDS))
        lines = [f"  {name:<{width}}  {help_text}" for name, (_, help_text) in COMMANDS.items()]
        print("usage: capgap <command> [options]; --help after a command explains it\n")
        print("\n".join(lines))
        if command not in ("-h", "--help"):
            sys.exit(f"\nerror: unknown command {command!r}")


if __name__ == "__main__":
    main()
