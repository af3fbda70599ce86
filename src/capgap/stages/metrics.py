"""
Put the few numbers that two revisions are compared by into one flat file, for `dvc metrics diff`.

IN   law.json, final.json (where there is one)
OUT  metrics.json: {"law": {budget: {slope, its interval, R²}}, "final": {loss, regret}}; a number
     that could not be found is left out
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from capgap.config.counts import format_count
from capgap.law.law_record import FinalRecord, LawRecord, Line
from capgap.records.artifacts import write_text
from capgap.stages.base import StageParser, out_file, run_stage


def run(law: LawRecord, final: FinalRecord | None) -> dict[str, Any]:
    """The numbers, in nested dictionaries; without a final student those of the law alone."""
    lines = {"law": {f"tokens-{format_count(line.tokens)}": _line(line) for line in law.lines}}
    if final is None:
        return lines
    row = next(row for row in final.rows if row.teacher == final.choice.chosen)
    return lines | {
        "final": {
            "test_loss_nats_per_token": row.test_loss_nats_per_token,
            "test_bits_per_byte": row.test_bits_per_byte,
            "regret_nats": final.regret_nats,
            "teacher_params_non_embedding": row.teacher_params_non_embedding,
        },
    }


def _line(line: Line) -> dict[str, float]:
    """Numbers of one fitted line, without those that are not known."""
    numbers = {"optima_used": line.n_students, "r_squared": line.r_squared}
    if line.slope:
        numbers |= {
            "slope": line.slope.value,
            "slope_low": line.slope.low,
            "slope_high": line.slope.high,
        }
    return {name: number for name, number in numbers.items() if number is not None}


def main(argv: list[str] | None = None) -> None:
    """Command line of the stage."""
    parser = StageParser("capgap.stages.metrics", __doc__)
    parser.add_argument("--law", required=True, type=Path, help="law.json")
    parser.add_argument("--final", nargs="?", type=Path, help="final.json, if there is one")
    parser.add_argument("--out", required=True, type=out_file, help="metrics.json to write")
    args, _ = parser.parse(argv)
    final = FinalRecord.read(args.final) if args.final else None
    numbers = run(LawRecord.read(args.law), final)
    write_text(args.out, json.dumps(numbers, indent=1, sort_keys=True, allow_nan=False) + "\n")


if __name__ == "__main__":
    run_stage(main)
