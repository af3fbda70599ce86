"""
Choose the teacher of the final student by the law.

IN   law.json     the fitted law
     runs.csv     the table it was fitted on: teachers with their sizes, and runs to resample
OUT  choice.json  the chosen teacher, its neighbour and the largest one, with the reason
"""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd

from capgap.artifacts import write_text
from capgap.config import Law
from capgap.errors import CapgapError
from capgap.law.study import Fit, fit_law
from capgap.law.table import main_arm, read_runs, teacher_sizes
from capgap.law.words import about, budget, span
from capgap.records import Choice, Interval, LawRecord, Line, Optimum
from capgap.stage import StageParser, count_argument, run_stage


def run(law_path: str | Path, runs_path: str | Path, student: int, tokens: int) -> Choice:
    """Choose among the table's teachers larger than the student.

    student: parameters without embeddings. tokens: distillation budget of the final run.
    Raises CapgapError where either is not positive, where no teacher is larger than the student
    and where the law was not fitted on this table.
    """
    for name, value in (("student", student), ("tokens", tokens)):
        if value <= 0:
            raise CapgapError(f"--{name} is {value}, but must be greater than 0")
    law, runs = LawRecord.read(law_path), read_runs(runs_path)
    fit = _refit(law, runs, f"{law_path} and {runs_path}")
    sizes = {name: n for name, n in teacher_sizes(runs).items() if n > student}
    if not sizes:
        raise CapgapError(
            f"{runs_path}: no teacher is larger than the student, {student:,} parameters "
            "without embeddings; add a larger teacher or choose a smaller student"
        )
    line = nearest_budget(law.lines, tokens)
    star = None
    if line.status == "fitted":
        star = fit.lines[line.tokens].predict(student)
        target, note = star.value, _line_note(line, star, law, student, tokens)
    else:
        optima = [o for o in law.optima if o.tokens == line.tokens]
        target, note = _nearest_student(line, optima, student, tokens)
    chosen, neighbour = pick(sizes, target)
    largest = max(sizes, key=lambda name: (sizes[name], name))
    return Choice(
        student_params_non_embedding=student,
        tokens=tokens,
        law_tokens=line.tokens,
        basis="line" if line.status == "fitted" else "nearest_student",
        basis_note=note + _range_note(sizes, target, chosen),
        teacher_params_star=star,
        chosen=chosen,
        neighbour=neighbour,
        largest=largest,
    )


def nearest_budget(lines: list[Line], tokens: int) -> Line:
    """The line whose token budget is nearest in log; the larger one of two equally near."""
    return min(lines, key=lambda line: (abs(math.log(line.tokens / tokens)), -line.tokens))


def pick(sizes: dict[str, int], target: float) -> tuple[str, str | None]:
    """The teacher nearest to a size in log, and its neighbour.

    sizes: parameters by teacher. target: parameters; at or below 0 every teacher is too large, and
    the smallest is the nearest. The neighbour is the nearest teacher on the other side of the
    target or, where there is none, the next nearest; None if there is only one teacher.
    """
    log_target = math.log(target) if target > 0 else -math.inf
    names = sorted(sizes, key=lambda name: (sizes[name], name))

    def distance(name: str) -> float:
        finite = log_target if target > 0 else 0.0  # all sizes exceed 1: the order is by size
        return abs(math.log(sizes[name]) - finite)

    chosen = min(names, key=distance)
    above = math.log(sizes[chosen]) > log_target
    rest = [name for name in names if name != chosen]
    across = [name for name in rest if (math.log(sizes[name]) > log_target) != above]
    return chosen, min(across or rest, key=distance, default=None)


def _refit(law: LawRecord, runs: pd.DataFrame, where: str) -> Fit:
    """The fit behind a law record, whose resamples the record does not keep."""
    settings = Law(
        confidence=law.confidence, resamples=law.resamples, tie_nats=law.tie_nats, seed=law.seed
    )
    fit = fit_law(runs, settings)
    found = [
        (place.cells.student, tokens, place.status, place.cells.teachers)
        for tokens, places in fit.located.items()
        for place in places
    ]
    recorded = [
        (o.student, o.tokens, o.status, tuple(cell.teacher for cell in o.cells)) for o in law.optima
    ]
    if found != recorded or len(main_arm(runs)) != law.n_runs:
        raise CapgapError(f"{where} do not belong together: fit the law again on this table")
    return fit


def _line_note(line: Line, star: Interval, law: LawRecord, student: int, tokens: int) -> str:
    students = [
        o.student_params_non_embedding
        for o in law.optima
        if o.tokens == line.tokens and o.status == "interior"
    ]
    note = (
        f"the line over {line.n_students} students at {budget(line.tokens)} puts the optimum for "
        f"{about(student)} at {about(star.value)} ({span(star)})"
    )
    if not min(students) <= student <= max(students):
        note += (
            f"; an extrapolation, the line rests on students of {about(min(students))} to "
            f"{about(max(students))}"
        )
    return note + _budget_note(line, tokens)


def _nearest_student(
    line: Line, optima: list[Optimum], student: int, tokens: int
) -> tuple[float, str]:
    """Target size by the ratio of the student nearest in log size, and why it had to be that."""
    near = min(
        optima,
        key=lambda o: (
            abs(math.log(o.student_params_non_embedding / student)),
            o.student_params_non_embedding,
        ),
    )
    if near.status == "interior":
        ratio, what = near.ratio.value, "its optimum"
    else:
        best = next(c for c in near.cells if c.teacher == near.best_teacher)
        ratio = best.teacher_params_non_embedding / near.student_params_non_embedding
        what = f"its best teacher, {near.best_teacher}, which bounds the optimum on one side only"
        if near.status == "not_identifiable":
            what = f"its best teacher, {near.best_teacher}, of too few to see an optimum"
    target = ratio * student
    note = (
        f"no law could be fitted at {budget(line.tokens)} ({line.reason}); the choice follows the "
        f"nearest student, {near.student}: {what} stands at {ratio:.3g} times its size, which "
        f"gives {about(target)} here"
    )
    return target, note + _budget_note(line, tokens)


def _budget_note(line: Line, tokens: int) -> str:
    if line.tokens == tokens:
        return ""
    return f"; the final run has {budget(tokens)}, and the optimum may move with them"


def _range_note(sizes: dict[str, int], target: float, chosen: str) -> str:
    """Say so where no available teacher is as small, or as large, as the target."""
    if min(sizes.values()) <= target <= max(sizes.values()):
        return ""
    side = "smaller" if target < min(sizes.values()) else "larger"
    return f"; that is {side} than every available teacher, {chosen} is the nearest"


def main(argv: list[str] | None = None) -> None:
    """Parse the command line, choose, write the record and print the reason."""
    parser = StageParser("capgap.choose", __doc__)
    parser.add_argument("--law", required=True, help="law record, JSON")
    parser.add_argument("--runs", required=True, help="table the law was fitted on, CSV")
    parser.add_argument(
        "--student", required=True, type=count_argument, help="student size without embeddings"
    )
    parser.add_argument(
        "--tokens", required=True, type=count_argument, help="tokens of the final distillation"
    )
    parser.add_argument("--out", required=True, help="choice to write, JSON")
    args, _ = parser.parse(argv)
    choice = run(args.law, args.runs, args.student, args.tokens)
    write_text(args.out, choice.to_json())
    print(f"{choice.chosen}: {choice.basis_note}.")


if __name__ == "__main__":
    run_stage(main)
