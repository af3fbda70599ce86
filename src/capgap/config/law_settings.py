"""Settings of the regression: what measures the runs, margins of equality, and runs to leave out."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field

from capgap.config.section import Section


def _from_text(value: Any) -> Any:
    """A list given on the command line, as YAML writes it."""
    if isinstance(value, str):
        try:
            return yaml.safe_load(value)
        except yaml.YAMLError:
            raise ValueError("a list as YAML writes it, like [{teacher: t78, seed: 1}]") from None
    return value


def _names(value: Any) -> Any:
    """Names of metrics, on the command line separated by commas."""
    several = isinstance(value, str) and "," in value
    return [part.strip() for part in value.split(",")] if several else value


Margin = Annotated[float, Field(ge=0)]


class Law(Section):
    """How the law is fitted."""

    confidence: float = Field(0.95, gt=0.5, lt=1, description="level of every interval")
    metric: Annotated[str | list[str] | None, BeforeValidator(_names)] = Field(
        None,
        description="metric of the runs: loss, test, a text of evaluate.texts or a task of the "
        "harness; of a table, loss, perplexity, error, accuracy, bits_per_byte, higher, lower or the name "
        "of a column. The first of several leads and the others are compared with it; with one, or if "
        "not set, all others that were measured are compared",
    )
    exclude: Annotated[list[dict[str, str | int | float]], BeforeValidator(_from_text)] = Field(
        default_factory=list,
        description="runs to leave out, each by its columns, for example [{teacher: t78, seed: 1}]",
    )
    tie_nats: float = Field(
        0.005, ge=0, description="teachers this close to the best count as equally good, nats"
    )
    tie_logits: float = Field(
        0.02, ge=0, description="the same for error and accuracy, logits (half a point at 50 %)"
    )
    tie_bits_per_byte: float = Field(
        0.002, ge=0, description="the same for bits per byte of a text"
    )
    tie_points: float = Field(
        0.0, ge=0, description="the same for other scores, in their own units"
    )
    margins: Annotated[dict[str, Margin], BeforeValidator(_from_text)] = Field(
        default_factory=dict,
        description="the same for single metrics by name, on the scale on which the law is fitted, for "
        "example {news: 0.001}",
    )
    ratio_margin: float = Field(
        0.25, gt=0, description="share by which T*/S may differ from the published one and be equal"
    )
    exponent_margin: float = Field(
        0.15, gt=0, description="difference up to which two exponents count as equal"
    )
    teacher_weight: float | None = Field(
        None,
        gt=0,
        le=1,
        description="weight of the teacher's term whose law comes first, if the runs have several; if not "
        "set, distill.teacher_weight of a study and the middle one of a table",
    )
    published_slope: float = Field(2.5, gt=0, description="T*/S the fit is compared with")
    size: Literal["non_embedding", "total", "forward_flops"] = Field(
        "non_embedding",
        description="what counts the size of a model: parameters without or with embeddings, or "
        "FLOPs of a forward pass",
    )
    noise_sd: float | None = Field(
        None,
        gt=0,
        description="standard deviation between runs that differ in the order of the data alone, "
        "nats; if not set, it is estimated",
    )

    def metrics(self) -> list[str]:
        """Names of the metrics, the first of which comes first; none if not set."""
        return [self.metric] if isinstance(self.metric, str) else list(self.metric or ())
