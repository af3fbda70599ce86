"""
The verdict on the published law, by rules that are fixed before any data (docs/method.md, Verdicts).

A quantity is *equal* to a reference if its whole interval lies within a margin of it, *different* if the
whole interval lies outside, and *not_told_apart* otherwise. The interval that decides on *different* is
widened for all claims, and for all students and budgets of a ratio (Bonferroni).

  interior      the best teacher lies inside its ladder in more than half of the groups
  grows         T* grows with S, at equal tokens or else at equal tokens per parameter
  proportional  T* grows as S^1 at equal tokens per parameter (at equal tokens with one budget)
  ratio         T*/S is the published one for the smallest and the largest student of every budget
  tokens        T* moves with D for one student

The published law is *contradicted* if one of the first four is no or `tokens` is yes, *supported* if
interior, proportional and ratio are yes, and the runs are *inconclusive* otherwise.
"""

from __future__ import annotations

import math
from statistics import median

import numpy as np

from capgap.config import Law
from capgap.law.law_record import ArmEffects, Claim, Interval, Optimum, Overall
from capgap.law.number_text import about, bracketed, budget, listed
from capgap.law.power_law.power_law import PowerLaw
from capgap.law.table.metric import measure_of
from capgap.law.verdicts.flatness import FLAT_TIES, is_flat

CLAIMS_JUDGED = 4  # any of them alone can contradict the law
DOMINANT = 2.0  # times; an effect this much larger than the other one is called the cause


def overall_of(
    law: PowerLaw | None,
    why_not: str,
    optima: list[Optimum],
    effects: list[ArmEffects],
    settings: Law,
) -> Overall:
    """Judge the claims, the law and its cause. why_not: the reason if `law` is None."""
    if law is None:
        names = ("interior", "grows", "proportional", "ratio", "tokens")
        claims = [_unknown(name, why_not) for name in names]
    else:
        claims = [
            _interior(law, optima, settings),
            _grows(law, settings),
            _proportional(law, settings),
            _ratio(law, settings),
            _tokens(law, settings),
        ]
    answer = {claim.name: claim.answer for claim in claims}
    against = [c for c in claims if c.answer == ("yes" if c.name == "tokens" else "no")]
    if against:
        status, reason = "contradicted", "; ".join(dict.fromkeys(claim.reason for claim in against))
    elif all(answer[name] == "yes" for name in ("interior", "proportional", "ratio")):
        status, reason = "supported", f"{claims[2].reason}; {claims[3].reason}"
        if answer["tokens"] == "unknown":
            reason += f"; this holds for the budgets tried ({claims[4].reason})"
    else:
        status = "inconclusive"
        open_claims = [claim.reason for claim in claims[:4] if claim.answer == "unknown"]
        reason = "; ".join(dict.fromkeys(open_claims))
    cause, why = _cause(optima, effects, measure_of(settings).short)
    return Overall(status=status, reason=reason, claims=claims, cause=cause, cause_reason=why)


def _strict(settings: Law, tests: int = 1) -> float:
    """The level of an interval that decides that something differs."""
    return 1 - (1 - settings.confidence) / CLAIMS_JUDGED / tests


def _unknown(name: str, reason: str) -> Claim:
    return Claim(name=name, answer="unknown", verdict="not_told_apart", reason=reason)


def _interior(law: PowerLaw, optima: list[Optimum], settings: Law) -> Claim:
    if is_flat(law, settings):
        reason = f"teacher size makes no difference beyond noise or {FLAT_TIES} equivalence margins"
        return Claim(name="interior", answer="no", verdict="not_shown", reason=reason)
    places = [o.place for o in optima if o.place != "not_identifiable"]
    words = {"inside": "inside", "below": "below", "above": "above", "open": "undetermined"}
    counts = listed(f"{places.count(p)} {words[p]}" for p in words if p in places)
    reason = (
        f"position of T* among the teachers tried, for {len(places)} students and budgets: {counts}"
    )
    missed = sum(_misses(o, settings.published_slope) for o in optima)
    if places.count("inside") > len(places) / 2:
        return Claim(name="interior", answer="yes", verdict="shown", reason=reason)
    if missed > len(places) / 2:
        return Claim(name="interior", answer="no", verdict="not_shown", reason=reason)
    return Claim(name="interior", answer="unknown", verdict="not_shown", reason=reason)


def _misses(optimum: Optimum, published_slope: float) -> bool:
    """Whether T* lies beyond a ladder that holds the published ratio."""
    sizes = [one.teacher_params_non_embedding for one in optimum.teachers]
    expected = published_slope * optimum.student_params_non_embedding
    return optimum.place in ("below", "above") and min(sizes) < expected < max(sizes)


def _by_size(
    law: PowerLaw, confidence: float, *, per_param: bool = False
) -> tuple[Interval | None, str]:
    """Exponent of S at equal tokens, or at equal tokens per parameter if that one is not determined.

    per_param: the other way round.
    """
    ways = [((1, 0), "at equal tokens"), ((1, 1), "at equal tokens per parameter")]
    for weights, how in reversed(ways) if per_param else ways:
        found = law.exponent(*weights, confidence)
        if found is not None:
            return found, how
    return None, ""


def _growth_reason(limits: Interval, how: str) -> str:
    return f"{how} T* grows as S^{bracketed(limits)} (1 is in proportion, 0 no growth)"


def _grows(law: PowerLaw, settings: Law) -> Claim:
    limits, how = _by_size(law, settings.confidence)
    if limits is None:
        return _unknown("grows", "one student size was tried")
    strict = _by_size(law, _strict(settings))[0]
    margin = settings.exponent_margin
    common = {
        "name": "grows",
        "estimate": limits,
        "reference": 0.0,
        "margin": margin,
        "reason": _growth_reason(limits, how),
    }
    if limits.low is not None and limits.low > margin:
        return Claim(answer="yes", verdict="different", **common)
    if strict.high is not None and strict.high < margin:
        same = strict.low is not None and strict.low > -margin
        return Claim(answer="no", verdict="equal" if same else "different", **common)
    return Claim(answer="unknown", verdict="not_told_apart", **common)


def _proportional(law: PowerLaw, settings: Law) -> Claim:
    limits, how = _by_size(law, settings.confidence, per_param=True)
    if limits is None:
        return _unknown("proportional", "one student size was tried")
    strict = _by_size(law, _strict(settings), per_param=True)[0]
    reason = _growth_reason(limits, how)
    return _compared("proportional", limits, strict, 1.0, settings.exponent_margin, reason)


def _tokens(law: PowerLaw, settings: Law) -> Claim:
    limits = law.exponent(0, 1, settings.confidence)
    if limits is None:
        budgets = len(set(law.runs.tokens_N.tolist()))
        reason = "one token budget was tried"
        if budgets > 1:
            reason = "tokens and student sizes vary together, so their effects cannot be separated"
        return _unknown("tokens", reason)
    strict = law.exponent(0, 1, _strict(settings))
    reason = f"for one student T* grows as D^{bracketed(limits)} (0 is no growth)"
    found = _compared("tokens", limits, strict, 0.0, settings.exponent_margin, reason)
    turned = {"yes": "no", "no": "yes", "unknown": "unknown"}[found.answer]
    return found.model_copy(update={"answer": turned})


def _compared(
    name: str, limits: Interval, strict: Interval, reference: float, margin: float, reason: str
) -> Claim:
    """A number against a reference; yes if equal."""
    ends = reference - margin, reference + margin
    answer, verdict = "unknown", "not_told_apart"
    if limits.within(*ends):
        answer, verdict = "yes", "equal"
    elif strict.beyond(*ends):
        answer, verdict = "no", "different"
    return Claim(
        name=name,
        answer=answer,
        verdict=verdict,
        reason=reason,
        estimate=limits,
        reference=reference,
        margin=margin,
    )


def _ratio(law: PowerLaw, settings: Law) -> Claim:
    """The published ratio at the smallest and the largest student of every budget."""
    runs, first = law.runs, law.runs.first_G
    corners = []
    for tokens in np.unique(runs.tokens_N):
        sizes = runs.size_N[first][runs.tokens_N[first] == tokens]
        corners += [(s, tokens) for s in sorted({sizes.min(), sizes.max()})]
    wide = math.log1p(settings.ratio_margin)
    centre = math.log(settings.published_slope)
    ends = centre - wide, centre + wide
    level = _strict(settings, len(corners))
    found = [(law.log_ratio(*c, settings.confidence), law.log_ratio(*c, level), c) for c in corners]
    found = [case for case in found if case[0] is not None]
    if not found:
        return _unknown("ratio", "no T* is determined")
    away = [(limits, c) for limits, strict, c in found if strict.beyond(*ends)]
    same = all(limits.within(*ends) for limits, _, _ in found)
    answer, verdict = ("no", "different") if away else ("unknown", "not_told_apart")
    if same:
        answer, verdict = "yes", "equal"
    use = away or [(limits, c) for limits, _, c in found]
    by_ratio = sorted(use, key=lambda case: case[0].value)
    texts = [
        f"{bracketed(limits.apply(np.exp))} for {about(size)} at {budget(round(tokens))}"
        for limits, (size, tokens) in by_ratio[:1] + by_ratio[1:][-1:]
    ]
    relation = {
        "equal": "within",
        "different": "more than",
        "not_told_apart": "not shown to be more or less than",
    }[verdict]
    reason = f"T*/S is {listed(texts)}, {relation} {settings.ratio_margin:.0%} from the published"
    return Claim(
        name="ratio",
        answer=answer,
        verdict=verdict,
        reason=f"{reason} {settings.published_slope:g}",
        estimate=use[len(use) // 2][0].apply(np.exp),
        reference=settings.published_slope,
        margin=settings.ratio_margin,
    )


def _cause(optima: list[Optimum], effects: list[ArmEffects], unit: str) -> tuple[str, str]:
    inside = {(o.student, o.tokens) for o in optima if o.place == "inside"}
    if not inside:
        return "unknown", "no optimum is shown to lie inside the teachers tried"
    relevant = [e for e in effects if (e.student, e.tokens) in inside]
    shapes = [shape for e in relevant for shape in e.fixed_init_shapes.values()]
    judged = [shape for shape in shapes if shape != "not_identifiable"]
    both = [e for e in relevant if e.init_nats is not None and e.teacher_nats is not None]
    if not both and not judged:
        return "unknown", "no control arm separates the init from the teacher"
    start = median(e.init_nats for e in both) if both else None
    teacher = median(e.teacher_nats for e in both) if both else None
    noise = [e.noise_nats for e in both if e.noise_nats is not None]
    parts = []
    if both:
        parts.append(f"the init moves the loss by {start:.3f} {unit}, the teacher by {teacher:.3f}")
    if judged:
        n = judged.count("interior")
        parts.append(
            f"{n} of {len(judged)} curves over teachers at a fixed init have an interior optimum"
        )
    reason = "; ".join(parts)
    above_noise = both and (not noise or start > median(noise))
    if judged and "interior" not in judged:
        return (
            "init",
            f"an interior optimum appears only if each teacher distils its own pruned init: {reason}",
        )
    if above_noise and start > DOMINANT * teacher:
        return "init", f"mostly the init: {reason}"
    if "interior" in judged and both and teacher > DOMINANT * start:
        return "teacher", reason
    return ("both", reason) if both else ("unknown", reason)


def sentence(overall: Overall, optima: list[Optimum]) -> str:
    """The verdict in one sentence."""
    text = {
        "supported": "The law is supported",
        "contradicted": "The law is contradicted",
        "inconclusive": "The runs are inconclusive about the law",
    }[overall.status]
    text = f"{text}: {overall.reason}"
    if overall.cause == "init":
        text += (
            f". The optimum comes from the pruned init rather than the teacher "
            f"({overall.cause_reason})"
        )
    students = sorted({o.student_params_non_embedding for o in optima})
    if len(students) == 1:
        return f"{text}. One student size, {about(students[0])} parameters."
    return f"{text}. Students of {about(students[0])} to {about(students[-1])} parameters."
