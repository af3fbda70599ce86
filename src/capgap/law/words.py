"""Numbers and lists as the law's sentences write them."""

from __future__ import annotations

from collections.abc import Iterable

from capgap.config.counts import SUFFIXES, format_count
from capgap.law.law_record import Interval


def about(size: float) -> str:
    """A size to three digits: 412345.6 -> '412k', -11498000 -> '-11.5M'."""
    value, suffix = abs(size), ""
    for letter, factor in SUFFIXES.items():
        if float(f"{value:.3g}") >= factor:
            suffix, scaled = letter, value / factor
    text = f"{scaled if suffix else value:.3g}"
    return f"{'-' if size < 0 else ''}{text}{suffix}"


def span(interval: Interval, write=about) -> str:
    """An interval in words: '2.2 to 4.4', 'at least 2.2', 'at most 4.4' or 'without limits'."""
    match interval.low is not None, interval.high is not None:
        case True, True:
            return f"{write(interval.low)} to {write(interval.high)}"
        case True, False:
            return f"at least {write(interval.low)}"
        case False, True:
            return f"at most {write(interval.high)}"
    return "without limits"


def listed(names: Iterable[str]) -> str:
    """A list in words: 'a', 'a and b', 'a, b and c'."""
    names = list(names)
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def budget(tokens: int) -> str:
    """A token budget: 2000000 -> '2M tokens'."""
    return f"{format_count(tokens)} tokens"
