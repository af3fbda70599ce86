"""
T* for a student size and budget, by the best law there is.

  1. the line of exactly this budget
  2. the joint surface, where it is fitted and its T*/S lies within the ratios that were tried
  3. the line of the nearest budget
  4. the student nearest in log size, which lends the ratio of its optimum or of its best teacher
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from capgap.law.records import Interval, LawRecord, Line, Optimum
from capgap.law.study import Fit
from capgap.law.words import about, budget, span


@dataclass(frozen=True)
class Target:
    """Where the best teacher is expected."""

    basis: Literal["line", "surface", "nearest_student"]
    star: Interval | None  # parameters; None by the nearest student
    value: float  # parameters
    law_tokens: int
    note: str
    bounded: bool = True  # False where the nearest student's optimum is only a bound


def target_of(fit: Fit, law: LawRecord, student: int, tokens: int) -> Target:
    """T* of a student (parameters without embeddings) at a budget (tokens)."""
    line = nearest_budget(law.lines, tokens)
    if line.status == "fitted" and line.tokens == tokens:
        return _by_line(fit, law, line, student, tokens)
    by_surface = _by_surface(fit, law, line, student, tokens)
    if by_surface is not None:
        return by_surface
    if line.status == "fitted":
        return _by_line(fit, law, line, student, tokens)
    optima = [o for o in law.optima if o.tokens == line.tokens]
    return _by_student(line, optima, student, tokens)


def nearest_budget(lines: list[Line], tokens: int) -> Line:
    """The line whose token budget is nearest in log; the larger one of two equally near."""
    return min(lines, key=lambda line: (abs(math.log(line.tokens / tokens)), -line.tokens))


def beyond(value: float, studied: list[float]) -> float:
    """How many times a value lies beyond the range studied; 1 inside."""
    return max(1.0, value / max(studied), min(studied) / value)


def _by_line(fit: Fit, law: LawRecord, line: Line, student: int, tokens: int) -> Target:
    star = fit.lines[line.tokens].predict(student)
    students = [
        o.student_params_non_embedding
        for o in law.optima
        if o.tokens == line.tokens and o.status == "interior"
    ]
    note = (
        f"the line over {line.n_students} students at {budget(line.tokens)} puts the optimum for "
        f"{about(student)} at {about(star.value)} ({span(star)})"
    )
    if not min(students) <= student <= max(students):
        note += (
            f"; an extrapolation, the line rests on students of {about(min(students))} to "
            f"{about(max(students))}"
        )
    return Target("line", star, star.value, line.tokens, note + _budget_note(line, tokens))


def _by_surface(fit: Fit, law: LawRecord, line: Line, student: int, tokens: int) -> Target | None:
    surface = fit.surface
    if surface is None or surface.status != "fitted":
        return None
    sizes = {name: o.student_params_non_embedding for o in law.optima for name in [o.student]}
    if "u_d" not in surface.terms and line.status == "fitted":
        return None  # one budget: the line says the same with fewer assumptions
    if "u_s" not in surface.terms and beyond(student, list(sizes.values())) > 1.01:
        return None
    ratio = surface.ratio(student, tokens, law.confidence)
    if ratio is None:
        return None
    tried = [
        np.exp(log_t) / sizes[name] for (name, _), ends in surface.reach.items() for log_t in ends
    ]
    if beyond(ratio.value, tried) > 1:
        return None
    star = Interval(
        **{k: None if v is None else v * student for k, v in ratio.model_dump().items()}
    )
    note = (
        f"the joint surface over {surface.reason} puts the optimum for {about(student)} at "
        f"{budget(tokens)} at {about(star.value)} ({span(star)})"
    )
    if beyond(student, list(sizes.values())) > 1:
        note += (
            f"; an extrapolation, the surface rests on students of {about(min(sizes.values()))} "
            f"to {about(max(sizes.values()))}"
        )
    budgets = sorted({d for _, d in surface.levels})
    if not budgets[0] <= tokens <= budgets[-1]:
        note += f"; beyond the budgets studied, {budget(budgets[0])} to {budget(budgets[-1])}"
    return Target("surface", star, star.value, line.tokens, note)


def _by_student(line: Line, optima: list[Optimum], student: int, tokens: int) -> Target:
    """Target by the ratio of the student nearest in log size, and why it had to be that."""
    near = min(
        optima,
        key=lambda o: (
            abs(math.log(o.student_params_non_embedding / student)),
            o.student_params_non_embedding,
        ),
    )
    if near.status == "interior":
        ratio, what = near.ratio.value, "its optimum"
    else:
        best = next(c for c in near.cells if c.teacher == near.best_teacher)
        ratio = best.teacher_params_non_embedding / near.student_params_non_embedding
        what = f"its best teacher, {near.best_teacher}, which bounds the optimum on one side only"
        if near.status == "not_identifiable":
            what = f"its best teacher, {near.best_teacher}, of too few to see an optimum"
    value = ratio * student
    note = (
        f"no law could be fitted at {budget(line.tokens)} ({line.reason}); the choice follows the "
        f"nearest student, {near.student}: {what} stands at {ratio:.3g} times its size, which "
        f"gives {about(value)} here{_budget_note(line, tokens)}"
    )
    return Target(
        "nearest_student", None, value, line.tokens, note, bounded=near.status == "interior"
    )


def _budget_note(line: Line, tokens: int) -> str:
    if line.tokens == tokens:
        return ""
    return f"; the final run has {budget(tokens)}, and the optimum may move with them"
