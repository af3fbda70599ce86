"""
Numbers as text, and the report's sentences that depend on what was found.

Pure functions of the records; the text names the units: sizes are parameters without
embeddings, losses nats per token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, get_args

from capgap.config.run_grid import NONE, pruned_from
from capgap.law.answers.answer_records import FinalRecord, Recommendation
from capgap.law.law_record import Interval, LawRecord, Optimum, RivalFit, RivalName, Score
from capgap.law.number_text import LAW_NAMES, about, bracketed, listed
from capgap.law.table.metric import METRICS
from capgap.records.run_records import HarnessRecord, HarnessScore, RunRow

SUPERSCRIPTS = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")
ARMS = {
    "main": "own teacher (main arm)",
    "no_teacher": "no teacher",
    "cross_teacher": "another teacher’s init",
    "random_init": "random init",
    "given": "given student",
}
BASES = LAW_NAMES | {"line": "the line", "nearest_student": "the nearest student of the grid"}
LAWS = LAW_NAMES | {
    "ratio": "one constant ratio T*/S",
    "least_damage": "the pruned init with the lowest loss",
    "fixed_ratio": "the published ratio",
    "next_size_up": "the next size up",
    "largest": "the largest teacher",
    "no_teacher": "no teacher",
    "chance": "a teacher at random",
}
CAUSES = {
    "init": "the pruned init, not the teacher",
    "teacher": "the teacher",
    "both": "the init and the teacher",
    "unknown": "not known",
}
CLAIMS = {
    "interior": "A best teacher exists inside the range tried",
    "grows": "It grows with the student",
    "proportional": "It grows in proportion to the student at equal tokens per parameter",
    "ratio": "It is the published multiple of the student",
    "tokens": "It moves with the training tokens",
}
ANSWERS = {"yes": "yes", "no": "no", "unknown": "not settled"}
NOISE = {
    "order": "order of the data",
    "block": "order of the data, shared by runs with the same seed",
    "trunk": "stable training phase that budgets share",
    "init": "pruned init",
    "teacher": "teacher",
    "scatter": "scatter of T* between students",
    "curvature": "curvature between students",
    "misfit": "misfit of the curve",
}
NOISE_SOURCES = {
    "replicas": "replicas in these runs",
    "residuals": "residuals of these runs",
    "prior": "assumed, from replicas of the default study",
    "stated": "stated in the settings",
}


class Passage(NamedTuple):
    """A paragraph of the report, of which the terminal shows the beginning."""

    short: str
    rest: str = ""

    @property
    def full(self) -> str:
        """All of it."""
        return f"{self.short} {self.rest}".strip()


def arm_name(arm: str) -> str:
    """Name of an arm for a reader; unknown arms keep theirs."""
    return ARMS.get(arm, arm.replace("_", " "))


def size(count: float) -> str:
    """A count to three digits, with a true minus sign: 442880 -> '443k'."""
    return about(count).replace("-", "−")


def number(value: float, decimals: int) -> str:
    """A number with a true minus sign and without '-0.0'."""
    text = f"{value:.{decimals}f}"
    return text.replace("-", "−") if float(text) else text.removeprefix("-")


def nats(loss: float) -> str:
    """A loss in nats per token: three decimals, about the noise between seeds."""
    return number(loss, 3)


def flops(value: float) -> str:
    """A FLOP count: 2.13e12 -> '2.1 × 10¹²'."""
    return _power(value, 1) if value > 0 else "0"


def _power(value: float, decimals: int) -> str:
    """A number with its power of ten, in a true minus sign: '2.43 × 10⁴'."""
    mantissa, exponent = f"{value:.{decimals}e}".split("e")
    return f"{mantissa} × 10{str(int(exponent)).translate(SUPERSCRIPTS)}".replace("-", "−")


def interval(estimate: Interval, as_size: bool = False) -> str:
    """'3.1 [2.2, 4.4]', with the decimals its width deserves; '443k [310k, no limit]' as sizes."""
    low, high = estimate.low, estimate.high
    if low is None or high is None or high <= low:
        decimals = max(0, 1 - math.floor(math.log10(abs(estimate.value) or 1)))
    else:
        decimals = max(0, 1 - math.floor(math.log10(high - low)))

    def text(value: float) -> str:
        return size(value) if as_size else number(value, decimals)

    if low is None and high is None:
        return f"{text(estimate.value)} [no interval]"
    return bracketed(estimate, text)


def optimum(found: Optimum) -> str:
    """T* of one student in a few words: by the power law, or which end of the ladder it lies beyond."""
    sizes = sorted({one.teacher_params_non_embedding for one in found.teachers})
    star = found.teacher_params
    if star is None:
        return f"not identifiable; best tried {found.best_teacher}"
    if star.value < sizes[0]:
        return f"below {size(sizes[0])}"
    if star.value > sizes[-1]:
        return f"above {size(sizes[-1])}"
    return interval(star, as_size=True)


def on_ladder(found: Optimum) -> bool:
    """Whether T* by the power law lies between the smallest and the largest teacher tried."""
    sizes = [one.teacher_params_non_embedding for one in found.teachers]
    star = found.teacher_params
    return star is not None and min(sizes) <= star.value <= max(sizes)


# --- what was found -----------------------------------------------------------------------------


def verdict(law: LawRecord) -> Passage:
    """The verdict on the published law, then its reason."""
    status = {
        "supported": "These runs support",
        "contradicted": "These runs contradict",
        "inconclusive": "These runs do not settle",
    }[law.overall.status]
    text = f"{status} T* = {law.lines[0].published_slope:g} S."
    if law.overall.cause == "init":
        text += " If there is a best size, the pruned init makes it, not the teacher."
    return Passage(text, f"{sentence(law.overall.reason)}.")


def rivals_drawn(law: LawRecord) -> bool:
    """Whether the figure of the law shows what its rivals choose."""
    return any(score.picks for score in law.scores if score.law in get_args(RivalName))


def reach(answer: Recommendation) -> str:
    """How far an answer extrapolates."""
    far = [
        f"the {name} lies {factor:.3g} times beyond the runs"
        for name, factor in (
            ("student size", answer.student_extrapolation),
            ("token budget", answer.tokens_extrapolation),
            ("ratio T*/S", answer.teacher_extrapolation),
        )
        if factor > 1.005
    ]
    return f"This extrapolates: {listed(far)}." if far else "Nothing here is extrapolated."


def nats_interval(found: Interval | None) -> str:
    """A predicted loss with its interval: '3.512 [3.498, 3.526]'."""
    if found is None:
        return "unknown"
    if None in (found.low, found.high):
        return f"{nats(found.value)} [no interval]"
    return bracketed(found, nats)


def ordered(optima: list[Optimum]) -> list[Optimum]:
    """Optima by student size, then by budget."""
    return sorted(optima, key=lambda o: (o.student_params_non_embedding, o.student, o.tokens))


def several_budgets(law: LawRecord) -> bool:
    """Whether there are optima of more than one token budget."""
    return len({found.tokens for found in law.optima}) > 1


def curves(law: LawRecord) -> str:
    """How many of the optima lie inside the grid, and how flat they are."""
    inside = [found for found in law.optima if found.status == "interior"]
    cases = "student sizes and budgets" if several_budgets(law) else "student sizes"
    ties = [len(found.within_tie) for found in law.optima]
    flat, margin = sum(n > 1 for n in ties), f"{law.tie_nats:g} {METRICS[law.metric].short}"
    flatness = (
        f"In {flat} of {len(ties)}, more than one teacher lies within {margin} of the best."
        if flat
        else f"In none of them does a second teacher come within {margin} of the best."
    )
    if not inside:
        return (
            f"None of the {len(law.optima)} {cases} has its best teacher inside the range tried. A "
            f"curve with its lowest point at one end gives only a bound on the optimum. {flatness}"
        )
    return (
        f"{len(inside)} of {len(law.optima)} {cases} have their best teacher inside the range "
        f"tried. {flatness}"
    )


RIVAL_STATUS = {
    "identified": "all constants found",
    "not_identifiable": "some constants not found",
    "failed": "failed",
    "not_available": "not possible",
}


def found_constants(rival: RivalFit) -> str:
    """The constants that a rival law was free to choose: 'A = 2240, c0 = 2.55'."""
    named = (f"{name} = {number_or_power(rival.constants[name])}" for name in rival.free)
    return ", ".join(name.replace(" ", "\N{NO-BREAK SPACE}") for name in named) or "–"


def number_or_power(value: float) -> str:
    """Three digits: '0.452', '2.43 × 10⁴'."""
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        return f"{value:.3g}".replace("-", "−")
    return _power(value, 2)


def held(score: Score) -> str:
    """How many of a law's intervals hold the T* that it had not seen: '2 of 3'."""
    if score.interval_coverage is None:
        return "–"
    return f"{round(score.interval_coverage * score.n_intervals)} of {score.n_intervals}"


def init_explains(law: LawRecord) -> str:
    """What the test of the inits found, in a sentence; '' if it was not possible."""
    found = law.init_explains
    if found is None:
        return ""
    more = "explains more" if found.p_teacher < 0.05 else "is not shown to explain more"
    return (
        f"Within a student size and budget, over all arms with a teacher, the loss of the init "
        f"explains {found.r_squared_init:.0%} of the variance of the students’ losses, the size of "
        f"the teacher {found.r_squared_teacher:.0%}, and both together {found.r_squared_both:.0%}. "
        f"Given the init, the teacher’s size {more} ({_p(found.p_teacher)})."
    )


def _p(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.2g}"


def family(law: LawRecord) -> str:
    """Whether teacher loss falls with teacher size over the whole family."""
    if len(law.teacher_losses) < 2:
        return "Too few teachers were measured to tell whether loss falls with size."
    rises = worse_teachers(law)
    if rises:
        return (
            f"Teacher loss does not fall over the whole family: {rises}. A student that does worse "
            "with one of these teachers may only have learned from a worse model."
        )
    return (
        "Teacher loss falls with size over the whole family: every larger teacher is also the "
        "better model, so a student that does worse with it was not held back by a worse teacher."
    )


def worse_teachers(law: LawRecord) -> str:
    """The teachers that are no better models than a smaller one; '' if there are none."""
    groups: dict[tuple[str, float], list[str]] = {}
    best = law.teacher_losses[0] if law.teacher_losses else None
    for name, loss in law.teacher_losses[1:]:
        if loss >= best[1]:
            groups.setdefault(best, []).append(f"{name} (loss {nats(loss)})")
        else:
            best = name, loss
    return listed(
        f"{listed(worse)} {'is no better model' if len(worse) == 1 else 'are no better models'} than "
        f"{name} ({nats(loss)})"
        for (name, loss), worse in groups.items()
    )


def sentence(text: str) -> str:
    """A text as the beginning of a sentence; a name like t64k keeps its small letter."""
    return text[:1].upper() + text[1:] if text.split(" ")[0].isalpha() else text


def recommendation(final: FinalRecord) -> tuple[str, str]:
    """Whether the chosen teacher was the best of those tried: (a word or two, the sentence)."""
    loss = {row.teacher: row.test_loss_nats_per_token for row in final.rows}
    chosen = loss.pop(final.choice.chosen)
    if not loss:
        return "Untested", "No other teacher was tried for the final student."
    rival = min(loss, key=lambda teacher: (loss[teacher], teacher))
    side = "ahead of" if final.chosen_is_best else "behind"
    noise = {
        True: "more than the noise of this difference",
        False: "within the noise of this difference",
        None: "with one seed, whether that is noise is unknown",
    }[final.resolved]
    answer = {True: "Yes", False: "No"}[final.chosen_is_best]
    return (
        "No clear difference" if final.resolved is False else answer,
        f"{nats(abs(chosen - loss[rival]))} nats {side} {rival}, the best alternative; {noise}.",
    )


def settings_rows(settings: dict, prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as (dotted key, value) in their order."""
    rows = []
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            rows += settings_rows(value, f"{name}.")
        elif value is not None:
            is_list = isinstance(value, list)
            rows.append((name, ", ".join(map(str, value)) if is_list else str(value)))
    return rows


def token_budgets(runs: list[RunRow]) -> str:
    """'a budget of 1.5M tokens', 'budgets of 500k and 5M tokens'."""
    budgets = sorted({run.tokens for run in runs})
    return (
        f"{'a budget' if len(budgets) == 1 else 'budgets'} of {listed(map(size, budgets))} tokens"
    )


def pruned_sizes(runs: list[RunRow]) -> dict[str, int]:
    """Size of the teacher that each pruned init comes from, by the init's name."""
    return {
        pruned_from(run.teacher): run.teacher_params_non_embedding
        for run in runs
        if run.teacher != NONE and run.teacher_params_non_embedding is not None
    }


class HarnessRow(NamedTuple):
    """A metric of a task, in words."""

    task: str
    metric: str
    values: list[str]  # by model


def harness_name(record: HarnessRecord) -> str:
    """A model that was measured on tasks, by what it is."""
    lineage = record.lineage
    return lineage.name if lineage.kind == "teacher" else f"{lineage.kind} {lineage.name}"


def harness_rows(records: Sequence[HarnessRecord]) -> list[HarnessRow]:
    """Metrics of the tasks that were asked for, each with the values of all models."""
    found: dict[tuple, dict[int, HarnessScore]] = {}
    for i, record in enumerate(records):
        for score in record.asked():
            found.setdefault((score.task, score.metric, score.filter), {})[i] = score
    rows = []
    for (task, metric, filter_name), scores in found.items():
        one = next(iter(scores.values()))
        shots = f", {one.shots}-shot" if one.shots else ""
        read = "" if filter_name == "none" else f", {filter_name}"
        arrow = {True: " ↑", False: " ↓", None: ""}[one.higher_is_better]
        values = [_score(scores.get(i)) for i in range(len(records))]
        rows.append(HarnessRow(f"{task}{shots}", f"{metric}{read}{arrow}", values))
    return rows


def _score(score: HarnessScore | None) -> str:
    if score is None or score.value is None:
        return "–"
    error = "" if score.standard_error is None else f" ± {score.standard_error:.4f}"
    return f"{score.value:.4f}{error}"
