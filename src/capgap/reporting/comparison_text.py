"""Comparisons of laws in words: by kind of init, weight of the teacher's term, or metric."""

from __future__ import annotations

from typing import NamedTuple

from capgap.law.law_record import Interval, LawComparison, LawRecord
from capgap.law.table.metric import METRICS, title
from capgap.reporting.report_text import interval

COMPARED = {  # by what was compared and by verdict
    "metric": {
        "equal": "the same best teacher by {} and by {}",
        "different": "different best teachers by {} and by {}",
        "not_told_apart": "not shown whether {} and {} have the same best teacher",
    },
    "weight": {
        "equal": "the same best teacher at the weights {} and {}",
        "different": "different best teachers at the weights {} and {}",
        "not_told_apart": "not shown whether the weights {} and {} have the same best teacher",
    },
    "init": {
        "equal": "the same best teacher for {} and {} students",
        "different": "different best teachers for {} and {} students",
        "not_told_apart": "not shown whether {} and {} students have the same best teacher",
    },
}


class MetricRow(NamedTuple):
    """The law by one metric, in words."""

    title: str
    ratio: str
    by_size: str
    by_tokens: str
    noise: str
    tie: str
    unit: str


def measured_by(law: LawRecord) -> str:
    """The outcome that a law is fitted on, in words."""
    return title(METRICS[law.metric], law.outcome)


def metric_rows(law: LawRecord) -> list[MetricRow]:
    """The law and those of the other metrics, a row each."""

    def text(found: Interval | None) -> str:
        return "not determined" if found is None else interval(found)

    return [
        MetricRow(
            name,
            text(one.ratio_at_25_tokens_per_param),
            text(one.exponents.by_size),
            text(one.exponents.by_tokens),
            next((f"{part.sd.value:.2g}" for part in one.noise if part.name == "order"), "–"),
            f"{tie:g}",
            METRICS[one.metric].unit,
        )
        for name, tie, one in [
            (measured_by(law), law.tie_nats, law),
            *((other.title, other.tie, other) for other in law.metric_laws),
        ]
    ]


def comparisons(law: LawRecord) -> dict[str, list[LawComparison]]:
    """The comparisons of a law by what was compared, a key of `COMPARED`."""
    return {
        "init": law.init_comparisons,
        "metric": law.metric_comparisons,
        "weight": law.weight_comparisons,
    }


def compared(found: LawComparison, what: str) -> str:
    """The verdict of a comparison in a few words; what: see `comparisons`."""
    return COMPARED[what][found.verdict].format(found.first, found.second)


def in_short(found: LawComparison, what: str) -> str:
    """The verdict with its reason, or with the ratio of the sizes T* alone if it is equal."""
    reason = found.reason
    if found.verdict == "equal":
        reason = f"T* differs by the factor {interval(found.ratio)}"
    return f"{compared(found, what)}: {reason}"
