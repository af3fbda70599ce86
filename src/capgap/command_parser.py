"""The command line that all commands share: short usage, ordered help with an example, one-line errors."""

from __future__ import annotations

import argparse
import functools
import os
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from capgap import command_table

DESCRIBE = ["\0describe"]  # as argv, makes a command's `main` raise Described instead of running


class Described(Exception):
    """Carries the parser of a command whose `main` was called with DESCRIBE."""

    def __init__(self, parser: CommandParser):
        self.parser = parser


def by_hand(function: Callable) -> Callable:
    """Mark a function that only serves people: it refuses to run in a job of the workflow.

    So it cannot touch a result of a study, and an edit of it makes no result stale.
    """

    @functools.wraps(function)
    def guarded(*arguments, **named):
        assert "CAPGAP_UNDER_WORKFLOW" not in os.environ, f"{function.__name__} is not for jobs"
        return function(*arguments, **named)

    return guarded


class CommandParser(argparse.ArgumentParser):
    """Parser of `capgap <name>`; summary: what it does, with line breaks as they shall be shown."""

    def __init__(self, name: str, summary: str | None):
        super().__init__(
            prog=f"capgap {name}",
            description=(summary or "").strip(),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        self.command = name

    def parse_known_args(self, args=None, namespace=None):
        """As argparse does, but with DESCRIBE raise Described."""
        if args == DESCRIBE:
            raise Described(self)
        return super().parse_known_args(args, namespace)

    def add_study(self, group: argparse._ActionsContainer | None = None) -> None:
        """Add the option --study, or to one of the parser's groups."""
        (group or self).add_argument(
            "--study",
            type=Path,
            default=Path("config.yaml"),
            help="study file (default config.yaml)",
        )

    def error(self, message: str) -> NoReturn:
        """End with the message alone: the usage of a stage fills a screen."""
        self.exit(2, f"error: {message}; {self.prog} --help explains the options\n")

    def format_help(self) -> str:
        """The help text: what is needed first, then options, settings and an example."""
        return help_text(self)


@by_hand
def help_text(parser: CommandParser) -> str:
    """The help of a command, see `CommandParser.format_help`."""
    groups = {group.title: list(group._group_actions) for group in parser._action_groups}
    own = [action for group in list(groups)[:2] for action in groups.pop(group)]
    own = [action for action in own if action.help != argparse.SUPPRESS]
    exclusive = [group for group in parser._mutually_exclusive_groups if group.required]
    choices = [action for group in exclusive for action in group._group_actions]
    positional = [action for action in own if not action.option_strings]
    needed = [action for action in own if action.required and action.option_strings]
    optional = [action for action in positional if action.nargs in ("?", "*")]
    rest = [a for a in own if a in optional or a not in (*positional, *needed, *choices)]
    rest = [a for a in rest if a.dest != "help"] + [a for a in rest if a.dest == "help"]

    formatter = parser._get_formatter()
    words = [parser.prog, *(formatter._format_args(a, a.dest) for a in positional)]
    words += [_option(formatter, action) for action in needed]
    words += [
        f"({' | '.join(_option(formatter, a) for a in group._group_actions)})"
        for group in exclusive
    ]
    usage = textwrap.fill(
        " ".join([*words, "[options]"]),
        formatter._width,
        subsequent_indent=" " * len(f"usage: {parser.prog} "),
        break_on_hyphens=False,
    )
    formatter.add_usage(usage.replace("%", "%%"), [], [])
    text = parser.description.replace("%", "%%")  # filled unless it has line breaks of its own
    formatter.add_text(text if "\n" in text else textwrap.fill(text, formatter._width))
    for title, actions in [
        ("needed", [a for a in (*positional, *needed) if a not in optional]),
        *[("one of these is needed", group._group_actions) for group in exclusive],
        ("options", rest),
        *groups.items(),
    ]:
        formatter.start_section(title)
        formatter.add_arguments(actions)
        formatter.end_section()
    entry = command_table.COMMANDS.get(parser.command)
    if entry:
        lines = "\n".join(f"  {line}" for line in entry.example.splitlines())
        formatter.add_text(f"example:\n{lines}".replace("%", "%%"))
    return formatter.format_help()


def _option(formatter: argparse.HelpFormatter, action: argparse.Action) -> str:
    """An option with its value, as a usage line shows it."""
    name = action.option_strings[0]
    if action.nargs == 0:
        return name
    default = formatter._get_default_metavar_for_optional(action)
    return f"{name} {formatter._format_args(action, default)}"
