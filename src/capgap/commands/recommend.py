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
from capgap.law.answers.answer_records import (
    ComputeAnswer,
    RankedTeacher,
    Recommendation,
    RuleRegret,
)
from capgap.law.answers.ask import ask, ask_compute, inverse
from capgap.law.law_record import Interval, LawRecord
from capgap.law.number_text import about, budget, span
from capgap.law.table.init_kinds import KINDS
from capgap.law.table.metric import METRICS
from capgap.records import paths
from capgap.records.artifacts import write_text
from capgap.stages.base import StageParser, count_argument, out_file, run_stage

DEFAULT = "config.yaml"


def text(answer: Recommendation, law: LawRecord) -> str:
    """The answer for a reader who has not read the paper: a few sentences and two tables."""
    size, tokens = about(answer.student_params_non_embedding), budget(answer.tokens)
    level = f"{law.confidence:.0%}"
    if answer.status == "abstains":
        lines = [
            f"No recommendation for a student of {size} at {tokens}: {answer.reason}.",
            f"What is known: {answer.basis_note}.",
        ]
    else:
        first = answer.ranked[0]
        lines = [
            f"For a {law.init} student of {size} at {tokens}: {first.teacher}."
            if law.init != "pruned"
            else f"For a student of {size} at {tokens}: {first.teacher}.",
            f"Basis: {answer.basis_note}.",
        ]
    if answer.teacher_params_star is not None:
        star = answer.teacher_params_star
        lines.append(
            f"Best teacher size T* = {about(star.value)} ({level} interval: {span(star)}), "
            f"{star.value / answer.student_params_non_embedding:.2g} times the student."
        )
    for name, factor in (
        ("student size", answer.student_extrapolation),
        ("token budget", answer.tokens_extrapolation),
        ("ratio T*/S", answer.teacher_extrapolation),
    ):
        if factor > 1.005:
            lines.append(
                f"Extrapolation: the {name} lies {factor:.3g} times beyond the pilot runs."
            )
    if (
        max(answer.student_extrapolation, answer.tokens_extrapolation, answer.teacher_extrapolation)
        <= 1.005
    ):
        lines.append("No extrapolation: student, tokens and ratio lie within the pilot runs.")
    metric = METRICS[law.metric]
    known = any(row.measured_loss is not None for row in answer.ranked)
    lines += [
        "",
        f"Teachers, best first; {metric.noun} in {metric.unit} with {level} intervals",
        f"  {'teacher':<14}{'size':>7}{'T/S':>7}  {'predicted':<22}{'above the best':<22}"
        + (f"{'measured':<22}{'above the best':<16}" if known else "")
        + f"{'FLOPs':>8}",
    ]
    for row in answer.ranked:
        mark = "*" if row.within_tie else ""
        lines.append(
            f"  {row.teacher + mark:<14}{about(row.teacher_params_non_embedding):>7}"
            f"{row.ratio:>7.3g}  {_nats(row.predicted_loss):<22}{_above(row.predicted_regret):<22}"
            + (_measured(row) if known else "")
            + f"{row.train_flops:>8.2g}"
        )
    if answer.within_tie:
        lines.append(
            f"  * predicted within {law.tie_nats:g} {metric.short} of the best, which counts as equally good"
        )
    lines += [
        "",
        f"Rules of thumb, with the {metric.noun} expected above the best teacher (regret), {metric.unit}",
        *(_rule(rule, answer.status != "abstains") for rule in answer.rules),
        "",
        f"Compute: training with the first teacher takes {answer.ranked[0].train_flops:.2g} FLOPs instead of "
        f"{answer.exhaustive_flops:.2g} with each of them, which saves "
        f"{answer.saved_flops / answer.exhaustive_flops:.0%}. The pilot runs took {answer.pilot_flops:.2g}. "
        "(A run takes 6 S D + 2 T D; the teacher's own training is not counted.)",
    ]
    return "\n".join([*lines, *(f"Note: {note}." for note in answer.notes)])


def compute_text(answer: ComputeAnswer, law: LawRecord) -> str:
    """The answer at equal compute: a few sentences and a table."""
    size = about(answer.student_params_non_embedding)
    what = f"{'a student' if law.init == 'pruned' else f'a {law.init} student'} of {size} at {answer.flops:.3g} FLOPs"
    if answer.status == "abstains":
        lines = [f"No recommendation for {what}: {answer.reason}."]
    else:
        lines = [f"For {what}: {answer.ranked[0].teacher}."]
    if answer.teacher_params is not None:
        star = answer.teacher_params
        end = (
            "" if answer.place == "inside" else f", the {answer.place} teacher tried: only a bound"
        )
        lines.append(
            f"Best teacher size T* at this compute = {about(star.value)} ({law.confidence:.0%} interval: "
            f"{span(star)}{end})."
        )
    if answer.ranked:
        lines += [
            "",
            f"Teachers, best first; {METRICS[law.metric].short} above the best",
            f"  {'teacher':<14}{'size':>7} {'tokens':>9}  above the best",
        ]
    for row in answer.ranked:
        far = row.tokens_extrapolation
        lines.append(
            f"  {row.teacher:<14}{about(row.teacher_params_non_embedding):>7} {about(row.tokens):>9}  "
            f"{_above(row.predicted_regret)}"
            + (f"  (tokens {far:.3g} times beyond the runs)" if far > 1.005 else "")
        )
    shared = (
        "the teacher runs online"
        if answer.shared_by == 1
        else f"{answer.shared_by} runs share its pass"
    )
    lines += [
        "",
        f"A token costs three forward passes of the student and one of the teacher; {shared}.",
    ]
    return "\n".join(lines)


def _rule(rule: RuleRegret, answered: bool) -> str:
    regret = rule.expected_regret_nats
    cost = "unknown" if regret is None else f"{regret:.4f}"
    if rule.teacher is None and regret is None and answered:
        cost += " (the table has no runs without a teacher)"
    return f"  {rule.rule:<14}{rule.teacher or '-':<14}{cost}"


def _nats(interval: Interval | None) -> str:
    if interval is None:
        return "unknown"
    if interval.low is None or interval.high is None:
        return f"{interval.value:.3f} [no interval]"
    return f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def _above(interval: Interval | None) -> str:
    """A regret; that of the best teacher is 0 by definition and has no interval."""
    if interval is not None and interval.value == interval.low == interval.high == 0:
        return "the lowest"
    return _nats(interval)


def _measured(row: RankedTeacher) -> str:
    if row.measured_loss is None:
        return f"{'not measured':<38}"
    above = "the lowest" if row.measured_regret == 0 else f"{row.measured_regret:.3f}"
    return f"{_nats(row.measured_loss):<22}{above:<16}"


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
        # saved results can be pulled, and the error says how
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
        f"{missing}, so the published study answers, whose models are small; `make` or "
        "`capgap run` measures yours"
    )
    return str(folder / "law.json"), str(folder / "runs.csv"), note


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    parser = StageParser("capgap.commands.recommend", __doc__)
    parser.add_argument("--law", help="law record, JSON (default: the study's)")
    parser.add_argument("--runs", help="table the law was fitted on, CSV (default: the study's)")
    parser.add_argument("--study", help=f"study file whose law is used (default {DEFAULT})")
    parser.add_argument("--student", type=count_argument, help="student size without embeddings")
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
        "--fits",
        type=count_argument,
        metavar="TEACHER",
        help="print the student size that this teacher suits best",
    )
    parser.add_argument(
        "--init",
        choices=list(KINDS),
        help="what the student starts from: pruned from its teacher, given or random (default: what "
        "the law was mainly fitted on)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--out", type=out_file, help="also write the answer to this file, JSON")
    args, _ = parser.parse(argv)
    if args.student is None and args.fits is None:
        parser.error("--student or --fits is needed")
    law_path, runs_path, note = law_paths(args)
    if args.fits is not None:
        print(inverse(law_path, runs_path, args.fits, args.tokens, args.init))
    if args.student is None:
        return
    teachers = [name.strip() for name in args.teachers.split(",")] if args.teachers else None
    if args.flops is not None:
        if args.tokens is not None:
            parser.error("--flops and --tokens both set the budget; give one")
        if args.flops < 1 or args.shared_by < 1:
            parser.error("--flops and --shared-by must be at least 1")
        found = ask_compute(
            law_path, runs_path, args.student, args.flops, args.shared_by, teachers, args.init
        )
        if args.out:
            write_text(args.out, found.to_json())
        law = LawRecord.read(law_path).of_init(args.init)
        print(found.to_json().rstrip() if args.json else compute_text(found, law))
        if note and not args.json:
            print(f"Note: {note}.")
        return
    answer = ask(law_path, runs_path, args.student, args.tokens, teachers, args.init)
    if note:
        answer = answer.model_copy(update={"notes": [note, *answer.notes]})
    if args.out:
        write_text(args.out, answer.to_json())
    law = LawRecord.read(law_path).of_init(args.init)
    print(answer.to_json().rstrip() if args.json else text(answer, law))


if __name__ == "__main__":
    run_stage(main)
