"""
The verdict on the law, by rules that are fixed before any data.

The law makes four claims; each is judged yes, no or unknown:

  interior     At a fixed student size the best teacher stands inside the range. A student and
               budget speaks for it with an interior shape, and against it with a flat one, or with
               a monotone one although the published ratio lies well inside the teachers tried;
               otherwise it is silent. Needs two that speak. yes: more than half of them speak for
               it, no: fewer.
  proportional T* grows in proportion to S, as "2.5 times" says; a line with a large intercept is
               linear without being that. no: at some budget the log-log slope excludes 1, or the
               slope lies wholly below 0. yes: at some budget the slope lies above 0 and the
               log-log slope does not exclude 1, and nothing says no.
  ratio        The slope is the published one. no: some budget excludes it. yes: at some budget the
               slope does not exclude it and lies above 0, and nothing says no.
  all budgets  The optimum does not move with tokens at a fixed student. no: the interval of the
               elasticity of T* by D excludes 0. yes: it holds 0 and lies within 0.25 of it.

A slope excludes a value, or lies above or below it, where two intervals do: that of the regression
and that over runs alone (line.py; with one seed a cell the first).

Overall: contradicted if any claim is judged no; supported if `interior`, `proportional` and `ratio`
are yes (at the budgets tried, if the fourth is unknown); inconclusive otherwise.

The cause, from the control arms, where the main arm has an interior optimum:

  init     a fixed start was tried with three teachers or more and shows no interior optimum
           anywhere, or the start's effect is more than twice the teacher's (both measured, the
           start's above noise)
  teacher  an interior optimum shows at a fixed start and the teacher's effect is more than twice
           the start's
  both     anything between
  unknown  the arms do not show both effects
"""

from __future__ import annotations

from statistics import median

from capgap.law.arms import DOMINANT
from capgap.law.records import (
    ArmEffects,
    Claim,
    Interval,
    Line,
    Optimum,
    Overall,
    SurfaceFit,
)
from capgap.law.words import about, budget, listed

EQUAL = 0.25  # elasticity by tokens that counts as none: 4 times the tokens move T* by 1.4 at most
LEAST = 2  # curves that must speak


def overall_of(
    optima: list[Optimum],
    lines: list[Line],
    surface: SurfaceFit | None,
    effects: list[ArmEffects],
    published_slope: float,
) -> Overall:
    """Judge the claims, the law and its cause."""
    claims = [
        _interior(optima, published_slope),
        _proportional(lines),
        _ratio(lines),
        _budgets(optima, surface),
    ]
    answer = {claim.name: claim.answer for claim in claims}
    against = [claim for claim in claims if claim.answer == "no"]
    if against:
        status = "contradicted"
        reason = "; ".join(claim.reason for claim in against)
    elif all(answer[name] == "yes" for name in ("interior", "proportional", "ratio")):
        status = "supported"
        reason = claims[1].reason
        if answer["all_budgets"] == "unknown":
            reason += f"; this holds for the budgets tried ({claims[3].reason})"
    else:
        status = "inconclusive"
        reason = "; ".join(claim.reason for claim in claims[:3] if claim.answer == "unknown")
    cause, why = _cause(optima, effects)
    return Overall(status=status, reason=reason, claims=claims, cause=cause, cause_reason=why)


def _interior(optima: list[Optimum], published_slope: float) -> Claim:
    found = [(o, _speaks(o, published_slope)) for o in optima]
    pro = sum(speaks is True for _, speaks in found)
    contra = sum(speaks is False for _, speaks in found)
    shapes = [o.shape for o, _ in found]
    counts = listed(f"{shapes.count(s)} {s.replace('_', ' ')}" for s in dict.fromkeys(shapes))
    reason = f"the curves of students and budgets: {counts}"
    if pro + contra < LEAST:
        return Claim(name="interior", answer="unknown", reason=f"{reason}: too few can tell")
    if pro == contra:
        return Claim(name="interior", answer="unknown", reason=f"{reason}: a draw")
    return Claim(name="interior", answer="yes" if pro > contra else "no", reason=reason)


def _speaks(optimum: Optimum, published_slope: float) -> bool | None:
    """Whether a curve speaks for an optimum inside the range, against it, or not at all."""
    if optimum.shape == "interior":
        return True
    if optimum.shape == "flat":
        return False
    if optimum.shape not in ("monotone", "saturating"):
        return None
    expected = published_slope * optimum.student_params_non_embedding
    sizes = sorted({cell.teacher_params_non_embedding for cell in optimum.cells})
    inside = sizes[1] < expected < sizes[-2] if len(sizes) > 3 else sizes[0] < expected < sizes[-1]
    return False if inside and optimum.shape == "monotone" else None


def _proportional(lines: list[Line]) -> Claim:
    fitted = [line for line in lines if line.status == "fitted"]
    if not fitted:
        reasons = "; ".join(dict.fromkeys(line.reason for line in lines))
        return Claim(name="proportional", answer="unknown", reason=reasons)
    against, pro = [], []
    for line in fitted:
        where = f"at {budget(line.tokens)}"
        if all(excludes(power, 1) for power in _both(line.elasticity, line.elasticity_resampled)):
            against.append(f"{where} T* grows as S to the power {line.elasticity.value:.2f}, not 1")
        elif falls(line):
            against.append(f"{where} T* does not grow with S")
        elif grows(line):
            pro.append(f"{where} T* grows with S by {line.slope.value:.3g}")
    if against:
        return Claim(name="proportional", answer="no", reason="; ".join(against))
    if pro:
        return Claim(name="proportional", answer="yes", reason="; ".join(pro))
    return Claim(
        name="proportional",
        answer="unknown",
        reason="no budget excludes a slope of 0",
    )


def _ratio(lines: list[Line]) -> Claim:
    fitted = [line for line in lines if line.status == "fitted"]
    outside = [
        line
        for line in fitted
        if all(
            excludes(slope, line.published_slope)
            for slope in _both(line.slope, line.slope_resampled)
        )
    ]
    use = outside or [line for line in fitted if grows(line)]
    if not use:
        return Claim(name="ratio", answer="unknown", reason="no budget shows that T* grows with S")
    slopes = listed(f"{line.slope.value:.3g} at {budget(line.tokens)}" for line in use)
    word = "excludes" if outside else "does not exclude"
    return Claim(
        name="ratio",
        answer="no" if outside else "yes",
        reason=f"the slope ({slopes}) {word} the published {use[0].published_slope:g}",
    )


def grows(line: Line) -> bool:
    """Whether a fitted line's slope lies above 0 beyond doubt."""
    return all(s.low is not None and s.low > 0 for s in _both(line.slope, line.slope_resampled))


def falls(line: Line) -> bool:
    """Whether a fitted line's slope lies at or below 0 beyond doubt."""
    return all(s.high is not None and s.high <= 0 for s in _both(line.slope, line.slope_resampled))


def _both(regression: Interval, runs: Interval | None) -> list[Interval]:
    return [regression] if runs is None else [regression, runs]


def _budgets(optima: list[Optimum], surface: SurfaceFit | None) -> Claim:
    name = "all_budgets"
    if len({o.tokens for o in optima}) < 2:
        return Claim(name=name, answer="unknown", reason="one token budget was tried")
    if surface is None or surface.status != "fitted":
        return Claim(name=name, answer="unknown", reason="no joint surface could be fitted")
    if surface.by_tokens is None:
        reason = "the joint surface does not show an optimum at every budget"
        return Claim(name=name, answer="unknown", reason=reason)
    moves = surface.by_tokens
    low, high = moves.low, moves.high
    limits = "" if None in (low, high) else f" ({low:.2f} to {high:.2f})"
    reason = f"T* moves with tokens to the power {moves.value:.2f}{limits}"
    if excludes(moves, 0):
        return Claim(name=name, answer="no", reason=reason)
    small = None not in (low, high) and low >= -EQUAL and high <= EQUAL
    return Claim(name=name, answer="yes" if small else "unknown", reason=reason)


def excludes(interval: Interval | None, value: float) -> bool:
    """Whether an interval, open where a limit is None, lies on one side of a value."""
    if interval is None:
        return False
    below = interval.high is not None and interval.high < value
    return below or (interval.low is not None and interval.low > value)


def _cause(optima: list[Optimum], effects: list[ArmEffects]) -> tuple[str, str]:
    inside = {(o.student, o.tokens) for o in optima if o.shape == "interior"}
    if not inside:
        return "unknown", "no curve of the main arm is shown to have its optimum inside"
    relevant = [e for e in effects if (e.student, e.tokens) in inside]
    shapes = [shape for e in relevant for shape in e.fixed_start_shapes.values()]
    told = [shape for shape in shapes if shape != "not_identifiable"]
    both = [e for e in relevant if e.start_nats is not None and e.teacher_nats is not None]
    if not both and not told:
        return "unknown", "no control arm separates the start from the teacher"
    start = median(e.start_nats for e in both) if both else None
    teacher = median(e.teacher_nats for e in both) if both else None
    noise = [e.noise_nats for e in both if e.noise_nats is not None]
    parts = []
    if both:
        parts.append(f"the start moves the loss by {start:.3f} nats, the teacher by {teacher:.3f}")
    if told:
        n = told.count("interior")
        parts.append(f"{n} of {len(told)} curves over teachers at a fixed start are interior")
    reason = "; ".join(parts)
    above_noise = both and (not noise or start > median(noise))
    if told and "interior" not in told:
        return "init", f"an interior optimum shows only with pruned starts of their own: {reason}"
    if above_noise and start > DOMINANT * teacher:
        return "init", f"mostly the start: {reason}"
    if "interior" in told and both and teacher > DOMINANT * start:
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
            f". The optimum comes from the pruned start rather than the teacher "
            f"({overall.cause_reason})"
        )
    students = sorted({o.student_params_non_embedding for o in optima})
    if len(students) == 1:
        return f"{text}. One student size, {about(students[0])} parameters."
    return f"{text}. Students of {about(students[0])} to {about(students[-1])} parameters."
