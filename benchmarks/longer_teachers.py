"""
What is a teacher worth that was trained on twice the tokens?

Reads a table of runs in which teachers named X and X-long have one size, and prints by student and budget how
much lower the loss is with X-long, nats per token: where the student is pruned from its own teacher, and where
both teach the same pruned or random init in the same order of the data (the controls `cross_teacher` and
`random_init`). Means, with the number of pairs.

    python benchmarks/longer_teachers.py studies/sotu-law/runs.csv
"""

from __future__ import annotations

import argparse

import pandas as pd

LOSS = "val_loss_nats_per_token"
LONG = "-long"
SAME = ["student", "student_params_non_embedding", "tokens", "init_seed", "seed"]


def pairs(runs: pd.DataFrame, same: list[str]) -> pd.DataFrame:
    """Runs with X-long beside those with X that agree in the columns `same`; `gain` in nats per token."""
    runs = runs.assign(size=runs["teacher"].str.removesuffix(LONG))
    longer = runs["teacher"].str.endswith(LONG)
    both = runs[~longer].merge(runs[longer], on=[*same, "size"], suffixes=("", "_long"))
    return both.assign(gain=both[LOSS] - both[f"{LOSS}_long"])


def main() -> None:
    """Print the three tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", help="runs.csv")
    runs = pd.read_csv(parser.parse_args().table)
    runs = runs[runs["teacher"] != "none"]
    main_arm = pairs(runs[runs["arm"] == "main"], SAME)
    one_init = pairs(runs[~runs["init"].str.endswith(LONG)], [*SAME, "init"])
    random = one_init["init"].str.startswith("random")
    for title, found in (
        ("own pruned init", main_arm),
        ("the same pruned init", one_init[~random]),
        ("the same random init", one_init[random]),
    ):
        groups = found.groupby(["student_params_non_embedding", "student", "tokens"])["gain"]
        print(f"{title}\n{groups.agg(['mean', 'size']).round(3).droplevel(0)}\n")


if __name__ == "__main__":
    main()
