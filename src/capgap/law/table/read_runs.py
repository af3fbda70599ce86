"""
Read a table of runs, from `capgap collect` or elsewhere, and report everything that is wrong with it.

docs/tables.md describes the columns, their synonyms (`column_names.py`) and defaults; `run_records.RunRow`
lists them. A table needs sizes of students and teachers (columns, or names like 7B), tokens, and an
outcome (`metric.py`), and may have other outcomes. Without the column `init` it is 'unstated', and every run with a teacher is of the main
arm. A row of means (mean, sd or se, n) stays one row.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from capgap.config import Law
from capgap.config.counts import format_count, parse_count
from capgap.config.run_grid import NONE, arm_of
from capgap.errors import CapgapError
from capgap.law.table.column_names import (
    CANONICAL,
    LOSS,
    TEACHER_LOSS,
    TEST_LOSS,
    Columns,
    assign,
    canonical,
)
from capgap.law.table.delimited_text import Problems, frame_fields, parse_number, read_fields
from capgap.law.table.metric import METRICS, NAMED, TEST, Metric, margin_of

ARMS = ("main", "no_teacher", "given", "random_init", "cross_teacher")
UNSTATED = "unstated"  # the init of a table that has no such column
KEY = ["student", "init", "teacher", "tokens", "seed", "teacher_seed", "init_seed"]
STUDENT_SIZE, TEACHER_SIZE = "student_params_non_embedding", "teacher_params_non_embedding"
TEXT = ("student", "init", "teacher", "arm", "teacher_family")
SEEDS = ("seed", "teacher_seed", "init_seed")
WEIGHT = "teacher_weight"
COUNTS = (
    *(STUDENT_SIZE, TEACHER_SIZE, "student_params_total", "teacher_params_total"),
    *("student_params_active", "teacher_params_active", "tokens", "trunk_tokens"),
)
OTHER_NUMBERS = (
    *("start_val_loss_nats_per_token", "test_loss_nats_per_token", "test_bits_per_byte"),
    *("train_flops", "student_forward_flops_per_token", "teacher_forward_flops_per_token"),
)
NO_TEACHER = ("none", "-", "n/a", "na", "null", "no", "no teacher")
LARGEST_SEED = 2**53  # larger whole numbers are not exact in JSON and in spreadsheets
SAME_SIZE = 1.5  # factor by which inits of one small student from different teachers may differ
MOST_RUNS = 1000  # behind one row of means
IMPLAUSIBLE_NATS = 20  # log of a vocabulary of 500 million


@dataclass(frozen=True)
class RunTable:
    """A table of runs that was read."""

    runs: pd.DataFrame  # columns of RunRow, sorted by `key_of`; the outcome is in LOSS
    metric: Metric  # of the outcome as given; in `runs` it is on the scale of the metric
    name: str | None  # of the outcome; None if it is the plain one
    excluded: list[dict[str, str | int | float]]  # runs left out, by KEY
    ignored: list[str]  # headers of columns that are not used

    def settings(self, law: Law) -> Law:
        """Settings of the law for this table: its metric, and the margin on that metric's scale."""
        margin = margin_of(law, self.metric, self.name)
        return law.model_copy(update={"metric": self.metric.name, "tie_nats": margin})

    def compared(self, law: Law) -> list[str]:
        """Names of the outcomes to compare with this one; CapgapError if the table has not all."""
        there = list(further_outcomes(self.runs, self.name))
        first, *others = law.metrics() or [None]
        missing = [name for name in others if name not in there]
        if missing:
            raise CapgapError(
                f"law.metric: {', '.join(missing)} is no outcome of the runs beside {first}; there "
                f"are {', '.join(there) or 'no others'}"
            )
        return others or there


def read_runs(
    path: str | Path, metric: str | None = None, exclude: Sequence[dict] = ()
) -> pd.DataFrame:
    """The runs of a table; arguments and errors as in `read_table`."""
    return read_table(path, metric, exclude).runs


def read_table(
    path: str | Path | pd.DataFrame,
    metric: str | list[str] | None = None,
    exclude: Sequence[dict] = (),
) -> RunTable:
    """Read a table of runs, from a file or a frame.

    metric: a name of METRICS or of one of the table's outcomes, or None to go by the header of the
    outcome's column; of several names the first counts. exclude: runs to
    leave out, each as columns with their values; all rows that match are left out. Raises CapgapError
    with everything that is missing, unknown, repeated, contradictory or no number, line by line.
    """
    if isinstance(metric, list):
        metric = metric[0] if metric else None
    in_memory = isinstance(path, pd.DataFrame)
    header, lines, problems = frame_fields(path) if in_memory else read_fields(Path(path))
    columns = assign(header, metric, problems)
    text = pd.DataFrame([row for _, row in lines], index=[number for number, _ in lines])
    runs = _identities(text, columns, header, problems)
    values = _values(text, columns, header, problems)
    out_N = _matching(runs, exclude, problems)
    problems.forget(set(runs.index[out_N]))
    problems.check()
    excluded = [
        {name: value for name, value in row.items() if not pd.isna(value)}
        for row in runs.loc[out_N, key_of(runs)].to_dict("records")
    ]
    runs, values = runs[~out_N], values[~out_N]
    if runs.empty:
        name = "the DataFrame of runs" if in_memory else path
        raise CapgapError(f"{name}: law.exclude leaves no run; exclude fewer")
    if metric is None:
        _check_plausible(values[LOSS], columns, header, problems)
    _check_rows(runs, values, columns.ignored, problems)
    problems.check()
    runs = _on_scale(runs, values, columns)
    columns_of = dict.fromkeys([*CANONICAL, *map(_column, columns.others.items())])
    order = [name for name in columns_of if name in runs]
    runs = runs[order].sort_values(key_of(runs), kind="stable", ignore_index=True)
    return RunTable(runs, columns.metric, columns.name, excluded, columns.ignored)


def key_of(runs: pd.DataFrame) -> list[str]:
    """The columns that identify a run of a table."""
    return [*KEY, *({WEIGHT} & {*runs.columns})]


def further_outcomes(
    runs: pd.DataFrame, leading: str | None = None
) -> dict[str, tuple[Metric, str]]:
    """Metric and column of the outcomes that a table has beside the leading one, by name."""
    found = {TEST: (METRICS["loss"], TEST_LOSS)} if TEST_LOSS in runs else {}
    for column in runs.columns:
        named = NAMED.fullmatch(column)
        if named:
            found[named[2]] = METRICS[named[1]], column
    return {
        name: place
        for name, place in found.items()
        if name != leading and runs[place[1]].notna().any()
    }


def main_arm(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs the law is fitted on; CapgapError if there is none."""
    main = runs[runs["arm"] == "main"]
    if main.empty:
        counts = ", ".join(f"{n} {arm}" for arm, n in sorted(runs["arm"].value_counts().items()))
        raise CapgapError(
            f"no run of the main arm in the table ({counts}); the law needs students pruned and "
            "distilled from the same teacher (init pruned-<teacher>), given or random ones with teachers, "
            "or arm 'main' set by hand"
        )
    return main


def teacher_sizes(runs: pd.DataFrame) -> dict[str, int]:
    """Parameters without embeddings of every teacher in the table, smallest first."""
    taught = runs[runs["teacher"] != NONE]
    sizes = taught.groupby("teacher")["teacher_params_non_embedding"].first()
    return {name: int(sizes[name]) for name in sorted(sizes.index, key=lambda n: (sizes[n], n))}


def teacher_losses(runs: pd.DataFrame) -> list[tuple[str, float]]:
    """Validation loss of every teacher, smallest first, mean over its draws; empty if one is not known."""
    name = "teacher_val_loss_nats_per_token"
    taught = runs[runs["teacher"] != NONE]
    if name not in runs or taught[name].isna().any():
        return []
    loss = taught.groupby("teacher")[name].mean()
    return [(teacher, float(loss[teacher])) for teacher in teacher_sizes(runs)]


def _identities(
    text: pd.DataFrame, columns: Columns, header: list[str], problems: Problems
) -> pd.DataFrame:
    """The columns that identify runs: names, seeds, sizes, tokens and arm, by line."""
    found: dict[str, pd.Series] = {}
    for name in ("student", "teacher", "init", "arm"):
        if name in columns.known:
            found[name] = text[columns.known[name]]
            for line in found[name].index[found[name] == ""]:
                problems.add(f"{header[columns.known[name]]} is empty", line)
    if "teacher_family" in columns.known:
        found["teacher_family"] = text[columns.known["teacher_family"]].replace("", None)
    if "teacher" in found:
        none = found["teacher"].str.lower().isin(NO_TEACHER)
        found["teacher"] = found["teacher"].where(~none, NONE)
    for name in (*COUNTS, *SEEDS):
        if name in columns.known:
            column = columns.known[name]
            found[name] = _counts(text[column], header[column], name, problems)
    for side in ("student", "teacher"):
        size = f"{side}_params_non_embedding"
        if size not in found:
            names = found[side].where(found[side] != NONE, "")
            found[size] = _counts(names, header[columns.known[side]], size, problems)
        if side not in found:
            found[side] = found[size].map(lambda n: NONE if pd.isna(n) else format_count(int(n)))
    if WEIGHT in columns.known:
        column = columns.known[WEIGHT]
        weights = _numbers(text[column], header[column], _weight_problem, problems)
        if weights.nunique() > 1:  # a constant distinguishes no runs
            found[WEIGHT] = weights
    runs = pd.DataFrame(found, index=text.index)
    for name in SEEDS:
        runs[name] = runs[name].fillna(0).astype(np.int64) if name in runs else 0
    given = "init" in runs
    if not given:
        runs["init"] = UNSTATED
    if "arm" in runs:
        runs["arm"] = runs["arm"].str.lower().str.replace(r"[ -]+", "_", regex=True)
    elif given:
        runs["arm"] = [arm_of(i, t) for i, t in zip(runs["init"], runs["teacher"], strict=True)]
    else:
        runs["arm"] = np.where(runs["teacher"] == NONE, "no_teacher", "main")
    return runs


def _counts(text: pd.Series, header: str, name: str, problems: Problems) -> pd.Series:
    """A column of counts or seeds; NaN for what is empty or a problem, else int64."""
    least, most = (0, LARGEST_SEED) if name in SEEDS else (1, 10**18)

    def problem(value: int) -> str | None:
        fix = "; number the seeds 0, 1, 2" if name in SEEDS and value > most else ""
        wrong = f"but must be at least {least} and at most {most:,}{fix}"
        return None if least <= value <= most else wrong

    if name in (STUDENT_SIZE, "tokens", "seed"):
        for line in text.index[text == ""]:
            problems.add(f"{header} is empty", line)
    kind = "a whole number like 60k, 7B or 1,000,000"
    values = _parsed(text, header, _count, kind, problem, problems)
    if None in values:
        return pd.Series([np.nan if v is None else float(v) for v in values], text.index)
    return pd.Series(values, text.index, dtype=np.int64)


def _parsed(
    text: pd.Series, header: str, parse: Callable, kind: str, problem: Callable, problems: Problems
) -> list:
    """Entries of a column; None for what is empty or has a problem. kind: what an entry must be."""
    values = []
    for line, entry in text.items():
        value = None
        if entry:
            try:
                value = parse(entry, problems.separator)
            except ValueError:
                problems.add(f"{header} is '{entry}', not {kind}", line)
            else:
                if (found := problem(value)) is not None:
                    problems.add(f"{header} is {entry}, {found}", line)
                    value = None
        values.append(value)
    return values


def _count(entry: str, separator: str) -> int:
    """A count, also with points between thousands or a decimal comma; ValueError if it is none."""
    sign, digits = (-1, entry[1:]) if entry.startswith("-") else (1, entry)
    if re.fullmatch(r"\d{1,3}(\.\d{3}){2,}", digits):
        digits = digits.replace(".", "")
    elif separator != "," and re.fullmatch(r"\d+,\d{1,2}[kMBT]", digits, re.IGNORECASE):
        digits = digits.replace(",", ".")
    return sign * parse_count(digits)


def _values(
    text: pd.DataFrame, columns: Columns, header: list[str], problems: Problems
) -> pd.DataFrame:
    """The measured numbers by line: the outcome as given, sd and n of means, and all others."""

    def read(column: int, problem: Callable[[float], str | None] = _finite) -> pd.Series:
        return _numbers(text[column], header[column], problem, problems)

    found = {LOSS: read(columns.outcome, columns.metric.problem)}
    for line in text.index[text[columns.outcome] == ""]:
        problems.add(f"{header[columns.outcome]} is empty; repeat the run or drop its row", line)
    if columns.teacher_outcome is not None:
        metric, column = columns.teacher_outcome
        found[TEACHER_LOSS] = metric.to_scale(read(column, metric.problem))
    for outcome in columns.others.items():
        if outcome[0] != TEST:  # the test loss is one of OTHER_NUMBERS
            metric, column = outcome[1]
            found[_column(outcome)] = read(column, metric.problem)
    for name in OTHER_NUMBERS:
        if name in columns.known:
            found[name] = read(columns.known[name], _positive)
    values = pd.DataFrame(found, index=text.index)
    spread = {what: read(column) for what, column in columns.spread.items()}
    values["n"] = spread["n"].fillna(1) if "n" in spread else 1.0
    values["sd"] = spread.get("sd", np.nan)
    if "se" in spread:
        values["sd"] = values["sd"].fillna(spread["se"] * np.sqrt(values["n"]))
    if spread and "n" not in spread:
        names = " and ".join(f"'{header[column]}'" for column in columns.spread.values())
        problems.add(f"{names} of means need a column 'n' beside them, the runs behind each mean")
    for line, (n, sd) in values[["n", "sd"]].iterrows():
        if n % 1 or not 1 <= n <= MOST_RUNS:
            problems.add(f"n is {n:g}, but must be a whole number from 1 to {MOST_RUNS}", line)
        elif n > 1 and not sd >= 0:
            problems.add(f"the mean of {n:g} runs needs their sd or se, 0 or more", line)
    return values


def _weight_problem(value: float) -> str | None:
    return None if 0 < value <= 1 else "but a weight of the teacher's term is above 0 and at most 1"


def _column(outcome: tuple[str, tuple[Metric, int]]) -> str:
    """The column of a table that was read for a further outcome."""
    name, (metric, _) = outcome
    return TEST_LOSS if name == TEST else f"{metric.name}:{name}"


def _finite(value: float) -> str | None:
    return None if np.isfinite(value) else "not a finite number"


def _positive(value: float) -> str | None:
    return _finite(value) or (None if value > 0 else "but must be greater than 0")


def _numbers(
    text: pd.Series, header: str, problem: Callable[[float], str | None], problems: Problems
) -> pd.Series:
    """A column of numbers; NaN for what is empty or has a problem."""
    kind = "a number; correct it, or leave the row out"
    return pd.Series(
        _parsed(text, header, parse_number, kind, problem, problems), text.index, dtype=float
    )


def _matching(
    runs: pd.DataFrame, exclude: Sequence[dict[str, str | int | float]], problems: Problems
) -> np.ndarray:
    """Which runs law.exclude names; an entry that names none, or no column, is a problem."""
    out_N = np.zeros(len(runs), dtype=bool)
    for i, entry in enumerate(exclude):
        match_N = np.ones(len(runs), dtype=bool)
        described, nowhere = [], ""
        for given, value in entry.items():
            name = canonical(str(given))
            if name not in (*key_of(runs), "arm", STUDENT_SIZE, TEACHER_SIZE):
                names = ", ".join(key_of(runs))
                problems.add(f"law.exclude[{i}]: '{given}' is not one of {names}, arm")
                break
            wanted = value if name == WEIGHT else str(value)
            if name not in (WEIGHT, *TEXT):
                with suppress(ValueError):  # which no run has
                    wanted = _count(str(value), ",")
            same_N = (runs[name] == wanted).to_numpy()
            if not same_N.any():
                there = sorted(map(str, runs[name].dropna().unique()))
                nowhere = f"; {name} is one of {', '.join(there[:10])}"
            described.append(f"{name} {value}")
            match_N &= same_N
        else:
            if not match_N.any():
                text = f"no run has {', '.join(described)}{nowhere}; correct or remove the entry"
                problems.add(f"law.exclude[{i}]: {text}")
            out_N |= match_N
    return out_N


def _check_plausible(
    loss: pd.Series, columns: Columns, header: list[str], problems: Problems
) -> None:
    """A column that was assumed to hold losses must look like losses."""
    if columns.metric.name != "loss" or loss.isna().any():
        return
    what = f"'{header[columns.outcome]}' was read as a loss in nats per token, but all its values"
    if loss.max() <= 1:
        problems.add(
            f"{what} lie between 0 and 1, as shares do; use --metric accuracy or --metric error, or "
            "--metric loss if they are losses"
        )
    elif loss.min() > IMPLAUSIBLE_NATS:
        problems.add(
            f"{what} are above {IMPLAUSIBLE_NATS}, more than a uniform guess over any vocabulary; "
            "use --metric perplexity, write accuracies as 57% with --metric accuracy, or use "
            "--metric loss if they are losses"
        )


def _check_rows(
    runs: pd.DataFrame, values: pd.DataFrame, ignored: list[str], problems: Problems
) -> None:
    """Checks across rows: repeats, names used for two models, arms without a teacher."""
    unused = f" (columns that are not used: {', '.join(ignored)})" if ignored else ""
    key = key_of(runs)
    for _, same in runs[runs.duplicated(key, keep=False)].groupby(key, dropna=False):
        run = ", ".join(f"{name} {same[name].iloc[0]}" for name in key)
        problems.add(
            f"the run ({run}) occurs twice, first in line {same.index[0]}; keep one row, or number "
            f"repeats in a column seed{unused}",
            same.index[1],
        )
    taught_N = runs["teacher"] != NONE
    for line in runs.index[~runs["arm"].isin(ARMS)]:
        problems.add(f"arm is '{runs.at[line, 'arm']}', not one of {', '.join(ARMS)}", line)
    for line in runs.index[taught_N == runs[TEACHER_SIZE].isna()]:
        problems.add(
            f"{TEACHER_SIZE} must be given with a teacher and empty if teacher is '{NONE}', got "
            f"teacher '{runs.at[line, 'teacher']}'",
            line,
        )
    if WEIGHT in runs:
        for line in runs.index[taught_N & runs[WEIGHT].isna()]:
            problems.add(f"{WEIGHT} is empty, but runs with a teacher differ in it", line)
    for line in runs.index[(runs["arm"] == "main") & ~taught_N]:
        problems.add(f"a run of the main arm needs a teacher, got '{NONE}'", line)
    before = len(problems.found)
    _check_names("student", runs["student"], runs[STUDENT_SIZE], SAME_SIZE, problems)
    if len(problems.found) == before:  # pruned from one teacher they do not differ at all
        named = runs["student"] + "' with init '" + runs["init"]
        _check_names("student", named, runs[STUDENT_SIZE], 1.0, problems)
    taught = runs[taught_N]
    _check_names("teacher", taught["teacher"], taught[TEACHER_SIZE], 1.0, problems)
    if TEACHER_LOSS in values:
        loss = values.loc[taught_N, TEACHER_LOSS]
        draw = taught["teacher"] + np.where(
            taught["teacher_seed"] > 0, " of teacher_seed " + taught["teacher_seed"].astype(str), ""
        )
        _check_names("teacher", draw, loss, None, problems)


def _check_names(
    kind: str, names: pd.Series, values: pd.Series, most: float | None, problems: Problems
) -> None:
    """Check that a name is one model: its values differ by a factor of at most `most` (None: equal)."""
    for name, same in values.dropna().groupby(names):
        low, high = same.idxmin(), same.idxmax()
        if same[high] == same[low] or (most is not None and same[high] <= most * same[low]):
            continue
        what = "losses" if most is None else "sizes"
        fix = "number its draws in a column teacher_seed" if most is None else "correct the size"
        first, second = sorted((low, high))
        problems.add(
            f"{kind} '{name}' has two {what}, {same[first]:,} in line {first} and "
            f"{same[second]:,} here; give the models different names, or {fix}",
            second,
        )


def _on_scale(runs: pd.DataFrame, values: pd.DataFrame, columns: Columns) -> pd.DataFrame:
    """Runs joined with their measured numbers, the outcome on the scale of the metric."""
    metric, value = columns.metric, values[LOSS]
    runs = runs.join(values.drop(columns=["n", "sd"]))
    runs[LOSS] = metric.to_scale(value)
    if columns.spread:
        runs["n"] = values["n"].astype(np.int64)
        runs["sd"] = metric.sd_to_scale(values["sd"], value)
    if TEACHER_LOSS in runs:  # given in some rows of a teacher, it holds in all
        per_draw = runs.groupby(["teacher", "teacher_seed"])[TEACHER_LOSS].transform("first")
        runs[TEACHER_LOSS] = per_draw.where(runs["teacher"] != NONE)
    return runs
