"""
Which parts of the default study matter least for its law?

Takes parts out of the published table of runs, fits the law to the rest, and prints the exponents with
their 95 % intervals beside the cost that the plan gives for the thinned study, as markdown. `capgap init`
leaves parts out in this order if the time is short (`capgap.cost.proposal.DESIGNS`).

    OMP_NUM_THREADS=1 python benchmarks/thinning.py
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from capgap.commands.init import price
from capgap.cost.proposal import DESIGNS, STUDENTS, TEACHERS, Design
from capgap.law.power_law.power_law import fit_power_law
from capgap.law.table.grouped_runs import group_runs

REPOSITORY = Path(__file__).parents[1]
TABLE = REPOSITORY / "studies/sotu-law/runs.csv"
CONFIDENCE = 0.95


def thinned(study: dict[str, Any], design: Design, students: Iterable[float]) -> dict[str, Any]:
    """The default study without what a design leaves out; students: as in STUDENTS."""
    names = dict(zip(TEACHERS, study["teachers"], strict=True))
    sizes = dict(zip(STUDENTS, study["grid"]["students"], strict=True))
    grid = study["grid"] | {
        "students": [sizes[ratio] for ratio in students],
        "tokens": [
            tokens
            for share, tokens in zip(Design().budgets, study["grid"]["tokens"], strict=True)
            if share in design.budgets
        ],
        "replicas": list(design.replicas),
    }
    grid["arm_seeds"] = grid["replicas"][:1]
    if not design.control:
        grid = {key: value for key, value in grid.items() if not key.startswith("arm")}
    teachers = {names[ratio]: study["teachers"][names[ratio]] for ratio in design.teachers}
    final = study["final"] | {"replicas": grid["replicas"][:1]}
    return study | {"teachers": teachers, "grid": grid, "final": final}


def row(name: str, runs: pd.DataFrame, study: dict[str, Any], whole_s: float) -> str:
    """One line of the table."""
    grid = study["grid"]
    kept = runs[
        runs.student.isin(grid["students"])
        & runs.tokens.isin([int(tokens.replace("k", "000")) for tokens in grid["tokens"]])
        & runs.teacher.isin(study["teachers"])
        & runs.seed.isin(grid["replicas"])
    ]
    law = fit_power_law(group_runs(kept.reset_index(drop=True)))
    size = float(np.exp(law.axes.centre[0]))
    ratio = law.log_ratio(size, 25 * size, CONFIDENCE)
    cells = [
        name,
        str(len(kept)),
        f"{price(study) / whole_s:.0%}",
        interval(law.exponent(1, 0, CONFIDENCE), lambda x: x),
        interval(law.exponent(0, 1, CONFIDENCE), lambda x: x),
        interval(ratio, np.exp),
    ]
    return f"| {' | '.join(cells)} |"


def interval(found, scale) -> str:
    """A value with its interval, or that there is none."""
    if found is None:
        return "none"
    ends = ["open" if end is None else f"{scale(end):.2f}" for end in (found.low, found.high)]
    return f"{scale(found.value):.2f} [{ends[0]}, {ends[1]}]"


def main() -> None:
    """Print the table."""
    study = yaml.safe_load((REPOSITORY / "config.yaml").read_text(encoding="utf-8"))
    runs = pd.read_csv(TABLE)
    runs = runs[(runs.arm == "main") & runs.student.isin(study["grid"]["students"])]
    whole_s = price(study)
    print("| design | runs | cost | exponent of S | exponent of D | T*/S at 25 |")
    print("|---|---|---|---|---|---|")
    for design in DESIGNS:
        for replicas in [design.replicas] if len(design.replicas) > 1 else [(1,), (2,)]:
            part = thinned(study, design._replace(replicas=replicas), STUDENTS)
            print(row(label(design, replicas), runs, part, whole_s), flush=True)
    others = {
        "one replica alone (1)": (Design(replicas=(1,)), STUDENTS),
        "one replica alone (2)": (Design(replicas=(2,)), STUDENTS),
        "no middle student": (Design(), (STUDENTS[0], STUDENTS[-1])),
        "no largest student": (Design(), STUDENTS[:2]),
        "no largest teacher": (Design(teachers=TEACHERS[:-1]), STUDENTS),
        "no teachers of 2.6 and 5.8": (Design(teachers=(1.45, 4.0, 9.0, 13.0)), STUDENTS),
    }
    for name, (design, students) in others.items():
        print(row(name, runs, thinned(study, design, students), whole_s), flush=True)


def label(design: Design, replicas: tuple[int, ...]) -> str:
    """A design of DESIGNS in words."""
    if not design.missing:
        return "all"
    words = [f"{len(design.budgets)} budgets", f"{len(design.teachers)} teachers"]
    words += [] if design.control else ["no control"]
    return ", ".join([*words, *([f"replica {replicas[0]}"] if len(replicas) == 1 else [])])


if __name__ == "__main__":
    main()
