"""Means over runs that differ only in the order of their data, with the compute they took."""

from __future__ import annotations

import pandas as pd

from capgap.config.shapes import simple_training_flops
from capgap.law.table.grouped_runs import SIZES

SAME_LOG_SIZE = 0.01  # students whose log sizes differ by less are one student size
DRAW = ["student", "init", "teacher", "tokens", "arm", "teacher_seed", "init_seed"]
SOURCE = {
    "loss": "val_loss_nats_per_token",
    "teacher_loss": "teacher_val_loss_nats_per_token",
    "init_loss": "start_val_loss_nats_per_token",
}


def cell_table(runs: pd.DataFrame, size: str = "non_embedding") -> pd.DataFrame:
    """Mean over seeds of every student, init, teacher, budget and draw of the latter two.

    size: what student_params and teacher_params count, a key of `grouped_runs.SIZES`.
    Columns: those of DRAW, student_params, teacher_params, loss, flops (of one run), n (runs),
    own_share (of the tokens not taken over from the stable phase of a smaller budget), and
    teacher_loss, init_loss and teacher_family if the table has them. Rows of means count as their n runs.
    """
    sizes = dict(zip(("student_params", "teacher_params"), SIZES[size], strict=True))
    have = sizes | {new: old for new, old in SOURCE.items() if old in runs}
    runs = runs.assign(**{name: 0 for name in ("teacher_seed", "init_seed") if name not in runs})
    runs["own_share"] = 1 - _taken_over(runs) / runs["tokens"]
    weight = runs["n"].fillna(1) if "n" in runs else pd.Series(1.0, runs.index)
    totals = runs[DRAW].assign(n=weight)
    student, teacher = (runs[name].astype(float) for name in SIZES["non_embedding"])
    by_rule = simple_training_flops(student, teacher.fillna(0), runs["tokens"])
    runs["flops"] = runs["train_flops"].fillna(by_rule) if "train_flops" in runs else by_rule
    have |= {"flops": "flops", "own_share": "own_share"}
    for new, old in have.items():
        totals[new] = runs[old].astype(float) * weight
    cells = totals.groupby(DRAW, sort=True).sum(min_count=1).reset_index()
    for new in have:
        cells[new] /= cells["n"]
    if "teacher_family" in runs:
        family = runs.groupby("teacher")["teacher_family"].first()
        cells["teacher_family"] = cells["teacher"].map(family)
    return cells.astype({"teacher_params": float, "n": int})


def averaged(runs: pd.DataFrame) -> pd.DataFrame:
    """A table of runs as a table of means: one row for runs that differ in their seed alone.

    `n` is the number of runs behind a row and `sd` their standard deviation, NaN for one run.
    """
    loss = SOURCE["loss"]
    runs = runs.assign(**{name: 0 for name in DRAW if name not in runs})
    if "n" in runs and (runs["n"] > 1).any():
        return runs  # is a table of means already
    means = runs.groupby(DRAW, as_index=False, sort=True).first()
    spread = runs.groupby(DRAW, sort=True)[loss].agg(["mean", "size", "std"])
    return means.assign(
        seed=0,
        n=spread["size"].to_numpy(),
        sd=spread["std"].to_numpy(),
        **{loss: spread["mean"].to_numpy()},
    )


def _taken_over(runs: pd.DataFrame) -> pd.Series:
    """Tokens of every run that were trained by the same run at the next smaller budget."""
    if "trunk_tokens" not in runs:
        return pd.Series(0.0, runs.index)
    chain = ["student", "init", "teacher", "seed", "teacher_seed", "init_seed"]
    chains = runs.sort_values("tokens").groupby(chain)
    return chains["trunk_tokens"].shift().fillna(0.0)


def spent_flops(cells: pd.DataFrame) -> float:
    """Training compute of all runs of some cells, shared stable phases counted once."""
    return float((cells["flops"] * cells["n"] * cells["own_share"]).sum())
