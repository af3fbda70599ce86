"""
Check every result of a study against its manifest and record: `capgap verify`.

Planning looks at small files only, so a byte that rotted in a checkpoint shows here, in the job
that reads it, and in `dvc status`.
"""

from __future__ import annotations

from pathlib import Path

from capgap.command_parser import CommandParser
from capgap.config.study_file import load_study
from capgap.errors import CapgapError
from capgap.records import checksums, paths
from capgap.records.reading import Unreadable
from capgap.workflow import ledger


def results_of(study: str) -> Path:
    """The folder of a study's results; CapgapError if there are none."""
    root = Path(paths.ROOT.format(study=study))
    if not root.is_dir():
        raise CapgapError(
            f"{root}: no results here; `capgap pull` brings them, `capgap run` makes them"
        )
    return root


def result_of(study: str, path: str) -> str:
    """One result of a study, of which `path` is the template; CapgapError if it is missing."""
    results_of(study)
    name = path.format(study=study)
    if not Path(name).is_file():
        raise CapgapError(f"{name}: not made yet; `capgap run` makes it")
    return name


def problems(study: str) -> list[str]:
    """What is not as recorded, one sentence each. Every file of the study is read."""
    root = results_of(study)
    found = [f"{output} is unfinished" for output in ledger.unfinished(root)]
    found += checksums.check(root).sentences()
    try:
        changed = ledger.changed_inputs(ledger.read_all(root))
    except Unreadable as error:
        return [*found, str(error)]
    for name, outputs in changed.items():
        more = f" and {len(outputs) - 1} more" if len(outputs) > 1 else ""
        found.append(f"{name} has other contents than {outputs[0]}{more} was made from")
    return found


def check(study: str, purpose: str) -> None:
    """Raise CapgapError that names what is wrong with a study and what to do."""
    refuse(problems(study), purpose)


def refuse(found: list[str], purpose: str) -> None:
    """Raise CapgapError that lists what is wrong with a study's results, if anything is."""
    if found:
        lines = "\n".join(f"  {line}" for line in found)
        raise CapgapError(
            f"{purpose}: {len(found)} result(s) are not as recorded:\n{lines}\n"
            "What was saved comes back with `capgap pull --models --force`, one file or folder with "
            "`capgap pull --force PATH`; a result that you delete is made again by `capgap run`, and "
            "so is one that was made from other inputs; files that no job made are yours to move away"
        )


def main(argv: list[str] | None = None) -> None:
    """Command line of `capgap verify`."""
    parser = CommandParser(
        "verify",
        "Read every result of a study and compare it with its manifest and record.",
    )
    parser.add_study()
    study = load_study(parser.parse_args(argv).study).study
    check(study, f"study {study}")
    print(f"study {study}: all results are as recorded")
