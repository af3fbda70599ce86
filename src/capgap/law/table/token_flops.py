"""
FLOPs of a token of distillation: three forward passes of the student and one of the teacher.

Forward passes are those of the table, or else twice the parameters, which makes a run (6 S + 2 T) D
(Kaplan et al. 2020, arXiv 2001.08361).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from capgap.config.run_grid import NONE

SIDES = ("student", "teacher")


@dataclass(frozen=True)
class TokenFlops:
    """FLOPs of a token's forward pass by the size of a model, (log size, log FLOPs) of known ones."""

    known: dict[str, tuple[np.ndarray, np.ndarray]]  # by side; empty if the table has no FLOPs

    def forward(self, side: str, size: np.ndarray | float) -> np.ndarray:
        """FLOPs of models of some sizes; beyond those known in proportion to their size."""
        log = np.log(np.asarray(size, dtype=float))
        if side not in self.known:
            return 2 * np.exp(log)
        sizes, flops = self.known[side]
        at = np.clip(log, sizes[0], sizes[-1])
        return np.exp(np.interp(at, sizes, flops) + log - at)

    def per_token(self, student: float, teacher: np.ndarray | float, shared_by: float):
        """FLOPs of one token of a distillation."""
        return 3 * self.forward("student", student) + self.forward("teacher", teacher) / shared_by


def token_flops_of(runs: pd.DataFrame) -> TokenFlops:
    """FLOPs by the columns of a table (`read_runs`), if they are there for all its runs."""
    known, taught = {}, runs[runs["teacher"] != NONE]
    for side in SIDES:
        columns = [f"{side}_params_non_embedding", f"{side}_forward_flops_per_token"]
        if columns[1] in taught and taught[columns[1]].notna().all():
            means = taught[columns].astype(float).groupby(columns[0]).mean()
            known[side] = np.log(means.index.to_numpy(float)), np.log(means[columns[1]].to_numpy())
    return TokenFlops(known if len(known) == len(SIDES) else {})
