"""Wrong invocations of every command that works by itself: one message each, and nothing of the
user's is touched."""

import argparse
import importlib
import os
from pathlib import Path

import pytest
from chaos_tool import Table, draw_of, outcome, sizes
from chaos_world import COMMANDS as PLANNED

from capgap.cli import COMMANDS

SMALL = 40
# These start others, write where they please or talk to servers; the tests of each call them.
APART = {"run", "plan", "save", "push", "pull", "pin", "tensorboard", "clean", "accept"}
SCALARS = ["", "-1", "0", "nan", "inf", "1e999", "x", "10" * 30, "1,5", "\u0661", "true", "null", "[]",
           "None", "-", "--", "a" * 5000, "\udcff", "'; touch hacked; '", "$(touch hacked)"]  # fmt: skip


GOOD = {
    **{name: words for name, words in PLANNED.items() if name != "pretrain"},
    "trim": "t/model --text texts/1.txt --out trimmed".split(),
    "random-init": "--like t/model --params 3k --name s --out random".split(),
    "cache-teacher": "--teacher t/model --token-streams tokens --kind sampled --entries 4 "
    "--unique-tokens 320 --sequence-length 16 --out targets".split(),
    "fetch": "--name t --source path --path t/model --params-non-embedding 4720 --out f".split(),
}


class Captured(BaseException):
    """Carries a parser out of a command's main."""


def options_of(command):
    """The options that a command's parser knows."""
    main = importlib.import_module(COMMANDS[command][0]).main

    def capture(self, *_, **__):
        raise Captured(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", capture)
        patch.setattr(argparse.ArgumentParser, "parse_known_args", capture)
        try:
            main([])
        except Captured as found:
            actions = found.args[0]._actions
            return main, [a for a in actions if a.dest not in ("help", "spec")]
    raise AssertionError(command)


@pytest.fixture
def places(world):
    """Places that are wrong for most purposes, and a folder whose files must stay as they are."""
    (world / "precious").mkdir()
    (world / "precious/letter.txt").write_text("dear")
    (world / "empty").mkdir()
    for name, data in {"null.json": b"null", "list.json": b"[]", "bytes": b"\xff\xfe\x00" * 99,
                       "nothing": b"", "deep.json": b"[" * 50_000}.items():  # fmt: skip
        (world / name).write_bytes(data)
    (world / "dangling").symlink_to("nowhere")
    (world / "loop").symlink_to("loop")
    for name in ("config.json", "manifest.json", "meta.json", "tokenizer.json"):
        (world / f"null-{name}").mkdir()
        (world / f"null-{name}" / name).write_text("null")
        (world / f"list-{name}").mkdir()
        (world / f"list-{name}" / name).write_text("[]")
    names = [p.name for p in world.iterdir()]
    return [*names, ".", "..", "/dev/null", "missing", "n" * 300, "null.json/below", "t/model",
            "precious/letter.txt", "texts/*.txt"]  # fmt: skip


@sizes(SMALL, 400)
def test_bad_input_is_one_message(world, places, trials, capsys):
    draw, table = draw_of(trials, SMALL), Table("bad input")
    commands = sorted(set(COMMANDS) - APART)
    commands += list(GOOD)
    parsers = {command: options_of(command) for command in commands}
    before = {p: p.read_bytes() for p in (world / "precious").iterdir()}
    for trial in range(trials):
        command = commands[trial % len(commands)]
        main, actions = parsers[command]
        words = []
        if command in GOOD and trial % 2:  # one wrong word in a command that is right
            words = [*GOOD[command]]
            words[draw.choice([i for i, w in enumerate(words) if w[:2] != "--"])] = draw.choice(
                [*places, *SCALARS]
            )
            actions = []
        for action in actions:
            settings = action.dest.startswith("setting_")
            if not action.required and draw.random() > (0.1 if settings else 0.3):
                continue
            words += action.option_strings[:1]
            if action.nargs != 0:
                words.append(draw.choice(SCALARS if settings else [*places, *SCALARS[:6]]))
        result = outcome(lambda main=main, words=words: main(words))
        table.add(command, result, str(words))
        if {p: p.read_bytes() for p in (world / "precious").glob("*")} != before:
            table.add(command, "lost", str(words))
    assert not Path("hacked").exists()
    assert os.path.exists("/dev/null")
    capsys.readouterr()
    table.finish(trials, SMALL)
