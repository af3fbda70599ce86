"""
Fetch a study's results: `capgap pull` fetches the small ones, `capgap pull --models` all.

Records, manifests, tables and the report are enough to plan, to read the report and to recommend
teachers. A job that needs a model that was not pulled names the folder to `capgap pull`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from capgap.command_parser import CommandParser
from capgap.config.study_file import load_study
from capgap.errors import CapgapError
from capgap.records import paths
from capgap.workflow import remote
from capgap.workflow.locks import only_run


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


def main(argv: list[str] | None = None) -> None:
    """Command line of `capgap pull`."""
    parser = CommandParser(
        "pull",
        "Fetch the records and small results of the study in config.yaml, enough to "
        "plan, to read the report and to recommend teachers.",
    )
    parser.add_argument(
        "paths",
        nargs="*",
        type=Path,
        metavar="PATH",
        help="files or folders below results/ to fetch, and nothing else",
    )
    parser.add_argument("--models", action="store_true", help="fetch everything, models too")
    parser.add_argument(
        "--force", action="store_true", help="replace what is here and was not saved, too"
    )
    args = parser.parse_args(argv)
    study = load_study(Path("config.yaml")).study
    report = paths.REPORT.format(study=study).rpartition("/")[0]

    def choose(names: Iterable[str]) -> list[str]:
        if args.paths:
            return named(names, args.paths)
        return sorted(names) if args.models else small(names, report)

    with only_run():
        remote.restore_lock()
        names = remote.pull(study, choose, force=args.force, only=bool(args.paths))
    rest = (
        "" if args.models or args.paths else "; models stay where they are (capgap pull --models)"
    )
    print(f"study {study}: {len(names)} files are here{rest}")


def named(names: Iterable[str], wanted: list[Path]) -> list[str]:
    """Names that are one of the wanted paths, or below one; CapgapError if there are none."""
    chosen = set()
    every = sorted(names)
    for path in wanted:
        relative = Path(os.path.relpath(path)).as_posix()
        found = [name for name in every if name == relative or name.startswith(f"{relative}/")]
        if not found:
            raise CapgapError(f"{path}: dvc.lock names no such file; capgap pull brings all")
        chosen.update(found)
    return sorted(chosen)
