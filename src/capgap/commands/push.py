"""Store a saved study in the DVC remote: `capgap push`, after `capgap save`."""

from __future__ import annotations

from pathlib import Path

from capgap.command_parser import CommandParser
from capgap.config.study_file import load_study
from capgap.workflow import remote
from capgap.workflow.locks import only_run
from capgap.workflow.own_places import git


def main(argv: list[str] | None = None) -> None:
    """Command line of `capgap push`."""
    parser = CommandParser(
        "push",
        "Store what dvc.lock names, all results of the last capgap save, in the "
        "remote of .dvc/config; what is there already is not sent again.",
    )
    parser.parse_args(argv)
    study = load_study(Path("config.yaml")).study
    with only_run():
        remote.restore_lock()
        new = remote.push(study)
    print(f"the remote has all of the last capgap save; {new} objects were new")
    if git("status", "--porcelain", "--", str(remote.LOCK)):
        print(
            f"but nobody sees it before {remote.LOCK} is committed: git add {remote.LOCK} && git "
            'commit -m "results", then git push'
        )
