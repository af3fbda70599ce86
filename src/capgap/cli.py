"""
The `capgap` command: every stage of the workflow by hand, and the study as a whole.
"""

from __future__ import annotations

import runpy
import sys

from capgap import __version__

COMMANDS = {
    "run": ("capgap.workflow.execute", "run a study: everything that is not up to date"),
    "plan": ("capgap.plan", "what a study will cost, before it is paid"),
    "pin": ("capgap.pin", "ask the hub about the commits that a study pins"),
    "verify": ("capgap.workflow.verify", "check every result against its manifest and record"),
    "save": ("capgap.workflow.save", "hand a finished study to DVC, for colleagues to pull"),
    "push": ("capgap.workflow.push", "store a saved study in the remote"),
    "pull": ("capgap.workflow.pull", "fetch a study's results from the remote, small ones or all"),
    "export": ("capgap.workflow.export", "hand over the final student with a model card"),
    "accept": ("capgap.workflow.accept", "keep results under source that gives the same ones"),
    "summary": ("capgap.summary", "print what a study found"),
    "tensorboard": ("capgap.tensorboard", "show learning curves in TensorBoard"),
    "corpus": ("capgap.corpus", "read a corpus and split it by document"),
    "tokenizer": ("capgap.tokenizer", "train a tokenizer, or take a teacher's"),
    "pack": ("capgap.pack", "turn a corpus into token streams"),
    "pretrain": ("capgap.pretrain", "train a teacher from a random start"),
    "fetch": ("capgap.fetch", "bring in a teacher that exists already"),
    "trim": ("capgap.trim", "trim a model's vocabulary to what a text uses"),
    "signal": ("capgap.signal", "keep a teacher's signal on disk for all its students"),
    "score": ("capgap.score", "measure the importance of a teacher's units"),
    "prune": ("capgap.prune", "cut a teacher down to a student's start"),
    "randomise": ("capgap.randomise", "make a random start of a student's size"),
    "distill": ("capgap.distill", "train a student, with a teacher or without"),
    "evaluate": ("capgap.evaluate", "measure a model on held-out text"),
    "harness": ("capgap.harness", "measure a model on tasks of lm-evaluation-harness"),
    "collect": ("capgap.collect", "gather finished runs into runs.csv"),
    "fit": ("capgap.fit", "fit the law on a table of runs"),
    "choose": ("capgap.choose", "choose a teacher for a student size by the law"),
    "recommend": ("capgap.recommend", "recommend a teacher by a fitted law, or abstain"),
    "compare": ("capgap.compare", "hold the choice against its alternatives"),
    "headline": ("capgap.headline", "write the few numbers revisions are compared by"),
    "report": ("capgap.report", "write the report"),
}


def main() -> None:
    """Dispatch `capgap <command> ...` to the module `python -m` would run."""
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
