"""Counts as people write them: 60k, 2.5M, 3B."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

SUFFIXES = {"k": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}


def parse_count(value: Any) -> Any:
    """Turn '60k', '2.5M', '3B' into an integer; leave numbers to the validator that follows."""
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kMBT]?)\s*", value)
        if not match:
            raise ValueError("a count is an integer, or a number with k, M, B or T, like 60k")
        count = Decimal(match[1]) * SUFFIXES.get(match[2], 1)
        if count != int(count):
            raise ValueError("a count is a whole number")
        return int(count)
    return value


def format_count(count: int) -> str:
    """Write a count as a name, without loss: 60000 -> '60k', 2500000 -> '2.5M', 61437 -> '61437'."""
    for suffix, factor in reversed(SUFFIXES.items()):
        if count >= factor:
            short = (Decimal(count) / factor).normalize()
            if abs(short.as_tuple().exponent) <= 3:
                return f"{short:f}{suffix}"
    return str(count)
