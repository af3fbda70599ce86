"""
The metric of the runs, and the scale on which the law is fitted: lower is better, and differences add up.

  loss           nats per token, as it is
  perplexity     its logarithm, which is the loss in nats per token
  error          log(error / (1 - error)), the logit of a share of wrong answers
  accuracy       the logit of 1 - accuracy
  bits_per_byte  as it is; comparable between tokenizers
  higher         the negative of a score of which more is better, such as BLEU, in points
  lower          a score of which less is better, as it is, in points

docs/tables.md has the reasons. A table can hold several outcomes of a run. One is plain, under a header like
`loss`; the others have headers `<metric>:<name>`, such as `accuracy:arc_easy`, and are chosen by name. The
plain one is called validation if it is not the chosen one, and test_loss_nats_per_token is called test.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from capgap.config import Law
from capgap.law.law_record import MetricName

Unit = Literal["nats per token", "logits", "bits per byte", "points"]
VALIDATION, TEST = "validation", "test"  # names of the losses that every study measures
NAMED = re.compile(rf"({'|'.join(get_args(MetricName))}):(\S.*)")  # headers of named outcomes


@dataclass(frozen=True)
class Metric:
    """One way to measure a run."""

    name: MetricName
    unit: Unit  # of the scale on which the law is fitted
    noun: str  # the value on that scale, as a sentence names it

    @property
    def short(self) -> str:
        """The unit of differences, in a word."""
        return self.unit.removesuffix(" per token")

    def axis(self, outcome: str | None = None) -> str:
        """Title of an axis; outcome: name of what was measured, None for the plain one."""
        name = title(self, outcome) if self.name == "loss" else self.noun
        if outcome is not None and self.name != "loss":
            name += f" of {outcome}"
        unit = f", {self.unit}" if self.unit != "logits" else ""
        return f"{name[0].upper()}{name[1:]}{unit}"

    @property
    def above_axis(self) -> str:
        """Title of an axis of differences to the best teacher."""
        return f"{self.noun[0].upper()}{self.noun[1:]} above the best teacher, {self.unit}"

    def problem(self, value: float) -> str | None:
        """Why a value cannot be one of this metric, with the fix; None if it can."""
        if not np.isfinite(value):
            return "not a finite number; repeat the run or leave its row out"
        if self.name in ("loss", "bits_per_byte") and value <= 0:
            return (
                f"but {'a loss' if self.name == 'loss' else 'bits per byte'} must be greater than 0"
            )
        if self.name == "perplexity" and value <= 1:
            return "but a perplexity must be greater than 1"
        if self.unit == "logits" and value > 1:
            return f"but an {self.name} lies between 0 and 1; write 0.57 or 57% instead of 57"
        if self.unit == "logits" and not 0 < value < 1:
            return (
                f"but an {self.name} of exactly 0 or 1, or below 0, has no logit; give "
                "(right + 0.5) / (questions + 1) instead"
            )
        return None

    def to_scale(self, value: np.ndarray | float) -> np.ndarray | float:
        """Values of the metric on the scale of the fit, on which lower is better."""
        if self.name in ("loss", "bits_per_byte", "lower"):
            return value
        if self.name == "higher":
            return -np.asarray(value)
        if self.name == "perplexity":
            return np.log(value)
        share = value if self.name == "error" else 1 - np.asarray(value)
        return np.log(share) - np.log1p(-share)

    def sd_to_scale(self, sd: float, value: float) -> float:
        """A standard deviation about a value, on the scale of the fit (first order)."""
        if self.name not in ("perplexity", "error", "accuracy"):
            return sd
        return sd / value if self.name == "perplexity" else sd / (value * (1 - value))


METRICS: dict[str, Metric] = {
    "loss": Metric("loss", "nats per token", "loss"),
    "perplexity": Metric("perplexity", "nats per token", "log perplexity"),
    "error": Metric("error", "logits", "logit of the error"),
    "accuracy": Metric("accuracy", "logits", "logit of 1 - accuracy"),
    "bits_per_byte": Metric("bits_per_byte", "bits per byte", "bits per byte"),
    "higher": Metric("higher", "points", "negative score"),
    "lower": Metric("lower", "points", "score"),
}


def measure_of(settings: Law) -> Metric:
    """The metric of a table's outcome by the settings that belong to it (`RunTable.settings`)."""
    names = settings.metrics()
    return METRICS[names[0]] if names and names[0] in METRICS else METRICS["loss"]


def title(metric: Metric, name: str | None) -> str:
    """An outcome in words: 'validation loss', 'bits per byte of news', 'accuracy of arc_easy'."""
    if name is None or name in (VALIDATION, TEST):
        return f"{name or VALIDATION} {metric.name.replace('_', ' ')}"
    what = {"higher": "score", "lower": "score"}.get(metric.name, metric.name.replace("_", " "))
    return f"{what} of {name.removesuffix(f'/{metric.name}')}"


def margin_of(settings: Law, metric: Metric, name: str | None) -> float:
    """The margin of equally good teachers on the scale of an outcome."""
    own = settings.margins.get(name or VALIDATION)
    return getattr(settings, MARGINS[metric.unit]) if own is None else own


MARGINS = {
    "nats per token": "tie_nats",
    "logits": "tie_logits",
    "bits per byte": "tie_bits_per_byte",
    "points": "tie_points",
}
