"""What does not fit together in the texts, the tasks and the metrics of a study."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from capgap.config.harness_settings import task_of

if TYPE_CHECKING:
    from capgap.config.study import Study

TEXT_NAME = r"[a-z0-9][a-z0-9_-]*"
MEASURED = ("loss", "test")  # that every study measures
# names with another meaning in a table of runs
TAKEN = (
    *(*MEASURED, "validation", "perplexity", "error"),
    *("accuracy", "bits_per_byte", "higher", "lower"),
)


def metric_problems(study: Study) -> Iterator[str]:
    """Problems of evaluate.texts and of the names in law.metric and law.margins, one sentence each."""
    texts = study.evaluate.texts
    shots = study.harness.shots() if study.harness else {}
    for name in texts:
        if not re.fullmatch(TEXT_NAME, name) or name in TAKEN:
            yield (
                f"evaluate.texts.{name}: a name has lower-case letters, digits, hyphens and underscores, and "
                f"is none of {', '.join(TAKEN)}"
            )
        if name in shots:
            yield f"evaluate.texts.{name}: a task of the harness has this name; give the text another one"
    foreign = [name for name in study.teachers if study.teacher_tokenizer(name)]
    if texts and foreign:
        yield (
            f"evaluate.texts: {', '.join(foreign)} read another tokenizer than the students, and further texts "
            "are packed with theirs alone; leave the texts or these teachers out"
        )
    known = [*MEASURED, *texts, *shots]
    metrics = study.law.metrics()
    for name in metrics:
        if name not in (*MEASURED, *texts) and task_of(name) not in shots:
            yield (
                f"law.metric: '{name}' is neither a loss, a text of evaluate.texts nor a task of the "
                f"harness; there are {', '.join(known)}; add it to evaluate.texts or harness.tasks"
            )
    for name in metrics:
        if metrics.count(name) > 1:
            yield f"law.metric: {name} occurs twice; leave one out"
            break
    for name in study.law.margins:
        if name not in ("validation", *known, *metrics):
            yield f"law.margins.{name}: no metric has this name; there are validation, {', '.join(known)}"
