"""Words on laws that were compared: of kinds of init, of weights of the teacher's term, of metrics."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from capgap.law.law_record import Interval, LawComparison, LawRecord
from capgap.law.table.metric import METRICS, title
from capgap.reporting.report_text import interval

COMPARED_METRICS = {
    "equal": "the same best teacher by {} and by {}",
    "different": "another best teacher by {} than by {}",
    "not_told_apart": "not shown whether {} and {} have the same best teacher",
}
COMPARED_WEIGHTS = {
    "equal": "the same best teacher at the weights {} and {}",
    "different": "another best teacher at the weight {} than at {}",
    "not_told_apart": "not shown whether the weights {} and {} have the same best teacher",
}
COMPARED = {
    "equal": "the same best teacher for {} and {} students",
    "different": "another best teacher for {} than for {} students",
    "not_told_apart": "not shown whether {} and {} students have the same best teacher",
}


def compared_metrics(found: LawComparison) -> str:
    """The verdict on two metrics in a few words."""
    return COMPARED_METRICS[found.verdict].format(found.first, found.second)


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


def compared_weights(found: LawComparison) -> str:
    """The verdict on two weights of the teacher's term in a few words."""
    return COMPARED_WEIGHTS[found.verdict].format(found.first, found.second)


def compared_inits(found: LawComparison) -> str:
    """The verdict on two kinds of init in a few words."""
    return COMPARED[found.verdict].format(found.first, found.second)


def in_short(found: LawComparison, verdict: Callable[[LawComparison], str]) -> str:
    """The verdict by one of the functions above, with its reason, or with T*'s ratio alone if it is equal."""
    if found.verdict == "equal":
        return f"{verdict(found)}: the sizes differ by the factor {interval(found.ratio)}"
    return f"{verdict(found)}: {found.reason}"
