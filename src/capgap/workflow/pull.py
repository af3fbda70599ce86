"""
Fetch the small results of a study only: `capgap pull`; `dvc pull` fetches the models as well.

Records, manifests, tables and the report are enough to plan, to read the report and to ask the
law. A job that needs a model that was left out says which folder to `dvc pull`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from capgap import paths
from capgap.config import load_study
from capgap.errors import CapgapError
from capgap.stage import run_stage
from capgap.workflow.ledger import RECORDS


def small(names: Iterable[str], report: str) -> list[str]:
    """Names without the contents of folder artifacts; their manifests and the report stay."""
    names = sorted(names)
    folders = {PurePosixPath(n).parent for n in names if PurePosixPath(n).name == paths.MANIFEST}
    folders.discard(PurePosixPath(report))
    return [
        name
        for name in names
        if PurePosixPath(name).name == paths.MANIFEST
        or not folders.intersection(PurePosixPath(name).parents)
    ]


def run(study: str) -> int:
    """Pull what is small; the number of files."""
    from dvc.api import DVCFileSystem
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc_data.index import DataIndexDirError

    root = paths.ROOT.format(study=study)
    try:
        with Repo() as repo:
            names = DVCFileSystem(repo=repo, subrepos=False).find(root, dvc_only=True)
            wanted = small(
                (n.lstrip("/") for n in names), paths.REPORT.format(study=study).rsplit("/", 1)[0]
            )
            repo.pull(targets=[str(RECORDS), *wanted])
    except (DvcException, DataIndexDirError, FileNotFoundError) as error:
        raise CapgapError(
            f"the results of study {study} cannot be fetched: {error}. "
            "Is the remote right (dvc remote list), and did its author push (dvc push)?"
        ) from None
    return len(wanted)


def main(argv: list[str] | None = None) -> None:
    """Command line of `capgap pull`."""
    parser = argparse.ArgumentParser(
        prog="capgap pull",
        description="Fetch the records and small results of the study in config.yaml, not its "
        "models; 'dvc pull' fetches everything.",
    )
    parser.parse_args(argv)
    study = load_study(Path("config.yaml")).study
    print(f"study {study}: {run(study)} small files and the records; models stay where they are")


if __name__ == "__main__":
    run_stage(main)
