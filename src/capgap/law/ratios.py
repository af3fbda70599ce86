"""The joint surface as a record: the ratio T*/S against tokens per student parameter."""

from __future__ import annotations

import numpy as np

from capgap.config import Law
from capgap.law.claims import EQUAL, excludes
from capgap.law.records import Interval, Optimum, RatioAt, SurfaceFit
from capgap.law.surface import Surface, interval_of

GRID = 400  # teacher sizes at which the tie set is looked for


def describe_surface(surface: Surface, optima: list[Optimum], settings: Law) -> SurfaceFit:
    """The record of a surface, with the ratio at every student size and budget of the grid."""
    moves = surface.elasticities(settings.confidence) or {}
    ratios = [
        _ratio_at(surface, o, settings) for o in optima if (o.student, o.tokens) in surface.levels
    ]
    return SurfaceFit(
        status=surface.status,
        reason=surface.reason,
        terms=dict(zip(surface.terms, surface.term_P.tolist(), strict=True)),
        centre_student_params=float(np.exp(surface.centre[0])),
        centre_tokens=float(np.exp(surface.centre[1])),
        centre_ratio=float(np.exp(surface.centre[2])),
        by_size=moves.get("size"),
        by_tokens=moves.get("tokens"),
        by_size_at_fixed_tokens_per_param=moves.get("size_at_fixed_tokens_per_param"),
        tokens_shape=_tokens_shape(surface, moves.get("tokens"), settings.confidence),
        ratios=sorted(ratios, key=lambda r: (r.tokens_per_param, r.tokens)),
        rms_nats=surface.rms_nats,
        error_sd_nats=surface.error_sd_nats,
    )


def _ratio_at(surface: Surface, optimum: Optimum, settings: Law) -> RatioAt:
    size, tokens = optimum.student_params_non_embedding, optimum.tokens
    ratio = surface.ratio(size, tokens, settings.confidence)
    low, high = surface.reach[optimum.student, tokens]
    log_t_G = np.linspace(low, high, GRID)
    loss_G = surface.curve(log_t_G, size, tokens)[0]
    tie_G = log_t_G[loss_G <= loss_G.min() + settings.tie_nats]
    return RatioAt(
        student=optimum.student,
        student_params_non_embedding=size,
        tokens=tokens,
        tokens_per_param=tokens / size,
        ratio=ratio,
        inside_grid=ratio is not None and bool(low <= np.log(ratio.value * size) <= high),
        tie_low=float(np.exp(tie_G[0])),
        tie_high=float(np.exp(tie_G[-1])),
    )


def _tokens_shape(surface: Surface, moves: Interval | None, confidence: float) -> str:
    """How the ratio goes with tokens at the central student size.

    saturating: it moves over all budgets, yet between the two largest its elasticity's interval
    holds 0 and lies within EQUAL of it. unknown: the interval holds 0 without being that narrow.
    """
    if moves is None:
        return "unknown"
    budgets = sorted({tokens for _, tokens in surface.levels})
    if excludes(moves, 0):
        if len(budgets) > 2 and _settled(_between(surface, *budgets[-2:], confidence)):
            return "saturating"
        return "rising" if moves.value > 0 else "falling"
    return "constant" if _settled(moves) else "unknown"


def _between(surface: Surface, first: int, last: int, confidence: float) -> Interval:
    """Elasticity of T* by D between two budgets at the central student size."""
    size = float(np.exp(surface.centre[0]))
    (at_first, first_R), (at_last, last_R) = (surface.log_ratio(size, d) for d in (first, last))
    width = np.log(last / first)
    drawn_R = None if first_R is None else (last_R - first_R) / width
    return interval_of((at_last - at_first) / width, drawn_R, confidence)


def _settled(moves: Interval) -> bool:
    if not np.isfinite(moves.value) or None in (moves.low, moves.high) or excludes(moves, 0):
        return False
    return moves.low >= -EQUAL and moves.high <= EQUAL
