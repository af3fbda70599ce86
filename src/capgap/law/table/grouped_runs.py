"""
The runs of the main arm as arrays: losses, log sizes, groups, and which runs share a draw.

A *group* is one student at one token budget: its runs share a level of loss and differ in their
teachers. Teachers of one size are separate draws of that size and are never averaged.

Shapes: N runs, G groups, H students.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from capgap.config.run_grid import init_kind
from capgap.errors import CapgapError

SIZES = {  # of the setting law.size: columns that count students and teachers
    "non_embedding": ("student_params_non_embedding", "teacher_params_non_embedding"),
    "total": ("student_params_total", "teacher_params_total"),
    "forward_flops": ("student_forward_flops_per_token", "teacher_forward_flops_per_token"),
}


@dataclass(frozen=True)
class GroupedRuns:
    """Runs sorted by budget, student size, teacher size, teacher and seed."""

    loss_N: np.ndarray  # nats per token
    student_N: np.ndarray  # names
    teacher_N: np.ndarray
    init_N: np.ndarray
    seed_N: np.ndarray
    teacher_draw_N: np.ndarray  # name of the teacher with the number of its draw
    init_draw_N: np.ndarray  # name of the init with the numbers of its draws
    size_N: np.ndarray  # of the student, mean over its runs
    teacher_size_N: np.ndarray
    tokens_N: np.ndarray
    averaged_N: np.ndarray  # runs behind each row; 1 unless the table holds means
    stated_sd_N: np.ndarray  # between the runs behind a row, nats; NaN if not stated

    @cached_property
    def group_N(self) -> np.ndarray:
        """Index of the group of every run."""
        return self.index("tokens_N", "size_N", "student_N")

    def index(self, *names: str) -> np.ndarray:
        """Index 0, 1, ... over the distinct combinations of some fields, in order of appearance."""
        keys = list(zip(*(getattr(self, name).tolist() for name in names), strict=True))
        number = {key: i for i, key in enumerate(dict.fromkeys(keys))}
        return np.array([number[key] for key in keys])

    @cached_property
    def first_G(self) -> np.ndarray:
        """First run of every group."""
        return np.unique(self.group_N, return_index=True)[1]

    @property
    def most_sizes(self) -> int:
        """Teacher sizes of the group that has most; its curve has a minimum only with three."""
        return max(
            len(set(self.teacher_size_N[self.group_N == g])) for g in range(len(self.first_G))
        )

    @cached_property
    def log_ratio_N(self) -> np.ndarray:
        """log(T / S)."""
        return np.log(self.teacher_size_N / self.size_N)

    def select(self, keep_N: np.ndarray) -> GroupedRuns:
        """Some of the runs."""
        return GroupedRuns(*(getattr(self, name)[keep_N] for name in self.__dataclass_fields__))

    def name(self, run: int) -> str:
        """A run in words."""
        return (
            f"student {self.student_N[run]}, init {self.init_N[run]}, teacher "
            f"{self.teacher_N[run]}, {self.tokens_N[run]:.0f} tokens, seed {self.seed_N[run]}"
        )


def group_runs(main: pd.DataFrame, size: str = "non_embedding") -> GroupedRuns:
    """Arrays of the main arm's runs, whose columns are as `read_runs` returns them.

    size: what counts the size of a model, a key of SIZES. Raises CapgapError if its columns are not
    in the table.
    """
    student_size, teacher_size = SIZES[size]
    missing = [name for name in (student_size, teacher_size) if name not in main]
    if missing:
        raise CapgapError(
            f"law.size is {size}, but the table has no column {' and no column '.join(missing)}; "
            "add it, or set law.size to non_embedding"
        )

    def column(name: str, default) -> pd.Series:
        return main[name].fillna(default) if name in main else pd.Series(default, main.index)

    frame = pd.DataFrame(
        {
            "loss_N": main["val_loss_nats_per_token"].astype(float),
            "student_N": main["student"].astype(str),
            "teacher_N": main["teacher"].astype(str),
            "init_N": main["init"].astype(str),
            "seed_N": main["seed"],
            "size_N": main.groupby("student")[student_size].transform("mean").astype(float),
            "teacher_size_N": main[teacher_size].astype(float),
            "tokens_N": main["tokens"].astype(float),
            "averaged_N": column("n", 1).astype(float),
            "stated_sd_N": column("sd", np.nan).astype(float),
        }
    )
    teacher_seed, init_seed = (
        column(n, 0).astype(int).astype(str) for n in ("teacher_seed", "init_seed")
    )
    frame["teacher_draw_N"] = frame["teacher_N"] + "/" + teacher_seed
    # a given or random init is the same one for all teachers
    shared = frame["init_N"].map(init_kind).isin(["given", "random"])
    frame["init_draw_N"] = frame["init_N"] + "/" + teacher_seed.mask(shared, "") + "/" + init_seed
    order = [
        "tokens_N",
        "size_N",
        "student_N",
        "teacher_size_N",
        "teacher_draw_N",
        "init_draw_N",
        "seed_N",
    ]
    frame = frame.sort_values(order, kind="stable")
    return GroupedRuns(
        **{name: frame[name].to_numpy() for name in GroupedRuns.__dataclass_fields__}
    )
