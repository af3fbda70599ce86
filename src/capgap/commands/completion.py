"""
Print a script that completes commands and options in your shell.

    bash   capgap completion bash > ~/.local/share/bash-completion/completions/capgap
    zsh    capgap completion zsh > ~/.zfunc/_capgap   (with fpath+=~/.zfunc before compinit)
    tcsh   capgap completion tcsh >> ~/.tcshrc
"""

from __future__ import annotations

import argparse
from importlib import import_module
from pathlib import Path

import shtab

from capgap.command_parser import DESCRIBE, CommandParser, Described
from capgap.command_table import COMMANDS
from capgap.stages.base import out_file, out_filled, out_folder

FOLDERS = (out_folder, out_filled)
FILES = (Path, out_file)


def parser_of(command: str) -> CommandParser:
    """The parser of a command by its name; imports its module."""
    try:
        import_module(COMMANDS[command].module).main(DESCRIBE)
    except Described as described:
        return described.parser
    raise AssertionError(f"capgap {command} does not parse its command line with CommandParser")


def whole_parser() -> argparse.ArgumentParser:
    """One parser of all commands; arguments that are paths complete files or folders."""
    whole = argparse.ArgumentParser(prog="capgap")
    subparsers = whole.add_subparsers()
    for name, entry in COMMANDS.items():
        parser = parser_of(name)
        for action in parser._actions:
            if action.type in FOLDERS or action.type in FILES:
                kind = shtab.DIRECTORY if action.type in FOLDERS else shtab.FILE
                setattr(action, "complete", kind)  # noqa: B010, argparse does not declare it
        subparsers.add_parser(name, help=entry.summary, parents=[parser], add_help=False)
    return whole


def main(argv: list[str] | None = None) -> None:
    """Command line of `capgap completion`."""
    parser = CommandParser("completion", __doc__)
    parser.add_argument("shell", choices=shtab.SUPPORTED_SHELLS, help="your shell")
    shell = parser.parse_args(argv).shell
    print(shtab.complete(whole_parser(), shell=shell))
