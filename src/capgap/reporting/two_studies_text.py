"""The comparison of two laws in words."""

from __future__ import annotations

from collections import Counter

from capgap.law.number_text import bracketed, listed
from capgap.law.verdicts.study_difference import Comparison, Quantity, Shared
from capgap.reporting.report_text import interval, number, sentence

LAW = 4  # quantities of the law, before those of single students
VERDICTS = {
    "equal": "equal within the margin",
    "different": "different",
    "different_within_margin": "different, perhaps by less than the margin",
    "not_told_apart": "cannot be told apart",
    "not_known": "not known in both",
}


def headline(found: Comparison, ours: str, theirs: str) -> str:
    """Whether the laws differ, in one sentence."""
    if found.same_runs:
        return f"{ours} and {theirs} were fitted on the same runs"
    known = [q for q in found.quantities if q.verdict != "not_known"]
    differ = [q for q in known if q.verdict in ("different", "different_within_margin")]
    if not known:
        return f"{ours} and {theirs} have no quantity that both determine"
    if differ:
        return f"The laws of {ours} and {theirs} differ in {len(differ)} of {len(known)} quantities"
    if all(q.verdict == "equal" for q in known):
        return f"{ours} and {theirs} follow the same law within the margins"
    return f"Nothing shows that the laws of {ours} and {theirs} differ"


def summary(found: Comparison) -> str:
    """The quantities of the law by verdict, then how many single optima have each verdict."""
    parts = []
    for verdict, words in VERDICTS.items():
        names = [q.name for q in found.quantities[:LAW] if q.verdict == verdict]
        if names:
            be = "" if words.startswith("cannot") else "is " if len(names) == 1 else "are "
            parts.append(f"{sentence(listed(names))} {be}{words}.")
    single = Counter(q.verdict for q in found.quantities[LAW:])
    if single:
        counts = listed(f"{single[v]} {words}" for v, words in VERDICTS.items() if single[v])
        parts.append(
            f"Of the {single.total()} best sizes T* of students and budgets in both, {counts}."
        )
    return " ".join(parts)


def noise(found: Comparison) -> str:
    """What common runs and teachers mean for the intervals."""
    shared = found.shared
    if found.same_runs:
        return (
            "Both laws were fitted on the same runs, so noise cannot make them differ: every difference "
            "comes from the settings or the version of the fit."
        )
    if shared.runs or shared.teachers:
        parts = []
        if shared.runs:
            parts.append(f"{shared.runs} runs")
        if shared.teachers:
            parts.append(f"{shared.teachers} trained teachers")
        return (
            f"The tables have {listed(parts)} in common, so part of their noise is the same. The "
            "intervals of the differences ignore that and are too wide: a difference that they show is "
            "real, but there may be more."
        )
    return (
        "The tables have no run and no trained teacher in common, and the intervals of the differences "
        "take their noise as independent. If both studies use the same text or the same recipe, part of "
        "what they share, such as its biases, is in neither interval."
    )


def value(estimate, quantity: Quantity) -> str:
    """One estimate with its interval."""
    return "not known" if estimate is None else interval(estimate, as_size=quantity.as_size)


def difference(quantity: Quantity) -> str:
    """The difference, or the ratio as a factor."""
    if quantity.difference is None:
        return "–"
    found = quantity.difference
    if found.low == found.high and found.low is not None:
        text = number(found.value, 2)
    elif quantity.as_ratio:
        text = bracketed(found, "{:.2g}".format)
    else:
        text = interval(found)
    return f"× {text}" if quantity.as_ratio else text


def margin(quantity: Quantity) -> str:
    """What counts as equal."""
    if quantity.as_ratio:
        return f"× {1 / (1 + quantity.margin):.2g} to {1 + quantity.margin:.3g}"
    return f"± {quantity.margin:g}"


def only(shared: Shared, ours: str, theirs: str) -> list[str]:
    """What only one of the tables has, as sentences."""
    found = []
    for name, parts in ((ours, shared.only_ours), (theirs, shared.only_theirs)):
        words = [
            f"the {what if len(values) > 1 else what[:-1]} {listed(values)}"
            for what, values in parts.items()
            if values
        ]
        if words:
            found.append(f"Only {name} has {listed(words)}.")
    if shared.changed:
        found.append(
            f"{shared.changed} runs have the same names and seeds in both tables and other losses."
        )
    return found
