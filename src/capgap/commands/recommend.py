"""
Recommend a teacher for a student size by a fitted law, or say that the data cannot.

IN   law.json   the fitted law       (both of a study where they are not named)
     runs.csv   the table it was fitted on
OUT  the answer as text, or as JSON with --json
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

from capgap.commands.verify import result_of
from capgap.config import Law
from capgap.config.counts import parse_count
from capgap.config.study_file import load_study
from capgap.errors import CapgapError
from capgap.law.law_record import Interval, LawRecord, Recommendation, RuleRegret
from capgap.law.leading_answer import by_leading
from capgap.law.means import cell_table, spent_flops
from capgap.law.predict import recommend, student_for
from capgap.law.regression import Fit, fit_law
from capgap.law.table import main_arm, read_runs, teacher_sizes
from capgap.law.words import about, budget, span
from capgap.records import paths
from capgap.records.artifacts import write_text
from capgap.stages.base import StageParser, count_argument, out_file, run_stage


def run(
    law_path: str | Path,
    runs_path: str | Path,
    student: int,
    tokens: int | None = None,
    teachers: list[str] | None = None,
) -> Recommendation:
    """Rank teachers for a student.

    student: parameters without embeddings. tokens: distillation budget, the largest of the table
    if None. teachers: names of the table or sizes like 7B, all of the table if None; those not
    larger than the student are left out. Raises CapgapError where a count is not positive, no
    teacher is larger than the student, a teacher is neither a name nor a size, or the law was not
    fitted on this table.
    """
    law, runs = read_both(law_path, runs_path)
    fit = refit(law, runs, f"{law_path} and {runs_path}")
    if tokens is None:
        tokens = max(optimum.tokens for optimum in law.optima)
    for name, value in (("student", student), ("tokens", tokens)):
        if value <= 0:
            raise CapgapError(f"--{name} is {value}, but must be greater than 0")
    offered = _offered(teachers, teacher_sizes(runs))
    larger = {name: size for name, size in offered.items() if size > student}
    if not larger:
        raise CapgapError(
            f"{runs_path if teachers is None else '--teachers'}: no teacher is larger than the "
            f"student, {student:,} parameters without embeddings; add a larger teacher or choose "
            "a smaller student"
        )
    cells = cell_table(runs, law.size)
    answer = recommend(fit, law, larger, student, tokens, spent_flops(cells), _published(law))
    return by_leading(answer, law, cells)


def inverse(law_path: str | Path, runs_path: str | Path, teacher: int, tokens: int | None) -> str:
    """Which student size a teacher fits best at a budget, by the joint law, as a sentence."""
    law, runs = read_both(law_path, runs_path)
    fit = refit(law, runs, f"{law_path} and {runs_path}")
    tokens = tokens or max(optimum.tokens for optimum in law.optima)
    if fit.joint is None:
        return f"No law could be fitted: {fit.why_not}."
    found = student_for(fit, teacher, tokens, law.confidence)
    if found is None:
        return f"By the law no student has its optimum at {about(teacher)} at {budget(tokens)}."
    return (
        f"At {budget(tokens)} a teacher of {about(teacher)} is the optimum of a student of "
        f"{about(found.value)} ({span(found)})."
    )


def read_both(law_path: str | Path, runs_path: str | Path) -> tuple[LawRecord, pd.DataFrame]:
    """A law and its table, read as it was when the law was fitted."""
    law = LawRecord.read(law_path)
    return law, read_runs(runs_path, law.metric, law.excluded)


def refit(law: LawRecord, runs: pd.DataFrame, where: str) -> Fit:
    """The fit behind a law record, whose draws the record does not keep.

    Raises CapgapError if the record belongs to another table.
    """
    settings = Law(
        confidence=law.confidence, tie_nats=law.tie_nats, size=law.size, noise_sd=law.noise_sd
    )
    fit = fit_law(runs, settings)
    found = [
        (place.student, round(place.tokens), place.status, set(place.runs.teacher_N.tolist()))
        for place in fit.located
    ]
    recorded = [
        (o.student, o.tokens, o.status, {cell.teacher for cell in o.cells}) for o in law.optima
    ]
    if found != recorded or len(main_arm(runs)) != law.n_runs:
        raise CapgapError(f"{where} do not belong together: fit the law again on this table")
    return fit


def _published(law: LawRecord) -> float:
    return law.lines[0].published_slope


def _offered(teachers: list[str] | None, known: dict[str, int]) -> dict[str, int]:
    if teachers is None:
        return known
    sizes = {}
    for name in teachers:
        try:
            sizes[name] = known.get(name) or int(parse_count(name))
        except ValueError:
            raise CapgapError(
                f"--teachers: '{name}' is neither a teacher of the table ({', '.join(known)}) nor "
                "a size like 7B"
            ) from None
    return sizes


def text(answer: Recommendation, law: LawRecord) -> str:
    """The answer for a reader who has not read the paper: a few sentences and two tables."""
    size, tokens = about(answer.student_params_non_embedding), budget(answer.tokens)
    level = f"{law.confidence:.0%}"
    if answer.status == "abstains":
        lines = [
            f"No recommendation for a student of {size} at {tokens}: {answer.reason}.",
            f"What there is: {answer.basis_note}.",
        ]
    else:
        first = answer.ranked[0]
        lines = [
            f"For a student of {size} at {tokens}: {first.teacher}.",
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
            lines.append(f"Extrapolation: the {name} lies {factor:.3g} times beyond the pilot.")
    if (
        max(answer.student_extrapolation, answer.tokens_extrapolation, answer.teacher_extrapolation)
        <= 1.005
    ):
        lines.append("No extrapolation: student, tokens and ratio lie inside the pilot.")
    lines += [
        "",
        f"Teachers, best first; losses in nats per token with {level} intervals",
        f"  {'teacher':<14}{'size':>7}{'T/S':>7}  {'predicted loss':<22}{'above the best':<22}"
        f"{'FLOPs':>8}",
    ]
    for row in answer.ranked:
        mark = "*" if row.within_tie else ""
        lines.append(
            f"  {row.teacher + mark:<14}{about(row.teacher_params_non_embedding):>7}"
            f"{row.ratio:>7.3g}  {_nats(row.predicted_loss):<22}{_nats(row.predicted_regret):<22}"
            f"{row.train_flops:>8.2g}"
        )
    if answer.within_tie:
        lines.append(
            f"  * predicted within {law.tie_nats:g} nats of the best, which counts as equally good"
        )
    lines += [
        "",
        "Rules of thumb instead: loss expected above the best teacher (regret), nats per token",
        *(_rule(rule) for rule in answer.rules),
        "",
        f"Compute: {answer.ranked[0].train_flops:.2g} FLOPs for the first, "
        f"{answer.exhaustive_flops:.2g} for all on offer: "
        f"{answer.saved_flops / answer.exhaustive_flops:.0%} saved. The runs of the pilot took "
        f"{answer.pilot_flops:.2g} already. (6 S D + 2 T D a run; the teacher's own training is "
        "free.)",
    ]
    return "\n".join([*lines, *(f"Note: {note}." for note in answer.notes)])


def _rule(rule: RuleRegret) -> str:
    regret = rule.expected_regret_nats
    cost = "unknown" if regret is None else f"{regret:.4f}"
    if rule.teacher is None and regret is None:
        cost += " (the table has no runs without a teacher)"
    return f"  {rule.rule:<14}{rule.teacher or '-':<14}{cost}"


def _nats(interval: Interval | None) -> str:
    if interval is None:
        return "unknown"
    if interval.low is None or interval.high is None:
        return f"{interval.value:.3f} [no interval]"
    return f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def _paths(args: argparse.Namespace) -> tuple[str, str]:
    """Law and table as given, or those of the study in this folder."""
    if (args.law is None) != (args.runs is None):
        raise CapgapError("--law and --runs belong together: give both, or neither for a study's")
    if args.law is not None:
        return args.law, args.runs
    if not Path(args.study).is_file():
        raise CapgapError(
            f"{args.study}: no such study file; name a law and its table with --law and --runs"
        )
    study = load_study(args.study).study
    return result_of(study, paths.LAW), result_of(study, paths.RUNS_TABLE)


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    parser = StageParser("capgap.commands.recommend", __doc__)
    parser.add_argument("--law", help="law record, JSON (default: the study's)")
    parser.add_argument("--runs", help="table the law was fitted on, CSV (default: the study's)")
    parser.add_argument("--study", default="config.yaml", help="study file whose law is asked")
    parser.add_argument("--student", type=count_argument, help="student size without embeddings")
    parser.add_argument(
        "--teachers", help="names of the table or sizes, separated by commas (default: the table's)"
    )
    parser.add_argument(
        "--tokens", type=count_argument, help="distillation tokens (default: largest of the table)"
    )
    parser.add_argument(
        "--fits", type=count_argument, metavar="TEACHER", help="print the student a teacher fits"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--out", type=out_file, help="also write the answer to this file, JSON")
    args, _ = parser.parse(argv)
    if args.student is None and args.fits is None:
        parser.error("--student or --fits is needed")
    law_path, runs_path = _paths(args)
    if args.fits is not None:
        print(inverse(law_path, runs_path, args.fits, args.tokens))
    if args.student is None:
        return
    teachers = [name.strip() for name in args.teachers.split(",")] if args.teachers else None
    answer = run(law_path, runs_path, args.student, args.tokens, teachers)
    if args.out:
        write_text(args.out, answer.to_json())
    print(answer.to_json().rstrip() if args.json else text(answer, LawRecord.read(law_path)))


if __name__ == "__main__":
    run_stage(main)
