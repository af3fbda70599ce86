"""
Score every law by leaving one student size out.

Each law is fitted to the runs of all other student sizes and asked for a teacher of the size left
out, at every budget. The teacher nearest to its answer (in log size, among those tried) is looked
up: its regret is its observed mean loss above the best observed one. The observed best is the
lowest of noisy means, so regrets are a little too large, alike for every law.

  power_law     T* of the joint law (joint_law.py)
  ratio         T* = r S, r the geometric mean of T*/S over the interior optima of the same budget
  busbridge     lowest loss predicted by the distillation scaling law (busbridge.py)
  p2            lowest loss predicted by the P2 law, blind to the teacher (pruning_null.py)
  least_damage  the start with the lowest loss before training
  fixed_ratio   the published ratio times S
  next_size_up  the smallest teacher larger than the student
  largest       the largest teacher
  no_teacher    the start of the smallest teacher, trained on the data alone (its own observed loss)
  chance        a teacher at random: means over all of them

Compute is training FLOPs: the column of the table, else 6 S D + 2 T D. Pilot: all runs the law
needed, those of the other student sizes. Choice: one run with the chosen teacher. Exhaustive: one
run with each teacher. Rules of thumb need no pilot.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from capgap.config import Law
from capgap.law.claims import interval
from capgap.law.grouped_runs import GroupedRuns
from capgap.law.joint_law import fit_joint
from capgap.law.law_record import Interval, Pick, Score
from capgap.law.rivals import fit_busbridge, fit_p2, spent_flops
from capgap.law.single_optima import Located

LEARNED = ("power_law", "ratio", "busbridge", "p2")
RULES = ("least_damage", "fixed_ratio", "next_size_up", "largest", "no_teacher", "chance")
QUICK = 2  # starts of L-BFGS in a refit without one student

SAME = 0.01  # of log size; students this close are one size


@dataclass(frozen=True)
class Case:
    """A student size left out, at one budget."""

    student: str
    size: float
    tokens: int
    teachers: pd.DataFrame  # main-arm cells by teacher size: teacher, teacher_params, loss, ...
    no_teacher: float | None  # observed loss of the start of the smallest teacher without one
    star: float | None  # its own T*, only where interior
    own_interval: Interval | None  # of that

    def holds(self, student: str, size: float) -> bool:
        """Whether runs of a student are left out: its starts differ a little in size."""
        return student == self.student or abs(np.log(size / self.size)) < SAME


@dataclass
class Answers:
    """What a law answered, case by case."""

    picks: dict[int, str] = field(default_factory=dict)  # case number -> teacher
    inside: list[bool] = field(default_factory=list)  # its interval held the T* left out
    reasons: list[str] = field(default_factory=list)


def score_laws(
    cells: pd.DataFrame, runs: GroupedRuns, located: list[Located], settings: Law
) -> list[Score]:
    """Scores of all laws and rules, in the order of LEARNED and RULES; `cells` by `cell_table`."""
    cases = _cases(cells, located)
    scores = []
    refits: dict[tuple[Callable, float], tuple] = {}  # a student is left out once, not per budget
    answerers: dict[str, Callable] = {
        "power_law": lambda case: _power_law(case, runs, refits, settings),
        "ratio": lambda case: _ratio(case, located),
        "busbridge": lambda case: _by_loss(case, cells, fit_busbridge, refits),
        "p2": lambda case: _by_loss(case, cells, fit_p2, refits),
        "least_damage": _least_damage,
        "fixed_ratio": lambda case: (settings.published_slope * case.size, None),
        "next_size_up": lambda case: (case.teachers["teacher_params"].iloc[0], None),
        "largest": lambda case: (case.teachers["teacher_params"].iloc[-1], None),
    }
    for law, answer in answerers.items():
        answers = Answers()
        for i, case in enumerate(cases):
            given = answer(case)
            if isinstance(given, str):
                answers.reasons.append(given)
                continue
            target, interval = given
            answers.picks[i] = nearest(case.teachers, target)
            if interval is not None and case.star is not None:
                answers.inside.append(holds(interval, case))
        scores.append(_score(law, answers, cases, cells, settings))
    return [*scores, _no_teacher(cases, cells, settings), _chance(cases, settings)]


def nearest(teachers: pd.DataFrame, target: float) -> str:
    """Teacher nearest in log size; at or below 0 the smallest. Equally near: the smaller."""
    if target <= 0:
        return str(teachers["teacher"].iloc[0])
    distance = np.abs(np.log(teachers["teacher_params"].to_numpy(float) / target))
    return str(teachers["teacher"].iloc[int(distance.argmin())])


def holds(interval: Interval, case: Case) -> bool:
    """Whether an interval, open where a limit is None, contains the T* observed for a case.

    The observed T* has an interval of its own, which widens the other one in log size.
    """
    own = case.own_interval
    below = _reach(interval.value, interval.low, own.value, own.high)
    above = _reach(interval.value, interval.high, own.value, own.low)
    return bool(-below <= np.log(case.star / interval.value) <= above)


def _reach(value: float, limit: float | None, own: float, own_limit: float | None) -> float:
    """Distance of two limits to their values in log size, added as independent errors."""
    if value <= 0 or limit is None or limit <= 0:
        return np.inf
    width = 0.0 if own_limit is None else np.log(own_limit / own)
    return float(np.hypot(np.log(limit / value), width))


def _cases(cells: pd.DataFrame, located: list[Located]) -> list[Case]:
    cases = []
    for place in located:
        own = cells[(cells["student"] == place.student) & (cells["tokens"] == place.tokens)]
        main = own[own["arm"] == "main"]
        teachers = main.groupby("teacher", as_index=False).first()
        teachers["loss"] = main.groupby("teacher")["loss"].mean().to_numpy()
        teachers = teachers.sort_values(["teacher_params", "teacher"], ignore_index=True)
        if len(teachers) < 2:
            continue
        alone = own[(own["arm"] == "no_teacher") & (own["init"] == teachers["init"].iloc[0])]
        inside = place.status == "interior" and place.own is not None
        star = place.own.limits if inside else None
        cases.append(
            Case(
                student=place.student,
                size=place.size,
                tokens=round(place.tokens),
                teachers=teachers,
                no_teacher=float(alone["loss"].iloc[0]) if len(alone) else None,
                star=None if star is None else star.value,
                own_interval=None if star is None else interval(star),
            )
        )
    return cases


def _power_law(case: Case, runs: GroupedRuns, refits: dict, settings: Law):
    key = (fit_joint, case.size)
    if key not in refits:
        pairs = zip(runs.student_N, runs.size_N, strict=True)
        others = runs.select(np.array([not case.holds(name, size) for name, size in pairs]))
        refits[key] = None
        sizes = [len(set(others.teacher_size_N[others.group_N == g])) for g in set(others.group_N)]
        free = len(others.loss_N) - len(sizes) - 4
        if len(set(others.size_N.tolist())) >= 2 and max(sizes) >= 3 and free >= 1:
            refits[key] = fit_joint(others, settings.noise_sd)
    law = refits[key]
    star = None if law is None else law.star(case.size, case.tokens, settings.confidence)
    if star is None:
        return "the students that are left do not determine the law"
    return star.value, interval(star)


def _ratio(case: Case, located: list[Located]):
    inside = [
        place.own.log_star - np.log(place.size)
        for place in located
        if round(place.tokens) == case.tokens
        and place.status == "interior"
        and place.own is not None
        and not case.holds(place.student, place.size)
    ]
    if not inside:
        return "no interior optimum is left"
    return float(case.size * np.exp(np.mean(inside))), None


def _own(case: Case, cells: pd.DataFrame) -> np.ndarray:
    """Which cells are of the student left out."""
    pairs = zip(cells["student"], cells["student_params"], strict=True)
    return np.array([case.holds(student, size) for student, size in pairs])


def _least_damage(case: Case):
    if "start_loss" not in case.teachers or case.teachers["start_loss"].isna().any():
        return "the table has no losses of the starts"
    return case.teachers.loc[case.teachers["start_loss"].idxmin(), "teacher_params"], None


def _by_loss(case: Case, cells: pd.DataFrame, fit: Callable, refits: dict):
    if (fit, case.size) not in refits:
        away = ~_own(case, cells)
        if not away.any():
            return "there is no other student size to fit on"
        refits[fit, case.size] = fit(cells[away], QUICK)
    predict, record = refits[fit, case.size]
    if predict is None or record.status == "failed":
        return record.reason
    loss = predict(case.teachers.assign(student_params=case.size))
    return case.teachers["teacher_params"].iloc[int(np.argmin(loss))], None


def _score(
    law: str, answers: Answers, cases: list[Case], cells: pd.DataFrame, settings: Law
) -> Score:
    """The record of one law from its picks."""
    if not answers.picks:
        reason = answers.reasons[0] if answers.reasons else "no student has two teachers"
        return _empty(law, reason)
    regrets, hits, chosen, pilot, chance, picks = [], [], [], [], [], []
    for i, pick in answers.picks.items():
        teachers = cases[i].teachers
        row = teachers[teachers["teacher"] == pick].iloc[0]
        best = teachers["loss"].min()
        regrets.append(float(row["loss"] - best))
        hits.append(regrets[-1] <= settings.tie_nats)
        chance.append(float((teachers["loss"] - best <= settings.tie_nats).mean()))
        chosen.append(float(row["flops"]))
        pilot.append(_pilot(law, cases[i], cells))
        picks.append(
            Pick(
                student=cases[i].student,
                student_params_non_embedding=cases[i].size,
                tokens=cases[i].tokens,
                teacher=pick,
                teacher_params_non_embedding=int(row["teacher_params"]),
                regret_nats=regrets[-1],
            )
        )
    reason = f"{len(answers.picks)} of {len(cases)} students and budgets"
    if answers.reasons:
        reason += f"; in the others: {answers.reasons[0]}"
    return Score(
        law=law,
        status="scored",
        reason=reason,
        n_cases=len(answers.picks),
        mean_regret_nats=float(np.mean(regrets)),
        max_regret_nats=float(np.max(regrets)),
        hit_rate=float(np.mean(hits)),
        chance_hit_rate=float(np.mean(chance)),
        interval_coverage=float(np.mean(answers.inside)) if answers.inside else None,
        n_intervals=len(answers.inside),
        pilot_flops=float(np.mean(pilot)),
        choice_flops=float(np.mean(chosen)),
        exhaustive_flops=float(np.mean([cases[i].teachers["flops"].sum() for i in answers.picks])),
        picks=picks,
    )


def _pilot(law: str, case: Case, cells: pd.DataFrame) -> float:
    """FLOPs of the runs that a law was fitted to."""
    if law not in LEARNED:
        return 0.0
    use_N = ~_own(case, cells)
    use_N &= cells["arm"].to_numpy() == "main"
    if law == "ratio":  # one budget: nothing is shared with others
        cells = cells.assign(own_share=1.0)
        use_N &= cells["tokens"].to_numpy() == case.tokens
    return spent_flops(cells[use_N])


def _empty(law: str, reason: str) -> Score:
    return Score(
        law=law,
        status="not_available",
        reason=reason,
        n_cases=0,
        mean_regret_nats=None,
        max_regret_nats=None,
        hit_rate=None,
        chance_hit_rate=None,
        interval_coverage=None,
        n_intervals=0,
        pilot_flops=None,
        choice_flops=None,
        exhaustive_flops=None,
    )


def _no_teacher(cases: list[Case], cells: pd.DataFrame, settings: Law) -> Score:
    """Doing without a teacher, scored by the loss that the control arm observed."""
    have = [case for case in cases if case.no_teacher is not None]
    if not have:
        return _empty("no_teacher", "the table has no arm without a teacher")
    regrets = [max(0.0, c.no_teacher - float(c.teachers["loss"].min())) for c in have]
    flops = [6 * c.size * c.tokens for c in have]
    return Score(
        law="no_teacher",
        status="scored",
        reason=f"{len(have)} of {len(cases)} students and budgets",
        n_cases=len(have),
        mean_regret_nats=float(np.mean(regrets)),
        max_regret_nats=float(np.max(regrets)),
        hit_rate=float(np.mean([r <= settings.tie_nats for r in regrets])),
        chance_hit_rate=_chance(have, settings).hit_rate,
        interval_coverage=None,
        n_intervals=0,
        pilot_flops=0.0,
        choice_flops=float(np.mean(flops)),
        exhaustive_flops=float(np.mean([c.teachers["flops"].sum() for c in have])),
    )


def _chance(cases: list[Case], settings: Law) -> Score:
    """A teacher at random: expectations over the teachers of each case."""
    if not cases:
        return _empty("chance", "no student has two teachers")
    regret = [(c.teachers["loss"] - c.teachers["loss"].min()) for c in cases]
    hit = float(np.mean([(r <= settings.tie_nats).mean() for r in regret]))
    return Score(
        law="chance",
        status="scored",
        reason=f"expected over the teachers of {len(cases)} students and budgets",
        n_cases=len(cases),
        mean_regret_nats=float(np.mean([r.mean() for r in regret])),
        max_regret_nats=float(np.max([r.max() for r in regret])),
        hit_rate=hit,
        chance_hit_rate=hit,
        interval_coverage=None,
        n_intervals=0,
        pilot_flops=0.0,
        choice_flops=float(np.mean([c.teachers["flops"].mean() for c in cases])),
        exhaustive_flops=float(np.mean([c.teachers["flops"].sum() for c in cases])),
    )
