"""Counts written as 60k, 2.5M, 7B, 1,000,000 or 3e9."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

SUFFIXES = {"k": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
FACTORS = {"": 1} | {suffix.lower(): factor for suffix, factor in SUFFIXES.items()}
COUNT = re.compile(
    r"\s*(\d{1,3}(?:(?:,\d{3})+|(?:_\d{3})+|(?: \d{3})+)|\d+)(\.\d+)?(e\+?\d{1,2})?\s*([kmbt]?)\s*",
    re.IGNORECASE,
)


def parse_count(value: Any) -> Any:
    """Turn '60k', '2.5M', '7B', '1,000,000' or '3e9' into an integer; leave numbers as they are.

    The case of a suffix does not matter. Raises ValueError for text that is no count.
    """
    if not isinstance(value, str):
        return value
    match = COUNT.fullmatch(value)
    if not match:
        raise ValueError(
            "a count is an integer, or a number with k, M, B or T, like 60k, 7B or 1,000,000"
        )
    whole, fraction, exponent, suffix = match.groups(default="")
    digits = re.sub(r"[,_ ]", "", whole)
    count = Decimal(f"{digits}{fraction}{exponent}") * FACTORS[suffix.lower()]
    if count != int(count):
        raise ValueError("a count is a whole number")
    return int(count)


def format_count(count: int) -> str:
    """A count as a short name, exactly: 60000 -> '60k', 2500000 -> '2.5M', 128116700 -> '128.1167M'.

    The largest suffix that needs at most six decimals is taken, and the digits alone if none does.
    """
    for suffix, factor in reversed(SUFFIXES.items()):
        if count >= factor:
            short = (Decimal(count) / factor).normalize()
            if -short.as_tuple().exponent <= 6:
                return f"{short:f}{suffix}"
            return str(count)
    return str(count)
