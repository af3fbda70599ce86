"""
The design of a study: which runs it consists of, derived from the settings alone.

A run is one trained student: (student size, init, teacher, tokens, seed). The main arm distils a
pruned teacher's student from that same teacher. The control arms change one thing each:

  no_teacher     the same pruned start, trained on the data alone
  random_init    a random start of the same size, distilled by each teacher, and without one
  cross_teacher  the start pruned from A, distilled by B, for every pair A, B
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from capgap.config import Final, Grid, Study
from capgap.config.counts import format_count, parse_count

NONE = "none"  # the teacher of the arm without a teacher
RANDOM = "random"  # the init of the arm with a random start


class Run(NamedTuple):
    """Identity of one trained student; the strings are the levels of its path."""

    student: str
    init: str
    teacher: str
    tokens: str
    seed: int


def pruned_from(teacher: str) -> str:
    """Name of the init that pruning a teacher gives."""
    return f"pruned-{teacher}"


def arm_of(init: str, teacher: str) -> str:
    """The arm a run belongs to, from its init and its teacher: 'main' or a control arm's name."""
    if init == RANDOM:
        return "random_init"
    if teacher == NONE:
        return "no_teacher"
    return "main" if init == pruned_from(teacher) else "cross_teacher"


def teacher_sizes(study: Study) -> dict[str, int]:
    """Parameters without embeddings of every teacher of a study."""
    return {name: study.teacher_size(name) for name in study.teachers}


def teachers_for(student: int, sizes: dict[str, int]) -> list[str]:
    """Teachers larger than a student, smallest first; sizes by teacher."""
    return sorted((t for t in sizes if sizes[t] > student), key=lambda t: (sizes[t], t))


def grid_runs(grid: Grid, sizes: dict[str, int]) -> list[Run]:
    """Every run of a grid with its control arms, in a fixed order; sizes by teacher."""
    runs = []
    for size in grid.students:
        teachers = teachers_for(size, sizes)
        pairs = [(pruned_from(t), t, grid.seeds) for t in teachers]
        arm_seeds = grid.arm_seeds or grid.seeds
        if "no_teacher" in grid.arms:
            pairs += [(pruned_from(t), NONE, arm_seeds) for t in teachers]
        if "random_init" in grid.arms:
            pairs += [(RANDOM, t, arm_seeds) for t in [*teachers, NONE]]
        if "cross_teacher" in grid.arms:
            pairs += [(pruned_from(a), b, arm_seeds) for a in teachers for b in teachers if a != b]
        runs += [
            Run(format_count(size), init, teacher, format_count(tokens), seed)
            for init, teacher, seeds in pairs
            for tokens in grid.tokens
            for seed in seeds
        ]
    return runs


def budgets_of(runs: Iterable[Run]) -> dict[Run, list[int]]:
    """Token budgets of runs that differ in nothing else, by the run without its budget."""
    budgets: dict[Run, list[int]] = {}
    for run in runs:
        budgets.setdefault(run._replace(tokens=""), []).append(parse_count(run.tokens))
    return budgets


def next_smaller(run: Run, budgets: dict[Run, list[int]]) -> Run | None:
    """The same run at the largest of its smaller budgets, see `budgets_of`; None without one."""
    tokens = parse_count(run.tokens)
    smaller = [other for other in budgets.get(run._replace(tokens=""), []) if other < tokens]
    return run._replace(tokens=format_count(max(smaller))) if smaller else None


def final_runs(final: Final, teachers: list[str]) -> list[Run]:
    """The runs of the final student from the given teachers."""
    return [
        Run(format_count(final.student), pruned_from(t), t, format_count(final.tokens), seed)
        for t in teachers
        for seed in final.seeds
    ]
