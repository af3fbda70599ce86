"""
Write the few numbers by which two revisions are compared into one flat file, for `dvc metrics diff`.

IN   law.json, and final.json if the study has a final student
OUT  metrics.json: {"law": {exponents, ratio, verdicts}, "lines": {budget: slope}, "final": {loss, regret}};
     numbers that could not be estimated are left out
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from capgap.law.answers.answer_records import FinalRecord
from capgap.law.law_record import Interval, LawRecord, Line
from capgap.law.number_text import about
from capgap.records.artifacts import write_text
from capgap.stages.base import StageParser, out_file, run_stage


def run(law: LawRecord, final: FinalRecord | None) -> dict[str, Any]:
    """The numbers, in nested dictionaries."""
    numbers = {
        "law": {
            **_ends("size_exponent", law.exponents.by_size),
            **_ends("tokens_exponent", law.exponents.by_tokens),
            **_ends(
                "size_exponent_at_fixed_tokens_per_param",
                law.exponents.by_size_at_fixed_tokens_per_param,
            ),
            **_ends("ratio_at_25_tokens_per_param", law.ratio_at_25_tokens_per_param),
            "verdict": law.overall.status,
            **{f"claim_{claim.name}": claim.answer for claim in law.overall.claims},
        },
        "lines": {_name(line): _ends("slope", line.slope) for line in law.lines if line.slope},
    }
    if final is not None:
        row = next(row for row in final.rows if row.teacher == final.choice.chosen)
        numbers["final"] = {
            "test_loss_nats_per_token": row.test_loss_nats_per_token,
            "test_bits_per_byte": row.test_bits_per_byte,
            "regret_nats": final.regret_nats,
            "teacher_params_non_embedding": row.teacher_params_non_embedding,
        }
    return numbers


def _ends(name: str, found: Interval | None) -> dict[str, float]:
    """A number and the finite ends of its interval."""
    if found is None:
        return {}
    ends = {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
    return {key: value for key, value in ends.items() if value is not None}


def _name(line: Line) -> str:
    if line.tokens is not None:
        return f"tokens-{about(line.tokens)}"
    return f"tokens-per-param-{line.tokens_per_param:.3g}"


def main(argv: list[str] | None = None) -> None:
    """Command line of the stage."""
    parser = StageParser("capgap.stages.metrics", __doc__)
    parser.add_argument("--law", required=True, type=Path, help="law.json")
    parser.add_argument("--final", nargs="?", type=Path, help="final.json, if there is one")
    parser.add_argument("--out", required=True, type=out_file, help="metrics.json to write")
    args, _ = parser.parse(argv)
    numbers = run(LawRecord.read(args.law), FinalRecord.read(args.final) if args.final else None)
    write_text(args.out, json.dumps(numbers, indent=1, sort_keys=True, allow_nan=False) + "\n")


if __name__ == "__main__":
    run_stage(main)
