"""The score of a task of lm-evaluation-harness as an outcome of a run."""

from __future__ import annotations

from capgap.errors import CapgapError
from capgap.law.law_record import MetricName
from capgap.records.run_records import HarnessRecord, HarnessScore

# metrics of the harness that are shares of right answers
SHARES = ("acc", "acc_norm", "acc_mutual_info", "exact_match", "em", "f1", "mc1", "mc2", "pass@1")


def task_outcome(record: HarnessRecord, asked: str) -> tuple[str, float | None]:
    """Header and value of a task's score as an outcome; None if the harness gave no number.

    asked: task, task/metric or task/metric/filter. A share of n documents is (right + 0.5) / (n + 1),
    so that shares of 0 and 1 have a finite logit. Raises CapgapError if the task has no such score, or
    several.
    """
    task, *rest = asked.split("/")
    scores = [score for score in record.scores if score.task == task]
    found = [s for s in scores if [s.metric, s.filter][: len(rest)] == rest]
    if len(found) != 1:
        names = ", ".join(_name(score, scores) for score in scores) or "no score at all"
        why = "has several scores" if found else "has no such score"
        raise CapgapError(f"law.metric: {asked} {why}; name one of {names}")
    score = found[0]
    kind, value = _kind(score, asked), score.value
    if kind == "accuracy" and value is not None and score.documents:
        value = (value * score.documents + 0.5) / (score.documents + 1)
    return f"{kind}:{asked}", value


def _name(score: HarnessScore, scores: list[HarnessScore]) -> str:
    """The shortest name by which law.metric chooses a score."""
    name = f"{score.task}/{score.metric}"
    several = sum(other.metric == score.metric for other in scores) > 1
    return f"{name}/{score.filter}" if several else name


def _kind(score: HarnessScore, asked: str) -> MetricName:
    if score.metric in SHARES:
        return "accuracy"
    if score.metric == "perplexity":  # of tokens; those of words and bytes are other units
        return "perplexity"
    if score.metric == "bits_per_byte":
        return "bits_per_byte"
    if score.higher_is_better is None:
        raise CapgapError(
            f"law.metric: lm-eval does not state whether more or less of {asked} is better; set "
            "higher_is_better in the task, or choose another metric"
        )
    return "higher" if score.higher_is_better else "lower"
