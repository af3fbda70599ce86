"""
Choose the teacher of the final student by the law.

IN   law.json     the fitted law
     runs.csv     the table it was fitted on: teachers with their sizes, and runs to resample
OUT  choice.json  the chosen teacher, its neighbour and the largest one, with the reason
"""

from __future__ import annotations

import math
from pathlib import Path

from capgap.law.answers.answer_records import Choice
from capgap.law.answers.ask import open_law
from capgap.law.law_record import LawRecord
from capgap.law.table.init_kinds import KINDS
from capgap.records.artifacts import write_text
from capgap.stages.base import StageParser, count_argument, out_file, run_stage


def run(
    law_path: str | Path,
    runs_path: str | Path,
    student: int,
    tokens: int,
    init: str | None = None,
) -> Choice:
    """Choose among the table's teachers larger than the student, as `capgap recommend` does.

    If the recommendation abstains, its first teacher is still chosen, because a final run needs one, and
    the note states it. Arguments and errors as in `capgap.law.answers.ask`.
    """
    law = open_law(law_path, runs_path, init)
    answer = law.teachers_for(student, tokens)
    sizes = {row.teacher: row.teacher_params_non_embedding for row in answer.ranked}
    chosen = answer.ranked[0].teacher
    note = answer.basis_note + _range_note(sizes, answer.target_params, chosen)
    if answer.status == "abstains":
        note += f". This is a guess, because the runs do not settle it: {answer.reason}"
    return Choice(
        student_params_non_embedding=student,
        tokens=tokens,
        law_tokens=answer.law_tokens,
        basis=answer.basis,
        basis_note=note,
        teacher_params_star=answer.teacher_params_star,
        chosen=chosen,
        neighbour=neighbour_of(chosen, sizes, answer.target_params),
        largest=max(sizes, key=lambda name: (sizes[name], name)),
        recommendation=answer,
        **_noise(law.law),
    )


def _noise(law: LawRecord) -> dict[str, float | None]:
    """The law's noise components that enter the difference of two final students."""
    sd = {part.name: part.sd.value for part in law.noise}
    if "order" not in sd:
        return {}
    drawn = [sd[name] for name in ("trunk", "init", "teacher") if name in sd]
    return {
        "order_sd": sd["order"],
        "redraw_sd": math.hypot(*drawn) if drawn else None,
        "noise_df": law.noise_df,
    }


def neighbour_of(chosen: str, sizes: dict[str, int], target: float) -> str | None:
    """The nearest teacher (in log size) on the other side of a target, else the next nearest.

    sizes: parameters by teacher. target: parameters; at or below 0 every teacher is too large.
    None if there is only one teacher.
    """
    log_target = math.log(target) if target > 0 else -math.inf
    above = math.log(sizes[chosen]) > log_target

    def distance(name: str) -> float:
        return abs(math.log(sizes[name]) - (log_target if target > 0 else 0.0))

    rest = sorted((name for name in sizes if name != chosen), key=lambda n: (sizes[n], n))
    across = [name for name in rest if (math.log(sizes[name]) > log_target) != above]
    return min(across or rest, key=distance, default=None)


def _range_note(sizes: dict[str, int], target: float, chosen: str) -> str:
    """A note if the target lies outside the sizes of all available teachers."""
    if min(sizes.values()) <= target <= max(sizes.values()):
        return ""
    side = "smaller" if target < min(sizes.values()) else "larger"
    return f"; that is {side} than every available teacher, and {chosen} is the nearest"


def main(argv: list[str] | None = None) -> None:
    """Parse the command line, choose, write the record and print the reason."""
    parser = StageParser("capgap.stages.choose", __doc__)
    parser.add_argument("--law", required=True, help="law record, JSON")
    parser.add_argument("--runs", required=True, help="table the law was fitted on, CSV")
    parser.add_argument(
        "--student", required=True, type=count_argument, help="student size without embeddings"
    )
    parser.add_argument(
        "--tokens", required=True, type=count_argument, help="tokens of the final distillation"
    )
    parser.add_argument(
        "--init", choices=list(KINDS), help="kind of its init (default: that of the law's main arm)"
    )
    parser.add_argument("--out", required=True, type=out_file, help="choice to write, JSON")
    args, _ = parser.parse(argv)
    choice = run(args.law, args.runs, args.student, args.tokens, args.init)
    write_text(args.out, choice.to_json())
    print(f"{choice.chosen}: {choice.basis_note}.")


if __name__ == "__main__":
    run_stage(main)
