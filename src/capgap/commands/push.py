"""Store a saved study in the DVC remote: `capgap push`, after `capgap save`."""

from __future__ import annotations

import argparse
import subprocess

from capgap.stages.base import run_stage
from capgap.workflow import remote
from capgap.workflow.locks import only_run


def main(argv: list[str] | None = None) -> None:
    """Command line of `capgap push`."""
    parser = argparse.ArgumentParser(
        prog="capgap push",
        description="Store what dvc.lock names, all results of the last capgap save, in the "
        "remote of .dvc/config; what is there already is not sent again.",
    )
    parser.parse_args(argv)
    with only_run():
        new = remote.push()
    print(f"the remote has all of the last capgap save; {new} objects were new")
    told = subprocess.run(
        ["git", "status", "--porcelain", "--", remote.LOCK], capture_output=True, text=True
    )
    if told.stdout:
        print(
            f"but nobody sees it before {remote.LOCK} is committed: git add {remote.LOCK} && git "
            'commit -m "results", then git push'
        )


if __name__ == "__main__":
    run_stage(main)
