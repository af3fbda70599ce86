"""
The runs of one law as a table of their own: at one weight of the teacher's term, of one kind of init,
whose main arm they are.

A law is fitted for each kind of init alone, because the best teacher of a student that was pruned from
it need not be that of a given or random one. The main arm of a table is the students pruned from the
teacher that distils them; if it has none, given students or else random ones take their place.
"""

from __future__ import annotations

import pandas as pd

from capgap.config.run_grid import GIVEN, NONE
from capgap.law.law_record import LawRecord
from capgap.law.table.read_runs import WEIGHT

KINDS = {"pruned": "main", "given": "given", "random": "random_init"}  # with the arm of each


def kinds_of(runs: pd.DataFrame) -> list[str]:
    """Kinds of init with taught runs in a table, the one of the main arm first; maybe empty."""
    taught = runs.loc[runs["teacher"] != NONE, "arm"]
    return [kind for kind, arm in KINDS.items() if (taught == arm).any()]


def weights_of(runs: pd.DataFrame) -> list[float]:
    """Weights of the teacher's term in the main arm of a table, ascending; empty unless they differ."""
    if WEIGHT not in runs:
        return []
    arms = [KINDS[kind] for kind in kinds_of(runs)[:1]]
    main = (runs["teacher"] != NONE) & runs["arm"].isin(arms)
    return sorted(runs.loc[main, WEIGHT].dropna().unique().tolist())


def at_weight(runs: pd.DataFrame, weight: float | None) -> pd.DataFrame:
    """The runs at one weight of the teacher's term, and those without a teacher; all if None."""
    if weight is None:
        return runs
    own = runs[(runs[WEIGHT] == weight) | (runs["teacher"] == NONE)]
    return own.drop(columns=WEIGHT).reset_index(drop=True)


def runs_of_law(runs: pd.DataFrame, law: LawRecord) -> pd.DataFrame:
    """The runs that a law was fitted on, with their controls, as a table whose main arm they are."""
    return as_main(at_weight(runs, law.teacher_weight), law.init)


def as_main(runs: pd.DataFrame, kind: str) -> pd.DataFrame:
    """The table in which the runs of a kind are the main arm, with their controls.

    Given students of one size keep different names.
    """
    if kind == "pruned":
        return runs
    of_kind = runs["arm"] == KINDS[kind]
    alone = (runs["teacher"] == NONE) & runs["init"].isin(runs.loc[of_kind, "init"])
    own = runs[of_kind | alone].copy()
    own["arm"] = own["teacher"].map({NONE: "no_teacher"}).fillna("main")
    several = own.groupby("student")["init"].transform("nunique") > 1
    names = own["student"] + " " + own["init"].str.removeprefix(GIVEN)
    own["student"] = own["student"].mask(several, names)
    return own.reset_index(drop=True)


def size_name(student: str) -> str:
    """The student's name without that of a given model, see `as_main`."""
    return student.split(" ")[0]
