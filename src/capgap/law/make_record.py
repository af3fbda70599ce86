"""All statistics of a table of runs, as the record that law.json holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from capgap.config import Law
from capgap.errors import CapgapError
from capgap.law.answers.equal_compute import equal_compute
from capgap.law.fit_law import Fit, fit_law
from capgap.law.law_record import (
    CurveForm,
    Exponents,
    Interval,
    LawRecord,
    MetricLaw,
    NoiseComponent,
)
from capgap.law.number_text import bracketed
from capgap.law.optima.optimum_line import describe_line
from capgap.law.optimum_records import optima_of, own_optima
from capgap.law.power_law.diagnostics import misfit_of, size_counts, teacher_effects
from capgap.law.power_law.power_law import PowerLaw
from capgap.law.scores.contenders import scores_of
from capgap.law.table.column_names import LOSS
from capgap.law.table.grouped_runs import GroupedRuns
from capgap.law.table.init_kinds import as_main, at_weight, kinds_of, weights_of
from capgap.law.table.metric import Metric, margin_of, measure_of, title
from capgap.law.table.read_runs import WEIGHT, further_outcomes, main_arm, teacher_losses
from capgap.law.table.run_means import cell_table
from capgap.law.verdicts.claims import overall_of
from capgap.law.verdicts.control_arms import effects_of
from capgap.law.verdicts.flatness import is_flat
from capgap.law.verdicts.init_or_teacher import init_against_teacher
from capgap.law.verdicts.law_comparison import (
    Outcome,
    compare_inits,
    compare_metrics,
    compare_weights,
)

TOKENS_PER_PARAM = 25.0  # at which T*/S is reported; the published law was measured near it
# divergence of a posterior from its prior; one that is nearer rests on the prior
INFORMED_NATS = 0.1


def law_record(
    runs: pd.DataFrame,
    settings: Law,
    leading: str | None = None,
    compared: Sequence[str] | None = None,
) -> LawRecord:
    """The content of `law.json`: the law of the main arm, and one for each other weight and kind of init.

    Weights of the teacher's term are compared by the main arm of each. leading: name of the outcome
    that the runs hold; None if it is the plain one. compared: names of the outcomes whose laws are
    compared with it; None for all others of the table.
    """
    weights = weights_of(runs)
    if len(weights) < 2:
        if settings.teacher_weight is not None:
            raise CapgapError(
                f"law.teacher_weight: {settings.teacher_weight:g} is asked for, but the runs of the main "
                f"arm do not differ in a column {WEIGHT}; leave it out"
            )
        return _laws_of(runs, settings, leading, compared)[0]
    first = (
        weights[len(weights) // 2] if settings.teacher_weight is None else settings.teacher_weight
    )
    if first not in weights:
        there = ", ".join(f"{weight:g}" for weight in weights)
        raise CapgapError(f"law.teacher_weight: no run has the weight {first:g}; there are {there}")
    found = {
        weight: _laws_of(at_weight(runs, weight), settings, leading, compared) for weight in weights
    }
    records = {
        weight: record.throughout(teacher_weight=weight) for weight, (record, _) in found.items()
    }
    return records[first].model_copy(
        update={
            "other_weights": [records[weight] for weight in weights if weight != first],
            "weight_comparisons": compare_weights(
                {weight: fit.power_law or fit.why_not for weight, (_, fit) in found.items()},
                settings,
            ),
        }
    )


def _laws_of(
    runs: pd.DataFrame, settings: Law, leading: str | None, compared: Sequence[str] | None
) -> tuple[LawRecord, Fit]:
    """The law of the main arm with those of other kinds of init, and its fit."""
    tables = {kind: as_main(runs, kind) for kind in kinds_of(runs)} or {"pruned": runs}
    first, *others = tables
    fits = {first: fit_law(tables[first], settings)}
    for kind in others:
        if main_arm(tables[kind])["teacher"].nunique() > 1:
            fits[kind] = fit_law(tables[kind], settings)
    records = [
        _record_of(fits[kind], tables[kind], kind, settings, leading, compared) for kind in fits
    ]
    whole = records[0].model_copy(
        update={
            "other_inits": records[1:],
            "init_comparisons": compare_inits(
                {kind: fit.power_law or fit.why_not for kind, fit in fits.items()}, settings
            ),
        }
    )
    return whole, fits[first]


def _record_of(
    fit: Fit,
    runs: pd.DataFrame,
    kind: str,
    settings: Law,
    leading: str | None,
    compared: Sequence[str] | None,
) -> LawRecord:
    """The law of one kind of init, on the table in which it is the main arm."""
    law, cells = fit.power_law, cell_table(runs, settings.size)
    found = _found(fit, fit.why_not, settings)
    lines = [describe_line(level, fitted, settings) for level, fitted in fit.lines]
    effects = effects_of(runs, law, settings)
    overall = overall_of(law, fit.why_not, found["optima"], effects, settings)
    return LawRecord(
        init=kind,
        n_runs=len(fit.runs.loss_N),
        confidence=settings.confidence,
        tie_nats=settings.tie_nats,
        ratio_margin=settings.ratio_margin,
        exponent_margin=settings.exponent_margin,
        size=settings.size,
        noise_sd=settings.noise_sd,
        **found,
        published_ratio_at_tokens_per_param=_published_at(law, settings),
        curve=None if law is None else _curve(law),
        noise_df=None if law is None else law.noise_df,
        misfit=None if law is None else misfit_of(law),
        teacher_effects=[] if law is None else teacher_effects(law),
        sizes=[] if law is None else size_counts(runs, settings),
        lines=lines,
        teacher_losses=teacher_losses(runs),
        verdict=_verdict(found["exponents"], fit.why_not),
        overall=overall,
        **scores_of(runs, cells, own_optima(fit), settings),
        effects=effects,
        init_explains=init_against_teacher(cells),
        equal_compute=equal_compute(law, runs, settings),
        outcome=leading,
        **_by_metric(fit, runs, settings, leading, compared),
    )


def _by_metric(
    fit: Fit, runs: pd.DataFrame, settings: Law, leading: str | None, compared: Sequence[str] | None
) -> dict[str, list]:
    """Laws of the same runs by their other outcomes, each compared with the first one.

    leading: name of the outcome that `fit` is of; None if it is the plain one. compared: names of the
    others, all that the table has if None.
    """
    others = further_outcomes(runs, leading)
    own = Outcome(title(measure_of(settings), leading), measure_of(settings).short)
    laws, comparisons = [], []
    # an outcome that none of these runs has, such as a task of other kinds of student, has no law here
    for name in others if compared is None else filter(others.__contains__, compared):
        metric, column = others[name]
        their = Outcome(title(metric, name), metric.short)
        law, why_not, record = _law_of_outcome(runs, metric, name, column, settings)
        laws.append(record)
        fitted = {own: fit.power_law or fit.why_not, their: law or why_not}
        comparisons.append(compare_metrics(fitted, settings))
    return {"metric_laws": laws, "metric_comparisons": comparisons}


def _law_of_outcome(
    runs: pd.DataFrame, metric: Metric, name: str, column: str, settings: Law
) -> tuple[PowerLaw | None, str, MetricLaw]:
    """The law of an outcome, why there is none, and its record; an outlier is a reason for none."""
    margin = margin_of(settings, metric, name)
    # a stated noise is that of the first outcome
    changed = {"metric": metric.name, "tie_nats": margin, "noise_sd": None}
    own = settings.model_copy(update=changed)
    table = runs.assign(**{LOSS: metric.to_scale(runs[column])})
    if "sd" in table:
        table = table.assign(sd=np.nan)
    missing = int(main_arm(table)[column].isna().sum())
    fit, why_not = None, f"{missing} runs of the main arm were not measured by it"
    if not missing:
        try:
            fit = fit_law(table, own)
            why_not = fit.why_not
        except CapgapError as error:
            why_not = str(error)
    record = MetricLaw(
        name=name,
        title=title(metric, name),
        metric=metric.name,
        tie=margin,
        n_runs=len(main_arm(table)) - missing,
        **_found(fit, why_not, own, own=False),
    )
    return None if fit is None else fit.power_law, why_not, record


def _found(fit: Fit | None, why_not: str, settings: Law, own: bool = True) -> dict[str, Any]:
    """What is recorded of a law by any outcome. why_not: why there is none. own: see `optima_of`."""
    law, status = None if fit is None else fit.power_law, "not_identifiable"
    if law is not None:
        status = "flat" if is_flat(law, settings) else "fitted"
    return {
        "status": status,
        "reason": why_not if law is None else _over(fit),
        "exponents": exponents_of(law, settings),
        "ratio_at_25_tokens_per_param": _ratio_at(law, settings),
        "noise": [] if law is None else noise_of(law),
        "optima": [] if fit is None else optima_of(fit, settings, own),
    }


def _over(fit: Fit) -> str:
    runs = fit.runs
    students, budgets = len(set(runs.student_N)), len(set(runs.tokens_N.tolist()))
    return (
        f"{len(runs.loss_N)} runs of {students} student(s) at {budgets} budget(s), "
        f"{len(set(runs.teacher_draw_N))} teachers"
    )


def exponents_of(law: PowerLaw | None, settings: Law) -> Exponents:
    """a, b and a + b."""
    names = {
        "by_size": (1, 0),
        "by_tokens": (0, 1),
        "by_size_at_fixed_tokens_per_param": (1, 1),
    }
    found = {}
    for name, weights in names.items():
        found[name] = None if law is None else law.exponent(*weights, settings.confidence)
    return Exponents(**found)


def _ratio_at(law: PowerLaw | None, settings: Law) -> Interval | None:
    """T*/S of the central student at 25 tokens per parameter."""
    if law is None:
        return None
    size = float(np.exp(law.axes.centre[0]))
    limits = law.log_ratio(size, TOKENS_PER_PARAM * size, settings.confidence)
    return None if limits is None else limits.apply(np.exp)


def _published_at(law: PowerLaw | None, settings: Law) -> Interval | None:
    """Tokens per parameter at which T*/S of the central student is the published slope.

    The interval holds the tokens at which the interval of T*/S contains it (Fieller's inversion).
    """
    if law is None or not law.axes.determines(np.array([0.0, 0.0, 1.0])):
        return None
    alpha, _, b = law.axes.basis_3Q @ law.x_P[: law.curves.q]
    size, tokens = np.exp(law.axes.centre)
    move = np.log(settings.published_slope) - alpha
    if abs(b) < 1e-6 or abs(move / b) > 5:
        return None
    value = float(tokens / size * np.exp(move / b))
    low_z, high_z = law.multipliers(law.weights(size, tokens), settings.confidence)
    covariance = law.covariance_PP[: law.curves.q, : law.curves.q]
    ends: list[float | None] = []
    for sign in (-1.0, 1.0):
        steps = move / b + sign * np.linspace(0, 5, 501)
        weights = law.weights(size, tokens * np.exp(steps)) @ law.axes.basis_3Q
        error = np.sqrt(np.einsum("si,ij,sj->s", weights, covariance, weights))
        away = alpha + b * steps - np.log(settings.published_slope)
        outside = (away > -low_z * error) | (away < -high_z * error)
        ends.append(
            float(tokens / size * np.exp(steps[outside.argmax()])) if outside.any() else None
        )
    return Interval(value=value, low=ends[0], high=ends[1])


def _curve(law: PowerLaw) -> CurveForm:
    size, tokens = np.exp(law.axes.centre)
    return CurveForm(
        curvature_nats=float(np.exp(law.x_P[-2])),
        skew=float(law.x_P[-1]),
        central_ratio=float(np.exp(law.axes.middle)),
        central_student_params=float(size),
        central_tokens=float(tokens),
    )


def noise_of(law: PowerLaw) -> list[NoiseComponent]:
    """Components of the noise, each with what its estimate rests on."""
    draws, found = law.draws, []
    for j, name in enumerate(law.components.names):
        median, low, high = law.sd[name]
        phi_R = draws.phi_RJ[:, j]
        mean = draws.weight_R @ phi_R  # the prior of phi is a standard normal
        variance = draws.weight_R @ (phi_R - mean) ** 2
        divergence_nats = (mean**2 + variance - 1 - np.log(variance)) / 2
        if name == "order" and law.components.stated:
            source = "stated"
        elif name != "order" and divergence_nats < INFORMED_NATS:
            source = "prior"
        else:
            source = "replicas" if _replicated(law.runs, name) else "residuals"
        found.append(
            NoiseComponent(
                name=name,
                sd=Interval(value=median, low=low, high=high),
                source=source,
                includes=list(law.components.includes.get(name, ())),
            )
        )
    return found


def _replicated(runs: GroupedRuns, name: str) -> bool:
    """Whether runs that agree in every coarser draw differ in the draw of this component."""
    fields = {
        "order": ("seed_N", "tokens_N", "student_N", "init_draw_N", "teacher_draw_N"),
        "block": ("seed_N", "tokens_N", "student_N"),
        "trunk": ("seed_N", "student_N", "init_draw_N", "teacher_draw_N"),
        "init": ("init_draw_N", "student_N", "teacher_draw_N"),
        "teacher": ("teacher_draw_N", "teacher_size_N"),
    }
    if name not in fields:
        return False
    draw, *coarser = fields[name]
    return bool(runs.index(draw, *coarser).max() > runs.index(*coarser).max())


def _verdict(exponents: Exponents, why_not: str) -> str:
    """The law in a sentence. why_not: why there is none."""
    if why_not:
        return f"The law is not identifiable: {why_not}."
    each = (("S", exponents.by_size), ("D", exponents.by_tokens))
    parts = [f"{symbol}^{bracketed(found)}" for symbol, found in each if found and found.limited]
    text = [f"T* ~ {' '.join(parts)}"] if parts else []
    together = exponents.by_size_at_fixed_tokens_per_param
    if together is not None and together.limited:
        text.append(f"T* ~ S^{bracketed(together)} at equal tokens per parameter")
    return f"{', and '.join(text) or 'One student at one budget gives an optimum, but no law'}."
