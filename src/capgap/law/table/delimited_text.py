"""
Text with separated fields, as it comes from anywhere, to rows of text.

The separator is the one of comma, semicolon and tab that splits the header into the most columns. A
row with more or fewer fields than the header is a problem with its line number: readers that fill up
or cut off such rows shift the columns.
"""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from capgap.errors import CapgapError, at_most

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}
SHOWN = 20  # problems in one message


@dataclass
class Problems:
    """All that is wrong with a table, by line (0 for the table as a whole)."""

    path: Path | None  # None for a DataFrame
    separator: str = ","
    found: list[tuple[int, str]] = field(default_factory=list)
    header: list[str] = field(default_factory=list)  # shown if a column is missing

    def add(self, text: str, line: int = 0) -> None:
        """Note a problem of a line; the header is line 1, and the first row of a DataFrame line 2."""
        self.found.append((line, text))

    def forget(self, lines: set[int]) -> None:
        """Drop the problems of lines that are left out."""
        self.found = [problem for problem in self.found if problem[0] not in lines]

    def check(self) -> None:
        """Raise one CapgapError with all problems by line, if there are any."""
        if not self.found:
            return
        lines: dict[str, list[int]] = {}  # that have the same problem
        for line, text in sorted(self.found, key=lambda problem: problem[0]):
            lines.setdefault(text, []).append(line)
        texts = at_most([f"{_lines(lines[text])}{text}" for text in lines], SHOWN)
        if self.path is not None:
            head = f"{self.path}, read as separated by {SEPARATORS[self.separator]}"
            head += f" into the columns {', '.join(self.header)}" if self.header else ""
        else:
            head = "the DataFrame of runs (its first row counts as line 2)"
        if len(texts) == 1:
            raise CapgapError(f"{head}, {texts[0]}")
        raise CapgapError("\n  ".join([f"{head}, has {len(self.found)} problems:", *texts]))


def _lines(numbers: list[int]) -> str:
    """Lines in words: 'lines 2, 3, 4 and 27 more: '; nothing for the table as a whole."""
    if not any(numbers):
        return ""
    shown = ", ".join(map(str, numbers[:3])) + (
        f" and {len(numbers) - 3} more" if len(numbers) > 3 else ""
    )
    return f"line{'s' if len(numbers) > 1 else ''} {shown}: "


def read_fields(path: Path) -> tuple[list[str], list[tuple[int, list[str]]], Problems]:
    """(header, rows as (line, fields), problems of rows with a wrong number of fields).

    Blank rows are skipped, and so are columns without a header that are empty throughout. Raises
    CapgapError for a file that is absent, not UTF-8, empty, or has nothing but a header.
    """
    try:
        with path.open("rb") as file:
            packed = file.read(4) == b"PK\x03\x04"
        if packed:
            raise CapgapError(
                f"{path}: a spreadsheet or another packed file, not text; save the table as CSV"
            )
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise CapgapError(f"{path}: no such file; check the path") from None
    except UnicodeDecodeError as error:
        raise CapgapError(f"{path}: not UTF-8 text ({error.reason}); save it as UTF-8") from None
    first = next((line for line in text.splitlines() if line.strip()), "")
    if not first:
        raise CapgapError(f"{path}: empty; a table has a header and a row for every run")
    if first.lstrip()[0] in "[{":
        raise CapgapError(f"{path}: JSON, not a table; save it as CSV, a row for every run")
    separator = max(SEPARATORS, key=lambda mark: len(next(csv.reader([first], delimiter=mark))))
    problems = Problems(path, separator)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True)
    try:
        lines = [(reader.line_num, [entry.strip() for entry in row]) for row in reader]
    except csv.Error as error:
        raise CapgapError(
            f"{path}, line {reader.line_num}: {error}; save the table again"
        ) from None
    lines = [(number, row) for number, row in lines if any(row)]
    (_, header), rows = lines[0], lines[1:]
    if not rows:
        raise CapgapError(f"{path}: no runs, only a header; add a row for every run")
    for number, row in rows:
        if len(row) != len(header):
            problems.add(_shifted(row, header, separator), number)
    rows = [(number, row) for number, row in rows if len(row) == len(header)]
    empty = [i for i, name in enumerate(header) if not name and not any(row[i] for _, row in rows)]
    keep = [i for i in range(len(header)) if i not in empty]
    return [header[i] for i in keep], [(n, [row[i] for i in keep]) for n, row in rows], problems


def frame_fields(
    frame: pd.DataFrame,
) -> tuple[list[str], list[tuple[int, list[str]]], Problems]:
    """What `read_fields` returns, of a table in memory; its index is not read.

    Raises CapgapError for a frame without rows.
    """
    if frame.empty:
        raise CapgapError("the DataFrame of runs has no rows; a table has a row for every run")
    columns = [[_text_of(value) for value in frame.iloc[:, i]] for i in range(frame.shape[1])]
    rows = list(enumerate(map(list, zip(*columns, strict=True)), 2))
    return [str(name).strip() for name in frame.columns], rows, Problems(None)


def _text_of(value: object) -> str:
    """A value as the text that is read back as the same value; missing ones are empty."""
    if value is None or value is pd.NA or value != value:
        return ""
    if isinstance(value, float | np.floating):
        value = float(value)
        return f"{value:.0f}" if value.is_integer() and abs(value) < 1e18 else repr(value)
    return str(value).strip()


def _shifted(row: list[str], header: list[str], separator: str) -> str:
    text = f"{len(row)} field{'s' if len(row) != 1 else ''}, but the header has {len(header)}"
    if len(row) < len(header):
        return (
            f"{text}; fill in what is missing, with nothing between two separators if it is empty"
        )
    if not any(row[len(header) :]):
        return f"{text}: a separator at the end of the row shifts the columns; remove it"
    if separator == ",":
        return f"{text}; write numbers without commas in them, or put them in quotes"
    return f"{text}; remove what is too much"


def parse_number(text: str, separator: str) -> float:
    """A number as people write it: 3.5, 57.2% (0.572), 1,234.5, and 3,5 unless commas separate.

    Raises ValueError for anything else.
    """
    share = text.endswith("%")
    digits = text.removesuffix("%").strip()
    if re.fullmatch(r"\d{1,3}(,\d{3})+\.\d+", digits):
        digits = digits.replace(",", "")
    elif separator != "," and re.fullmatch(r"[-+]?\d+,\d+([eE][-+]?\d+)?", digits):
        digits = digits.replace(",", ".")
    if "_" in digits:
        raise ValueError(text)
    return float(digits) / 100 if share else float(digits)
