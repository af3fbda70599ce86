"""Numbers, intervals and lists as text, for messages, notes and the report."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from capgap.config.counts import SUFFIXES, format_count
from capgap.law.law_record import Interval

LAW_NAMES = {
    "power_law": "the power law T* ~ S^a D^b",
    "two_causes": "the law of two causes",
    "busbridge": "the law of Busbridge et al.",
    "p2": "the P2 law",
}


def about(size: float) -> str:
    """A size to three digits: 412345.6 -> '412k', -11498000 -> '-11.5M'."""
    value, suffix = abs(size), ""
    for letter, factor in SUFFIXES.items():
        if float(f"{value:.3g}") >= factor:
            suffix, scaled = letter, value / factor
    text = f"{scaled if suffix else value:.3g}"
    return f"{'-' if size < 0 else ''}{text}{suffix}"


def span(interval: Interval) -> str:
    """An interval of sizes in words: '2.2M to 4.4M', 'at least 2.2M', 'at most 4.4M', 'without limits'."""
    low, high = (None if end is None else about(end) for end in (interval.low, interval.high))
    match low, high:
        case str(), str():
            return f"{low} to {high}"
        case str(), None:
            return f"at least {low}"
        case None, str():
            return f"at most {high}"
    return "without limits"


def bracketed(found: Interval, text: Callable[[float], str] = "{:.2f}".format) -> str:
    """An estimate with its interval: '0.29 [0.02, 0.56]', with 'no limit' on an open side."""
    low, high = ("no limit" if end is None else text(end) for end in (found.low, found.high))
    return f"{text(found.value)} [{low}, {high}]"


def listed(names: Iterable[str]) -> str:
    """A list in words: 'a', 'a and b', 'a, b and c'."""
    names = list(names)
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def two_digits(value: float) -> int:
    """A round number near a size: 41248 -> 41000."""
    return round(float(f"{value:.2g}"))


def budget(tokens: int) -> str:
    """A token budget: 2000000 -> '2M tokens'."""
    return f"{format_count(tokens)} tokens"
