"""
Accept existing results under changed source: `capgap accept --reason "..."`.

Use it after a refactoring that cannot change results, to save GPU days. Only the source digest in the
records is replaced; results of other settings or inputs still run again. The names, reasons and
outputs are kept in results/<study>/accepted.json.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from capgap.command_parser import CommandParser
from capgap.commands.verify import check, results_of
from capgap.config.study_file import load_study
from capgap.errors import CapgapError
from capgap.records import checksums, paths
from capgap.records.artifacts import write_text
from capgap.records.reading import read_json
from capgap.workflow import ledger
from capgap.workflow.digest import source_digest
from capgap.workflow.leftovers import remove_temporary
from capgap.workflow.locks import only_run
from capgap.workflow.own_places import git
from capgap.workflow.rule_params import digests


def outdated(records: dict[str, dict], stages: list[str]) -> dict[tuple[str, str], list[str]]:
    """Outputs made with another source or command than today's, by (stage, digest they were made with)."""
    found: dict[tuple[str, str], list[str]] = {}
    for output, record in records.items():
        spec = ledger.read_spec(record)
        if spec is None or (stages and spec["stage"] not in stages):
            continue
        if not spec.items() >= digests(spec["stage"], record["rule"]).items():
            found.setdefault((spec["stage"], spec["source"]), []).append(output)
    return dict(sorted(found.items()))


def run(study: str, stages: list[str], reason: str | None, by: str | None) -> list[str]:
    """Accept, or only list without a reason; returns the lines to print.

    Raises CapgapError if a result does not match its manifest or its record.
    """
    root = results_of(study)
    records = ledger.read_all(root)
    found = outdated(records, stages)
    lines = [
        f"{stage}: {len(outputs)} outputs made with source {before}, now "
        f"{source_digest(f'capgap.stages.{stage}')}"
        for (stage, before), outputs in found.items()
    ]
    if not found:
        return ["nothing to accept: every result was made with today's source"]
    if reason is None:
        return [*lines, "to accept them: capgap accept --reason 'why the results stay the same'"]
    check(study, "nothing was accepted")
    book = Path(paths.ACCEPTED.format(study=study))
    entries = read_json(book, list) if book.is_file() else []
    for (stage, before), outputs in found.items():
        now = source_digest(f"capgap.stages.{stage}")
        entry = {
            "stage": stage,
            "source_before": before,
            "source_now": now,
            "by": by or _git_user(),
            "reason": reason,
            "outputs": outputs,
        }
        if entry not in entries:  # a kill may have come between the book and the records
            entries.append(entry)
    text = json.dumps(entries, indent=1, sort_keys=True) + "\n"
    checksums.announce(book, hashlib.sha256(text.encode()).hexdigest())
    write_text(book, text)
    checksums.fold(root)
    for (stage, _), outputs in found.items():
        for output in outputs:
            new = digests(stage, records[output]["rule"])
            ledger.replace_spec(output, records[output], lambda spec, new=new: {**spec, **new})
    return [*lines, f"accepted, and recorded in {book}"]


def _git_user() -> str:
    """The name that git would sign with."""
    name = git("config", "user.name")
    if not name:
        raise CapgapError("--by is missing: give --by NAME, or set git's: git config user.name")
    return name


def main(argv: list[str] | None = None) -> None:
    """Command line of `capgap accept`."""
    parser = CommandParser(
        "accept",
        "Keep existing results after a source change that does not affect them, after checking their "
        "contents. Without --reason, it only shows what would be accepted.",
    )
    parser.add_study()
    parser.add_argument(
        "--stage", nargs="+", default=[], help="stages whose results are accepted (default all)"
    )
    parser.add_argument("--reason", help="why the changed source gives the same results")
    parser.add_argument("--by", help="who accepts (default git's user.name)")
    args = parser.parse_args(argv)
    study = load_study(args.study).study
    with only_run():
        if args.reason is not None:
            remove_temporary(results_of(study))
        lines = run(study, args.stage, args.reason, args.by)
    print("\n".join(lines))
