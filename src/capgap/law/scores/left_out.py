"""
Score every law by what it has not seen: students, budgets and teachers left out (docs/method.md, Scores).

Regret is the observed mean loss of a law's choice above the best observed one, which is the lowest of noisy
means: regrets are a little too large, alike for every law. If a law gives no answer, a random teacher is
scored instead. Intervals are t intervals over students, because the cases of one student share their noise.

LEARNED are laws that are fitted (contenders.py; `ratio` is one T*/S for each budget), RULES learn
nothing: `least_damage` takes the init with the lowest loss before training, `fixed_ratio` the published
ratio times S; `no_teacher` trains the init of the smallest teacher that has such a control on the data alone,
by its observed loss, which may be below that with every teacher: a negative regret;
`chance` is the mean over all teachers. Rules need no pilot runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import get_args

import numpy as np
import pandas as pd
from scipy import stats

from capgap.config import Law
from capgap.config.run_grid import pruned_from
from capgap.law.law_record import Interval, LawName, LeftOut, Pick, Score
from capgap.law.table.run_means import SAME_LOG_SIZE, spent_flops

LAWS = get_args(LawName)
LEARNED = (*LAWS, "ratio")
RULES = ("least_damage", "fixed_ratio", "next_size_up", "largest", "no_teacher", "chance")
KINDS = ("students", "budgets", "teachers")


@dataclass(frozen=True)
class Case:
    """A student at a budget, some of whose runs a law has not seen."""

    student: str
    size: float
    tokens: int
    # main arm by teacher size: teacher, teacher_params, teacher_loss, loss, ...
    teachers: pd.DataFrame
    no_teacher: float | None  # observed loss without a teacher
    own: Interval | None  # T* by its own curve, if that is interior

    @property
    def rows(self) -> pd.DataFrame:
        """Its cells, with the student's name and size."""
        return self.teachers.assign(student=self.student, student_params=self.size)


# what a law chooses in a case: the row of case.teachers, and its interval of T* if it has one
Choose = Callable[[Case], tuple[int, Interval | None] | str]
# a law fitted to some of the runs and cells, or why it cannot be
Contender = Callable[[pd.DataFrame, pd.DataFrame], Choose | str]
OutOf = Callable[[pd.DataFrame], np.ndarray]  # which rows of runs or cells are left out
# kind of what is left out, which runs and which cells these are, and the cases that lose runs
_Out = tuple[str, np.ndarray, np.ndarray, list[Case]]


@dataclass(frozen=True)
class _Answer:
    kind: str  # of KINDS
    case: Case
    choice: int | None
    interval: Interval | None
    reason: str = ""

    @property
    def regret(self) -> float:
        """Regret of the choice, nats; without a choice, that of a random teacher."""
        above = _above(self.case)
        return float(above.mean() if self.choice is None else above[self.choice])


def score_laws(
    runs: pd.DataFrame,
    cells: pd.DataFrame,
    own: Mapping[tuple[str, int], Interval],
    laws: Mapping[str, Contender],
    settings: Law,
) -> list[Score]:
    """Scores of all laws and rules, in the order of LEARNED and RULES.

    runs: as `read_runs`; cells: as `run_means.cell_table`. own: T* that the runs of a student and budget
    show alone, if it is interior. laws: how those of LEARNED are fitted.
    """
    cases = _cases(cells, own)
    contenders = {name: _if_runs(law) for name, law in laws.items()} | _rules(settings)
    out = [
        (kind, out_of(runs), out_of(cells), [c for c in cases if out_of(c.rows).any()])
        for kind, out_of in _left_out(cells, cases)
    ]
    scores = [
        _score(law, _answers(contenders[law], runs, cells, out), cells, settings)
        for law in (*LEARNED, *RULES)
        if law in contenders
    ]
    return [*scores, _no_teacher(cases, settings), _chance(cases, settings)]


def leading(scores: list[Score], unit: str = "nats") -> tuple[str | None, str]:
    """The law with the lowest mean regret over all that was left out, and why, in words.

    unit: of the regrets.
    """
    known = {
        score.law: score.left_out[-1]
        for score in scores
        if score.law in LAWS and score.left_out and score.left_out[-1].n_answered
    }
    if not known:
        return None, "no law could be scored on what it had not seen"
    best = min(known, key=lambda law: known[law].regret.value)
    others = ", ".join(
        f"{law} {known[law].regret.value:.4f}" for law in LAWS if law in known and law != best
    )
    text = f"mean regret {known[best].regret.value:.4f} {unit} over {known[best].n_cases} left out"
    return best, text + (f"; {others}" if others else "")


def nearest(teachers: pd.DataFrame, target: float) -> int:
    """Row of the teacher nearest in log size; at or below 0 the smallest. Equally near: the smaller."""
    if target <= 0:
        return 0
    return int(np.abs(np.log(teachers["teacher_params"].to_numpy(float) / target)).argmin())


def holds(interval: Interval, own: Interval) -> bool:
    """Whether an interval of T*, open if a limit is None, contains the T* observed for a case.

    The observed T* has an interval of its own, which widens the other one in log size.
    """
    below = _reach(interval.value, interval.low, own.value, own.high)
    above = _reach(interval.value, interval.high, own.value, own.low)
    return bool(-below <= np.log(own.value / interval.value) <= above)


def _reach(value: float, limit: float | None, own: float, own_limit: float | None) -> float:
    """Distance of two limits to their values in log size, added as independent errors."""
    if value <= 0 or limit is None or limit <= 0:
        return np.inf
    width = 0.0 if own_limit is None else np.log(own_limit / own)
    return float(np.hypot(np.log(limit / value), width))


def _cases(cells: pd.DataFrame, own: Mapping[tuple[str, int], Interval]) -> list[Case]:
    cases = []
    for (tokens, student), group in cells.groupby(["tokens", "student"], sort=True):
        main = group[group["arm"] == "main"].reset_index(drop=True)
        if main["teacher"].nunique() < 2:
            continue
        numbers = main.select_dtypes("number").columns.drop(["tokens", "n"])
        weighed = main[numbers].mul(main["n"], axis=0).groupby(main["teacher"]).sum(min_count=1)
        teachers = weighed.div(main.groupby("teacher")["n"].sum(), axis=0)
        teachers["init"] = main.groupby("teacher")["init"].first()
        teachers = teachers.reset_index().sort_values(["teacher_params", "teacher"])
        teachers = teachers.reset_index(drop=True).assign(tokens=int(tokens))
        without = group[group["arm"] == "no_teacher"].groupby("init")["loss"].mean()
        alone = without.reindex(teachers["init"]).dropna()
        cases.append(
            Case(
                student=str(student),
                size=float(main["student_params"].mean()),
                tokens=int(tokens),
                teachers=teachers,
                no_teacher=float(alone.iloc[0]) if len(alone) else None,
                own=own.get((str(student), int(tokens))),
            )
        )
    return sorted(cases, key=lambda case: (case.tokens, case.size, case.student))


def _answers(
    contender: Contender,
    runs: pd.DataFrame,
    cells: pd.DataFrame,
    out: list[_Out],
) -> list[_Answer]:
    """The choices of a law when everything is left out in turn."""
    answers = []
    for kind, runs_N, cells_N, concerned in out:
        kept_runs, kept_cells = runs[~runs_N], cells[~cells_N]
        fitted = contender(kept_runs, kept_cells)
        for case in concerned:
            given = fitted if isinstance(fitted, str) else fitted(case)
            if isinstance(given, str):
                answers.append(_Answer(kind, case, None, None, given))
            else:
                answers.append(_Answer(kind, case, *given))
    return answers


def _if_runs(law: Contender) -> Contender:
    """A law that is fitted only if runs are left."""

    def contender(runs: pd.DataFrame, cells: pd.DataFrame) -> Choose | str:
        return law(runs, cells) if len(cells) else "nothing is left to fit to"

    return contender


def _left_out(cells: pd.DataFrame, cases: list[Case]) -> list[tuple[str, OutOf]]:
    """Everything that is left out in turn: sizes of students, budgets, teachers or their families."""
    main = cells[cells["arm"] == "main"]
    found: list[tuple[str, OutOf]] = []
    sizes: list[Case] = []
    for case in cases:
        if not any(_same_student(case, one.student, one.size) for one in sizes):
            sizes.append(case)
    found += [("students", _of_student(case)) for case in sizes]
    budgets = sorted(set(main["tokens"]))
    if len(budgets) > 1:
        found += [("budgets", _where("tokens", [tokens])) for tokens in budgets]
    members = main.groupby(_family_column(main))["teacher"].unique()
    if len(members) > 1:
        found += [("teachers", _where("teacher", list(names))) for names in members]
    return found


def _family_column(main: pd.DataFrame) -> str:
    several = "teacher_family" in main and main["teacher_family"].nunique() > 1
    return "teacher_family" if several else "teacher"


def _of_student(case: Case) -> OutOf:
    def out_of(frame: pd.DataFrame) -> np.ndarray:
        size = "student_params" if "student_params" in frame else "student_params_non_embedding"
        pairs = zip(frame["student"], frame[size], strict=True)
        return np.array([_same_student(case, *pair) for pair in pairs])

    return out_of


def _same_student(case: Case, student: str, size: float) -> bool:
    """Whether a run is of a student left out: inits of one student differ a little in size."""
    return case.student == student or abs(np.log(size / case.size)) < SAME_LOG_SIZE


def _where(name: str, values: list) -> OutOf:
    def out_of(frame: pd.DataFrame) -> np.ndarray:
        out_N = frame[name].isin(values).to_numpy()
        if name == "teacher":  # what was pruned from a teacher left out is unknown as well
            out_N = out_N | frame["init"].isin([pruned_from(value) for value in values]).to_numpy()
        return out_N

    return out_of


def _rules(settings: Law) -> dict[str, Contender]:
    """Rules of thumb, which learn nothing from the runs."""

    def least_damage(case: Case) -> tuple[int, None] | str:
        if "init_loss" not in case.teachers or case.teachers["init_loss"].isna().any():
            return "the table has no losses of the inits"
        return int(case.teachers["init_loss"].argmin()), None

    rules: dict[str, Choose] = {
        "least_damage": least_damage,
        "fixed_ratio": lambda case: (
            nearest(case.teachers, settings.published_slope * case.size),
            None,
        ),
        "next_size_up": lambda case: (0, None),
        "largest": lambda case: (len(case.teachers) - 1, None),
    }
    return {name: lambda _, __, rule=rule: rule for name, rule in rules.items()}


def _score(law: str, answers: list[_Answer], cells: pd.DataFrame, settings: Law) -> Score:
    """The record of one law from its answers."""
    given = [a for a in answers if a.kind == "students" and a.choice is not None]
    reasons = [a.reason for a in answers if a.choice is None]
    if not given:
        left_out = _by_kind(answers, settings.confidence)
        empty = _empty(law, reasons[0] if reasons else "no student has two teachers")
        return empty.model_copy(update={"left_out": left_out})
    students = [a for a in answers if a.kind == "students"]
    reason = f"{len(given)} of {len(students)} students and budgets"
    if reasons:
        reason += f"; in the others: {reasons[0]}"
    cases, rows = [a.case for a in given], [a.case.teachers.iloc[a.choice] for a in given]
    regrets, flops = [np.array([a.regret]) for a in given], [row["flops"] for row in rows]
    inside = [holds(a.interval, a.case.own) for a in given if a.interval and a.case.own]
    picks = [
        Pick(
            student=case.student,
            student_params_non_embedding=case.size,
            tokens=case.tokens,
            teacher=str(row["teacher"]),
            teacher_params_non_embedding=int(row["teacher_params"]),
            regret_nats=answer.regret,
        )
        for answer, case, row in zip(given, cases, rows, strict=True)
    ]
    found = {
        "interval_coverage": float(np.mean(inside)) if inside else None,
        "n_intervals": len(inside),
        "pilot_flops": float(np.mean([_pilot(law, case, cells) for case in cases])),
        "picks": picks,
        "left_out": _by_kind(answers, settings.confidence),
    }
    return _expected(law, reason, cases, regrets, flops, settings).model_copy(update=found)


def _by_kind(answers: list[_Answer], confidence: float) -> list[LeftOut]:
    """Mean regret by what was left out, then over all of it, with equal weight for each kind."""
    found = []
    for kind in (*KINDS, "all"):
        some = [answer for answer in answers if kind in (answer.kind, "all")]
        if some:
            found.append(
                LeftOut(
                    kind=kind,
                    n_cases=len(some),
                    n_answered=sum(answer.choice is not None for answer in some),
                    regret=_mean_regret(some, confidence),
                )
            )
    return found


def _mean_regret(answers: list[_Answer], confidence: float) -> Interval:
    """Mean over kinds of their mean regrets, with a t interval: cases of a student are one draw."""
    frame = pd.DataFrame(
        [(a.kind, a.case.student, a.regret) for a in answers], columns=["kind", "student", "regret"]
    )
    kinds = frame.groupby("kind")["regret"]
    mean = float(kinds.mean().mean())
    share = (frame["regret"] - kinds.transform("mean")) / kinds.transform("size") / kinds.ngroups
    pull = share.groupby(frame["student"]).sum()
    n = len(pull)
    if n < 2:
        return Interval.around(mean, None)
    error = np.sqrt(n / (n - 1) * np.sum(pull**2))
    half = float(stats.t.ppf((1 + confidence) / 2, n - 1) * error)
    return Interval(value=mean, low=max(0.0, mean - half), high=mean + half)


def _pilot(law: str, case: Case, cells: pd.DataFrame) -> float:
    """FLOPs of the runs that a law was fitted to."""
    if law not in LEARNED:
        return 0.0
    use_N = ~_of_student(case)(cells)
    use_N &= cells["arm"].to_numpy() == "main"
    if law == "ratio":  # one budget: nothing is shared with others
        cells = cells.assign(own_share=1.0)
        use_N &= cells["tokens"].to_numpy() == case.tokens
    return spent_flops(cells[use_N])


def _empty(law: str, reason: str) -> Score:
    return Score(law=law, status="not_available", reason=reason, n_cases=0)


def _no_teacher(cases: list[Case], settings: Law) -> Score:
    """The score of training without a teacher, by the loss that the control arm observed."""
    have = [case for case in cases if case.no_teacher is not None]
    if not have:
        return _empty("no_teacher", "the table has no arm without a teacher")
    above = [np.array([c.no_teacher - float(c.teachers["loss"].min())]) for c in have]
    return _expected(
        "no_teacher",
        f"{len(have)} of {len(cases)} students and budgets",
        have,
        above,
        [6 * c.size * c.tokens for c in have],
        settings,
    )


def _chance(cases: list[Case], settings: Law) -> Score:
    """A random teacher: expectations over the teachers of each case."""
    if not cases:
        return _empty("chance", "no student has two teachers")
    reason = f"expected over the teachers of {len(cases)} students and budgets"
    flops = [c.teachers["flops"].mean() for c in cases]
    return _expected("chance", reason, cases, list(map(_above, cases)), flops, settings)


def _above(case: Case) -> np.ndarray:
    """Losses of the teachers of a case above the best one's, nats."""
    return (case.teachers["loss"] - case.teachers["loss"].min()).to_numpy()


def _expected(
    law: str,
    reason: str,
    cases: list[Case],
    above: list[np.ndarray],
    flops: list[float],
    settings: Law,
) -> Score:
    """The score of a law or rule by its regrets. above: nats, of the outcomes it can have in each case."""

    def hits(regrets: list[np.ndarray]) -> float:
        return float(np.mean([(r <= settings.tie_nats).mean() for r in regrets]))

    return Score(
        law=law,
        status="scored",
        reason=reason,
        n_cases=len(cases),
        mean_regret_nats=float(np.mean([r.mean() for r in above])),
        max_regret_nats=float(np.max([r.max() for r in above])),
        hit_rate=hits(above),
        chance_hit_rate=hits(list(map(_above, cases))),
        pilot_flops=0.0,
        choice_flops=float(np.mean(flops)),
        exhaustive_flops=float(np.mean([c.teachers["flops"].sum() for c in cases])),
    )
