"""Read `runs.csv`, the table of finished runs, and refuse what the law cannot be fitted on."""

from __future__ import annotations

import difflib
from pathlib import Path

import numpy as np
import pandas as pd

from capgap.config.run_grid import NONE, arm_of
from capgap.errors import CapgapError
from capgap.records.run_records import RunRow

ARMS = ("main", "no_teacher", "random_init", "cross_teacher")
SEEDS = ["seed", "teacher_seed", "init_seed"]
KEY = ["student", "init", "teacher", "tokens", *SEEDS]  # what makes a run a different run
TEXT = ("student", "init", "teacher", "arm")
COUNTS = (
    *SEEDS,
    "student_params_non_embedding",
    "teacher_params_non_embedding",
    "tokens",
    "trunk_tokens",
)
REQUIRED = [name for name, field in RunRow.model_fields.items() if field.is_required()]


def read_runs(path: str | Path) -> pd.DataFrame:
    """Read a table of runs: one row a run, columns as in RunRow, sorted by KEY.

    Columns with a default may be missing: `arm` is then derived from init and teacher, the others
    are left out. Losses are in nats per token, sizes in parameters without embeddings.
    Raises CapgapError naming the line and column of what is missing, unknown, not a number,
    negative, not finite, repeated or contradictory.
    """
    path = Path(path)
    try:
        text = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8")
    except FileNotFoundError:
        raise CapgapError(f"{path}: no such file; check the path") from None
    except UnicodeDecodeError as error:
        raise CapgapError(f"{path}: not UTF-8 text ({error.reason}); save it as UTF-8") from None
    except (pd.errors.EmptyDataError, pd.errors.ParserError) as error:
        raise CapgapError(f"{path}: not a table of comma-separated values: {error}") from None
    _check_columns(path, list(text.columns))
    if text.empty:
        raise CapgapError(f"{path}: no runs, only a header")
    runs = pd.DataFrame({name: _column(path, name, text[name]) for name in text.columns})
    if "arm" not in runs:
        runs["arm"] = [arm_of(i, t) for i, t in zip(runs["init"], runs["teacher"], strict=True)]
    for name in SEEDS[1:]:
        runs[name] = runs.get(name, 0)
    _check_rows(path, runs)
    return runs.sort_values(KEY, kind="stable", ignore_index=True)


def main_arm(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs the law is fitted on; CapgapError if there is none."""
    main = runs[runs["arm"] == "main"]
    if main.empty:
        counts = ", ".join(f"{n} {arm}" for arm, n in sorted(runs["arm"].value_counts().items()))
        raise CapgapError(
            f"no run of the main arm in the table ({counts}); the law needs students pruned and "
            "distilled from the same teacher (init pruned-<teacher>), or arm 'main' set by hand"
        )
    return main


def train_flops(student: float, teacher: float, tokens: float) -> float:
    """Training compute of one distillation: 6 S D + 2 T D, teacher pretraining free."""
    return tokens * (6.0 * student + 2.0 * teacher)


def teacher_sizes(runs: pd.DataFrame) -> dict[str, int]:
    """Parameters without embeddings of every teacher in the table, smallest first."""
    taught = runs[runs["teacher"] != NONE]
    sizes = taught.groupby("teacher")["teacher_params_non_embedding"].first()
    return {name: int(sizes[name]) for name in sorted(sizes.index, key=lambda n: (sizes[n], n))}


def family_monotone(runs: pd.DataFrame) -> bool | None:
    """Whether validation loss falls strictly with size over all teachers; None if not known."""
    name = "teacher_val_loss_nats_per_token"
    taught = runs[runs["teacher"] != NONE]
    if name not in runs or taught[name].isna().any() or taught["teacher"].nunique() < 2:
        return None
    loss = taught.groupby("teacher")[name].first()
    return bool((np.diff([loss[teacher] for teacher in teacher_sizes(runs)]) < 0).all())


def _check_columns(path: Path, found: list[str]) -> None:
    """Names only: pandas itself renames a repeated column to 'name.1', which is then unknown."""
    known = list(RunRow.model_fields)
    problems = [f"column '{name}' is missing" for name in REQUIRED if name not in found]
    for name in found:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f" (did you mean '{close[0]}'?)" if close else ""
            problems.append(f"unknown column '{name}'{hint}")
    if problems:
        raise CapgapError(f"{path}: {'; '.join(problems)}. Columns are those of RunRow: {known}")


def _column(path: Path, name: str, text: pd.Series) -> pd.Series:
    """One column converted to its type; empty is allowed where RunRow allows None."""
    text = text.str.strip()
    empty = text == ""
    if empty.any() and (
        name in TEXT or (name in REQUIRED and name != "teacher_params_non_embedding")
    ):
        raise CapgapError(f"{_at(path, empty)}: {name} is empty")
    if name in TEXT:
        return text
    values = pd.to_numeric(text.where(~empty), errors="coerce").astype(float)
    bad = ~np.isfinite(values) & ~empty
    if bad.any():
        raise CapgapError(
            f"{_at(path, bad)}: {name} is '{text[bad].iloc[0]}', not a finite number; "
            "repeat the run or leave its row out"
        )
    least = 0 if name in SEEDS else np.nextafter(0, 1)
    bad = values < least
    if bad.any():
        raise CapgapError(
            f"{_at(path, bad)}: {name} is {text[bad].iloc[0]}, "
            f"but must be {'at least' if name in SEEDS else 'greater than'} 0"
        )
    if name not in COUNTS:
        return values
    bad = (values % 1 != 0) & ~empty
    if bad.any():
        raise CapgapError(f"{_at(path, bad)}: {name} is {text[bad].iloc[0]}, not a whole number")
    return values if empty.any() else values.astype(np.int64)


def _check_rows(path: Path, runs: pd.DataFrame) -> None:
    repeated = runs.duplicated(KEY)
    if repeated.any():
        row = runs[repeated].iloc[0]
        run = ", ".join(f"{name} {row[name]}" for name in KEY)
        raise CapgapError(f"{_at(path, repeated)}: the run ({run}) stands twice; keep one row")
    unknown = ~runs["arm"].isin(ARMS)
    if unknown.any():
        raise CapgapError(
            f"{_at(path, unknown)}: arm is '{runs['arm'][unknown].iloc[0]}', not one of {ARMS}"
        )
    taught = runs["teacher"] != NONE
    odd = taught == runs["teacher_params_non_embedding"].isna()
    if odd.any():
        raise CapgapError(
            f"{_at(path, odd)}: teacher_params_non_embedding must be given with a teacher and "
            f"empty where teacher is '{NONE}', got teacher '{runs['teacher'][odd].iloc[0]}'"
        )
    odd = (runs["arm"] == "main") & ~taught
    if odd.any():
        raise CapgapError(f"{_at(path, odd)}: a run of the main arm needs a teacher, got '{NONE}'")
    for name in ("teacher_params_non_embedding", "teacher_val_loss_nats_per_token"):
        if name in runs:
            draw = ["teacher"] if "params" in name else ["teacher", "teacher_seed"]
            several = runs[taught].groupby(draw)[name].unique()
            for (teacher, *_), values in several.items():
                if len(values) > 1:
                    raise CapgapError(
                        f"{path}: teacher '{teacher}' has {len(values)} values of {name}, "
                        f"{values[0]} and {values[1]}; a teacher's name stands for one model"
                    )


def _at(path: Path, rows: pd.Series) -> str:
    """File and line of the first marked row; the header is line 1."""
    return f"{path}, line {int(np.argmax(rows.to_numpy())) + 2}"
