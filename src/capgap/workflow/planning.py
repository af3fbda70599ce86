"""The one parameter of a rule: a stage's settings and the digest of its source, as JSON."""

from __future__ import annotations

import json

from capgap.config import Section
from capgap.workflow.digest import source_digest


def spec(stage: str, settings: Section | None = None) -> str:
    """Sorted JSON, so that Snakemake compares one text in which every value has its name."""
    data = {"source": source_digest(f"capgap.{stage}")}
    if settings is not None:
        data["settings"] = settings.model_dump(mode="json", exclude_none=True)
    return json.dumps(data, sort_keys=True)
