"""
What a teacher is worth against none, at equal tokens and at equal compute, in sentences.

Pure functions of the records; losses are on the scale of the law's metric.
"""

from __future__ import annotations

import math

from capgap.law.law_record import ArmEffects, Interval, LawRecord, Optimum
from capgap.law.number_text import bracketed, budget, listed
from capgap.reporting.report_text import Passage, nats


def is_harmed(law: LawRecord, effect: ArmEffects) -> bool:
    """Whether no teacher is shown to be better than any, the best one among them."""
    best = {(o.student, o.tokens): o.best_teacher for o in law.optima}
    if best.get((effect.student, effect.tokens)) not in effect.both_ways:
        return False
    return effect.alone is not None and effect.alone.high is not None and effect.alone.high < 0


def alone(law: LawRecord, near: Optimum) -> Passage:
    """What the best teacher gains over none at the nearest budget that was measured, and at the smallest."""
    size_of = _sizes(law)
    known = sorted(
        (e for e in law.effects if e.alone is not None and e.student in size_of),
        key=lambda e: (e.tokens, size_of[e.student]),
    )
    here = [e for e in known if e.tokens == near.tokens]
    if not here:
        return Passage("")
    after = f"after {budget(near.tokens)}"
    text = (
        "Against training the same inits on the data alone, the best of their teachers "
        f"{_moved([(e.alone, f'for {e.student}') for e in here])} {after}."
    )
    harmed = [e.student for e in here if is_harmed(law, e)]
    doubtful = [e.student for e in here if e.alone.low is not None and e.alone.low <= 0]
    doubtful = [name for name in doubtful if name not in harmed]
    if harmed:
        text += f" For {listed(harmed)} training without a teacher is better there."
    if doubtful:
        text += f" For {listed(doubtful)} a teacher is not shown to help {after}."
    text += _for_its_compute(law, near)
    early = ""
    if (first := known[0].tokens) < near.tokens:
        gains = [(e.alone, f"for {e.student}") for e in known if e.tokens == first]
        early = f"At equal tokens after {budget(first)} the best of their teachers {_moved(gains)}."
    return Passage(text, early)


def _for_its_compute(law: LawRecord, near: Optimum) -> str:
    """What a teacher gains at equal compute, at the first and the last budget where it is known.

    For the student that is nearest in size to this one among those of which it is known.
    """
    size_of = _sizes(law)
    student = min(
        (e.student for e in law.effects if e.at_equal_compute is not None and e.student in size_of),
        key=lambda name: abs(math.log(size_of[name] / near.student_params_non_embedding)),
        default=None,
    )
    known = sorted(
        (effect.tokens, effect.at_equal_compute)
        for effect in law.effects
        if effect.student == student and effect.at_equal_compute is not None
    )
    if not known:
        return ""
    ends = known[:1] + known[1:][-1:]
    gains = [(worth.gain, f"after {budget(tokens)}") for tokens, worth in ends]
    return (
        " At equal compute, where a student without a teacher sees more tokens, the teacher that is worth "
        f"most to {student} {_moved(gains)}."
    )


def _moved(gains: list[tuple[Interval, str]]) -> str:
    """'lowers the loss by 0.1 [0.05, 0.15] for 6k, and raises it by 0.02 for 52k', by gains and where."""
    lower = [f"{_amount(gain)} {where}" for gain, where in gains if gain.value >= 0]
    raised = [f"{_amount(negative(gain))} {where}" for gain, where in gains if gain.value < 0]
    parts = [f"lowers the loss by {listed(lower)}"] if lower else []
    parts += [f"raises {'it' if lower else 'the loss'} by {listed(raised)}"] if raised else []
    return ", and ".join(parts)


def _amount(found: Interval) -> str:
    if found.low is None and found.high is None:
        return f"{nats(found.value)} (noise unknown)"
    return bracketed(found, nats)


def negative(found: Interval) -> Interval:
    """The interval of minus the estimated number."""
    low, high = (None if end is None else -end for end in (found.high, found.low))
    return Interval(value=-found.value, low=low, high=high)


def _sizes(law: LawRecord) -> dict[str, float]:
    """Parameters of every student."""
    return {o.student: o.student_params_non_embedding for o in law.optima}
