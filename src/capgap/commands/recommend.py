"""
Recommend a teacher for a student size by a fitted law, or report that the data do not settle it.

IN   law.json   the fitted law
     runs.csv   the table it was fitted on
     If neither is named, those of the study are used; if it has none, those of the published study.
OUT  the answer as text, or as JSON with --json
"""

from __future__ import annotations

import argparse
from pathlib import Path

import capgap
from capgap.commands.verify import result_of
from capgap.config.study_file import load_study
from capgap.errors import CapgapError
from capgap.law.answers.ask import open_law
from capgap.law.table.init_kinds import KINDS
from capgap.records import paths
from capgap.records.artifacts import write_text
from capgap.reporting.recommendation_text import compute_text, student_text, text
from capgap.stages.base import StageParser, count_argument, out_file

DEFAULT = "config.yaml"


def published() -> Path:
    """Folder of the published study, in the repository or as installed with capgap."""
    package = Path(capgap.__file__).parent
    folders = [base / "studies/sotu-law" for base in (package / "graph", package.parents[1])]
    return next((folder for folder in folders if folder.is_dir()), folders[-1])


def law_paths(args: argparse.Namespace) -> tuple[str, str, str]:
    """Law, table, and a note on where they are from if they are not the user's own."""
    if (args.law is None) != (args.runs is None):
        raise CapgapError("--law and --runs belong together: give both, or neither for a study's")
    if args.law is not None:
        return args.law, args.runs, ""
    own = Path(args.study or DEFAULT)
    if own.is_file():
        study = load_study(own).study
        # saved results can be pulled, and the error names the command
        saved = Path("dvc.lock").is_file() or not published().is_dir()
        if args.study or saved or Path(paths.LAW.format(study=study)).is_file():
            return result_of(study, paths.LAW), result_of(study, paths.RUNS_TABLE), ""
        missing = f"study {study} has no law yet"
    elif args.study:
        raise CapgapError(
            f"{own}: no such study file; name a law and its table with --law and --runs"
        )
    else:
        missing = "there is no study here"
    folder = published()
    note = (
        f"{missing}, so this is the law of the published study, whose models are small; `make` or "
        "`capgap run` measures yours"
    )
    return str(folder / "law.json"), str(folder / "runs.csv"), note


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    parser = StageParser("capgap.commands.recommend", __doc__)
    parser.add_argument("--law", help="law record, JSON (default: the study's)")
    parser.add_argument("--runs", help="table the law was fitted on, CSV (default: the study's)")
    parser.add_argument("--study", help=f"study file whose law is used (default {DEFAULT})")
    question = parser.add_mutually_exclusive_group(required=True)
    question.add_argument("--student", type=count_argument, help="student size without embeddings")
    question.add_argument(
        "--fits",
        type=count_argument,
        metavar="TEACHER",
        help="find the student size that this teacher suits best, instead of a teacher",
    )
    parser.add_argument(
        "--teachers", help="names of the table or sizes, separated by commas (default: the table's)"
    )
    parser.add_argument(
        "--tokens", type=count_argument, help="distillation tokens (default: largest of the table)"
    )
    parser.add_argument(
        "--flops",
        type=count_argument,
        help="rank teachers at this compute instead of at equal tokens: a larger one leaves fewer tokens",
    )
    parser.add_argument(
        "--shared-by",
        type=count_argument,
        default=1,
        metavar="RUNS",
        help="with --flops, runs that share one pass of the teacher, as students of cached targets do "
        "(default 1: it runs online)",
    )
    parser.add_argument(
        "--init",
        choices=list(KINDS),
        help="what the student starts from: pruned from its teacher, given or random (default: what "
        "the law was mainly fitted on)",
    )
    parser.add_argument(
        "--teacher-weight",
        type=float,
        metavar="W",
        help="weight of the teacher's term in the student's loss, if the runs differ in it (default: that "
        "of the first law)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--out", type=out_file, help="also write the answer to this file, JSON")
    args, _ = parser.parse(argv)
    if args.flops is not None:
        if args.tokens is not None or args.fits is not None:
            other = "--fits" if args.tokens is None else "--tokens"
            parser.error(f"--flops and {other} exclude each other; give one")
        if args.flops < 1 or args.shared_by < 1:
            parser.error("--flops and --shared-by must be at least 1")
    elif args.shared_by != 1:
        parser.error("--shared-by belongs to --flops, which is missing")
    if args.fits is not None and args.teachers is not None:
        parser.error("--fits asks for a student, so --teachers does not go with it")
    law_path, runs_path, note = law_paths(args)
    teachers = [name.strip() for name in args.teachers.split(",")] if args.teachers else None
    try:
        asked = open_law(law_path, runs_path, args.init, args.teacher_weight)
        if args.fits is not None:
            answer, written = asked.student_for(args.fits, args.tokens), student_text
        elif args.flops is not None:
            answer = asked.at_compute(args.student, args.flops, args.shared_by, teachers)
            written = compute_text
        else:
            answer, written = asked.teachers_for(args.student, args.tokens, teachers), text
    except CapgapError as error:
        if not note:
            raise
        raise CapgapError(f"{error} ({note})") from error
    if note:
        answer = answer.model_copy(update={"notes": [note, *answer.notes]})
    if args.out:
        write_text(args.out, answer.to_json())
    print(answer.to_json().rstrip() if args.json else written(answer, asked.law))
