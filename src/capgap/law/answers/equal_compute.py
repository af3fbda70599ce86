"""
The best teacher at equal compute instead of equal tokens (docs/method.md, Equal compute).

A larger teacher costs more for every token, so at C FLOPs its student sees fewer:

    loss(S, T, D) with D = C / (3 f_S + f_T / n),   loss = level(S, D) + F(log T; S, D)

f are FLOPs of a token's forward pass, those of the table (log-log interpolated in size) or else twice
the parameters, which makes it C = (6 S + 2 T) D (Kaplan et al. 2020, arXiv 2001.08361). n runs share one
pass of the teacher. The level is a plane in log S and log D through the groups' lowest losses, with a
square of log D if every student has three budgets. Intervals: teacher_jackknife.py.

Shapes: G groups, K teachers, I sizes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from capgap.config import Law
from capgap.law.answers.answer_records import ComputeAnswer, ComputeTeacher
from capgap.law.law_record import EqualCompute, Interval
from capgap.law.power_law.power_law import PowerLaw
from capgap.law.power_law.teacher_jackknife import (
    LEAST_DRAWS,
    Refitted,
    Spread,
    draws_of,
    whole,
    without,
)
from capgap.law.table.token_flops import TokenFlops, token_flops_of

LAST = 0.5  # steps of the grid
GRID = 400  # teacher sizes at which the loss is looked at
REACH = 2.0  # times beyond the budgets tried to which tokens are followed
SQUARE = 3  # budgets of every student for a square of log D


def _level_of(law: Refitted, use: np.ndarray) -> Callable[[float, np.ndarray], np.ndarray]:
    """Lowest loss over all teachers by student size and tokens, nats: a plane, perhaps with a square.

    use: of log S, log D and its square.
    """
    centre = law.law.axes.centre

    def columns(size: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        s, d = np.log(size) - centre[0], np.log(tokens) - centre[1]
        return np.column_stack([np.ones_like(s), np.stack([s, d, d**2], axis=1)[:, use]])

    size_G, tokens_G, floor_G = law.floor_G()
    coefficient = np.linalg.lstsq(columns(size_G, tokens_G), floor_G, rcond=1e-8)[0]
    return lambda size, tokens: columns(np.full_like(tokens, size), tokens) @ coefficient


def _terms(law: PowerLaw) -> np.ndarray | str:
    """Which of log S, log D and its square the groups determine; or why no level can be had."""
    first = law.runs.first_G
    log_G = np.log(np.column_stack([law.runs.size_N[first], law.runs.tokens_N[first]]))
    spread = np.ptp(log_G, axis=0) > 0.01
    if not spread[1]:
        return "the runs have one token budget, so what fewer tokens cost is not known"
    if spread[0] and abs(np.corrcoef(log_G.T)[0, 1]) > 0.999:
        return "tokens and student sizes vary together, so what fewer tokens cost is not known"
    budgets = [
        len(np.unique(law.runs.tokens_N[law.runs.size_N == size]))
        for size in np.unique(law.runs.size_N)
    ]
    return np.array([spread[0], True, min(budgets) >= SQUARE])


@dataclass(frozen=True)
class _Question:
    """A student, its compute, and the teachers that there are."""

    size: float
    flops: float
    shared_by: float
    token_flops: TokenFlops
    use: np.ndarray
    log_I: np.ndarray  # teacher sizes to look at

    def tokens(self, teacher: np.ndarray) -> np.ndarray:
        """Tokens that the compute pays for."""
        return self.flops / self.token_flops.per_token(self.size, teacher, self.shared_by)

    def losses(self, law: Refitted, log_teacher: np.ndarray) -> np.ndarray:
        """Losses of students of some teachers, nats."""
        tokens = self.tokens(np.exp(log_teacher))
        level = _level_of(law, self.use)(self.size, tokens)
        return level + law.excess(log_teacher, self.size, tokens)

    def log_star(self, law: Refitted) -> float:
        """log T* at this compute, within the teachers."""
        return float(self.log_I[int(np.argmin(self.losses(law, self.log_I)))])


def _asked(
    law: PowerLaw, runs: pd.DataFrame, size: float, flops: float, shared_by: float
) -> _Question | str:
    use = _terms(law)
    if isinstance(use, str):
        return use
    sizes = law.runs.teacher_size_N
    low = max(float(sizes.min()), size * 1.01)
    if not low < sizes.max():
        return "no teacher of the runs is larger than the student"
    grid = np.linspace(math.log(low), math.log(float(sizes.max())), GRID)
    question = _Question(size, flops, shared_by, token_flops_of(runs), use, grid)
    if not law.axes.determines(law.weights(size, float(question.tokens(np.exp(grid[0]))))):
        return (
            "the runs do not determine how T* moves with tokens, and at equal compute these differ"
        )
    return question


def _refits(law: PowerLaw) -> list[Refitted]:
    found = filter(None, (without(law, draw) for draw in draws_of(law)))
    return [one for one in found if len(one.runs.first_G) == len(law.runs.first_G)]


def equal_compute(law: PowerLaw | None, runs: pd.DataFrame, settings: Law) -> list[EqualCompute]:
    """T* at the compute of every student's run with its best teacher at equal tokens.

    Online, and with cached targets that all students of the table share. Empty if the runs do not
    determine it. runs: of the table, as `read_runs`.
    """
    if law is None:
        return []
    sharing, found = len(set(law.runs.student_N)), []
    left = _refits(law)
    if len(left) < LEAST_DRAWS:
        return []
    for one in law.runs.first_G:
        size, tokens = float(law.runs.size_N[one]), float(law.runs.tokens_N[one])
        for shared_by in dict.fromkeys((1, sharing)):
            question = _asked(law, runs, size, 1.0, shared_by)
            if isinstance(question, str):
                return []
            found.append(
                _row(law, left, question, str(law.runs.student_N[one]), tokens, settings.confidence)
            )
    return found


def _row(
    law: PowerLaw,
    left: list[Refitted],
    question: _Question,
    student: str,
    tokens: float,
    confidence: float,
) -> EqualCompute:
    log_I = question.log_I

    def at_tokens(one: Refitted) -> float:
        """log T* at equal tokens."""
        return float(np.clip(one.log_star(question.size, tokens), log_I[0], log_I[-1]))

    best = math.exp(at_tokens(whole(law)))
    price = question.token_flops.per_token(question.size, best, question.shared_by)
    # the compute is the same in every refit: it is what was asked
    here = replace(question, flops=float(price * tokens))
    at, *others = (np.array([at_tokens(one), here.log_star(one)]) for one in (whole(law), *left))
    spread = Spread(at, np.array(others), confidence)
    star = spread.interval(lambda v: v[1], math.exp)
    return EqualCompute(
        student=student,
        student_params_non_embedding=question.size,
        tokens=round(tokens),
        shared_by=int(question.shared_by),
        flops=here.flops,
        teacher_params=_open(star, log_I),
        place=_place(at[1], log_I),
        tokens_there=float(here.tokens(np.exp(at[1]))),
        ratio=spread.interval(lambda v: v[1] - v[0], math.exp),
        at_equal_tokens=math.exp(at[0]),
    )


def _open(star: Interval, log_I: np.ndarray) -> Interval:
    """T* with None for a limit at an end of the ladder, where it is only bounded."""
    assert None not in (star.low, star.high)
    step = LAST * (log_I[1] - log_I[0])
    low = star.low if math.log(star.low) > log_I[0] + step else None
    high = star.high if math.log(star.high) < log_I[-1] - step else None
    return Interval(value=star.value, low=low, high=high)


def _place(log_star: float, log_I: np.ndarray) -> str:
    if log_star <= log_I[0]:
        return "smallest"
    return "largest" if log_star >= log_I[-1] else "inside"


def at_compute(
    law: PowerLaw | None,
    why_not: str,
    runs: pd.DataFrame,
    teachers: dict[str, int],
    student: int,
    flops: float,
    shared_by: int,
    confidence: float,
) -> ComputeAnswer:
    """Rank teachers (parameters by name) for a student (parameters) at a number of FLOPs.

    runs: the table of the law. why_not: why there is no law, if so.
    """
    common = {"student_params_non_embedding": student, "flops": flops, "shared_by": shared_by}
    question = why_not if law is None else _asked(law, runs, float(student), flops, shared_by)
    left = [] if law is None else _refits(law)
    if not isinstance(question, str) and len(left) < LEAST_DRAWS:
        question = f"intervals need {LEAST_DRAWS} teachers, there are {len(left)}"
    if law is None or isinstance(question, str):
        return ComputeAnswer(status="abstains", reason=str(question), **common)
    names = sorted(
        (name for name in teachers if teachers[name] > student), key=lambda n: (teachers[n], n)
    )
    log_K = np.log([float(teachers[name]) for name in names])
    tokens_K = question.tokens(np.exp(log_K))
    low, high = float(law.runs.tokens_N.min()), float(law.runs.tokens_N.max())
    beyond_K = np.maximum(1.0, np.maximum(low / tokens_K, tokens_K / high))

    def losses(one: Refitted) -> np.ndarray:
        loss_K = question.losses(one, log_K)
        return np.append(loss_K - loss_K.min(), question.log_star(one))

    spread = Spread(losses(whole(law)), np.array([losses(one) for one in left]), confidence)
    rows = [
        ComputeTeacher(
            teacher=name,
            teacher_params_non_embedding=teachers[name],
            tokens=float(tokens_K[k]),
            tokens_extrapolation=float(beyond_K[k]),
            predicted_regret=spread.interval(lambda v, k=k: v[k], least=0.0),
        )
        for k, name in enumerate(names)
    ]
    rows.sort(key=lambda row: (row.predicted_regret.value, row.teacher_params_non_embedding))
    reason = None
    if rows[0].tokens_extrapolation > REACH:
        reason = (
            f"{flops:.3g} FLOPs pay for {rows[0].tokens:.3g} tokens with {rows[0].teacher}, "
            f"{rows[0].tokens_extrapolation:.3g} times beyond the budgets of the runs"
        )
    return ComputeAnswer(
        status="abstains" if reason else "recommended",
        reason=reason,
        teacher_params=_open(spread.interval(lambda v: v[-1], math.exp), question.log_I),
        place=_place(spread.found[-1], question.log_I),
        ranked=rows,
        **common,
    )
