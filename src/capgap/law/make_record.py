"""All statistics of a table of runs, as the record that law.json holds."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import stats

from capgap.config import Law
from capgap.law.answers.equal_compute import equal_compute
from capgap.law.fit_law import Fit, fit_law
from capgap.law.law_record import (
    CurveForm,
    Exponents,
    Interval,
    LawComparison,
    LawRecord,
    NoiseComponent,
    Optimum,
    TeacherMean,
)
from capgap.law.number_text import bracketed
from capgap.law.optima.optimum_line import describe_line
from capgap.law.optima.single_optima import Located, shape_of
from capgap.law.power_law.diagnostics import misfit_of, size_counts, teacher_effects
from capgap.law.power_law.power_law import PowerLaw, fit_power_law
from capgap.law.scores.contenders import scores_of
from capgap.law.table.column_names import LOSS
from capgap.law.table.grouped_runs import GroupedRuns, group_runs
from capgap.law.table.init_kinds import as_main, kinds_of
from capgap.law.table.metric import METRICS
from capgap.law.table.read_runs import family_monotone, main_arm
from capgap.law.table.run_means import cell_table
from capgap.law.verdicts.claims import overall_of
from capgap.law.verdicts.control_arms import effects_of
from capgap.law.verdicts.flatness import is_flat
from capgap.law.verdicts.init_or_teacher import init_against_teacher
from capgap.law.verdicts.inits_and_texts import compare_inits, compare_texts

TEST_LOSS = "test_loss_nats_per_token"
TOKENS_PER_PARAM = 25.0  # at which T*/S is reported; the published law was measured near it
# divergence of a posterior from its prior; one that is nearer rests on the prior
INFORMED_NATS = 0.1


def law_record(runs: pd.DataFrame, settings: Law) -> LawRecord:
    """The content of `law.json`: the law of the main arm, and one for each other kind of init."""
    tables = {kind: as_main(runs, kind) for kind in kinds_of(runs)} or {"pruned": runs}
    first, *others = tables
    fits = {first: fit_law(tables[first], settings)}
    for kind in others:
        if main_arm(tables[kind])["teacher"].nunique() > 1:
            fits[kind] = fit_law(tables[kind], settings)
    records = [_record_of(fits[kind], tables[kind], kind, settings) for kind in fits]
    return records[0].model_copy(
        update={
            "other_inits": records[1:],
            "init_comparisons": compare_inits(
                {kind: fit.power_law or fit.why_not for kind, fit in fits.items()}, settings
            ),
        }
    )


def _record_of(fit: Fit, runs: pd.DataFrame, kind: str, settings: Law) -> LawRecord:
    """The law of one kind of init, on the table in which it is the main arm."""
    law, cells = fit.power_law, cell_table(runs, settings.size)
    exponents, optima = exponents_of(law, settings), optima_of(fit, settings)
    lines = [describe_line(level, fitted, settings) for level, fitted in fit.lines]
    effects = effects_of(runs, law, settings)
    overall = overall_of(law, fit.why_not, optima, effects, settings)
    return LawRecord(
        init=kind,
        n_runs=len(fit.runs.loss_N),
        confidence=settings.confidence,
        tie_nats=settings.tie_nats,
        ratio_margin=settings.ratio_margin,
        exponent_margin=settings.exponent_margin,
        size=settings.size,
        noise_sd=settings.noise_sd,
        status=_fitted(law, settings),
        reason=_over(fit),
        exponents=exponents,
        ratio_at_25_tokens_per_param=_ratio_at(law, settings),
        published_ratio_at_tokens_per_param=_published_at(law, settings),
        curve=None if law is None else _curve(law),
        noise=[] if law is None else noise_of(law),
        noise_df=None if law is None else law.noise_df,
        misfit=None if law is None else misfit_of(law),
        teacher_effects=[] if law is None else teacher_effects(law),
        sizes=[] if law is None else size_counts(runs, settings),
        optima=optima,
        lines=lines,
        family_monotone=family_monotone(runs),
        verdict=_verdict(exponents, fit.why_not),
        overall=overall,
        **scores_of(runs, cells, own_optima(fit), settings),
        effects=effects,
        init_explains=init_against_teacher(cells),
        equal_compute=equal_compute(law, runs, settings),
        text_comparison=_by_text(fit, runs, settings),
    )


def _by_text(fit: Fit, runs: pd.DataFrame, settings: Law) -> LawComparison | None:
    """The law of the validation loss against that of the test loss of the same runs."""
    main = main_arm(runs)
    if fit.power_law is None or settings.metric not in (None, "loss") or TEST_LOSS not in main:
        return None
    if main[TEST_LOSS].isna().any():
        return None
    other = fit_power_law(group_runs(main.assign(**{LOSS: main[TEST_LOSS]}), settings.size))
    return compare_texts({"validation": fit.power_law, "test": other}, settings)


def _fitted(law: PowerLaw | None, settings: Law) -> str:
    if law is None:
        return "not_identifiable"
    return "flat" if is_flat(law, settings) else "fitted"


def _over(fit: Fit) -> str:
    if fit.power_law is None:
        return fit.why_not
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


def optima_of(fit: Fit, settings: Law, own: bool = True) -> list[Optimum]:
    """Records of all optima, by budget and student size.

    own: with the interval of every curve by itself, which takes most of the time.
    """
    level = 1 - (1 - settings.confidence) / len(fit.located)
    return [_optimum(place, fit.power_law, level, settings, own) for place in fit.located]


def _optimum(
    place: Located, law: PowerLaw | None, level: float, settings: Law, own: bool
) -> Optimum:
    runs = place.runs
    sizes = np.unique(runs.teacher_size_N)
    star = None if law is None else law.star(place.size, place.tokens, settings.confidence)
    unit = METRICS[settings.metric or "loss"].short
    shape, shape_reason = shape_of(place, level, settings.tie_nats, unit)
    teachers = _teachers(place, law, settings)
    best = min(teachers, key=lambda c: (c.mean_loss_nats_per_token, c.teacher_params_non_embedding))
    within = [c.teacher for c in teachers if c.regret_nats <= settings.tie_nats]
    reasons = {
        "interior": f"the best teacher, {best.teacher}, lies between the others",
        "lower_bound": f"the largest teacher, {best.teacher}, is the best of those tried",
        "upper_bound": f"the smallest teacher, {best.teacher}, is the best of those tried",
        "not_identifiable": f"only {len(sizes)} teacher size(s); a minimum needs three",
    }
    return Optimum(
        student=place.student,
        student_params_non_embedding=place.size,
        tokens=round(place.tokens),
        status=place.status,
        reason=reasons[place.status],
        teacher_params=star,
        ratio=None if star is None else star.apply(lambda t: t / place.size),
        place=_place(star, sizes),
        own_teacher_params=place.own.limits if own and place.own else None,
        best_teacher=best.teacher,
        within_tie=within,
        teachers=teachers,
        shape=shape,
        shape_reason=shape_reason,
    )


def _place(star: Interval | None, sizes: np.ndarray) -> str:
    """The position of T* relative to the teacher ladder."""
    if star is None:
        return "not_identifiable"
    if star.high is not None and star.high < sizes[0]:
        return "below"
    if star.low is not None and star.low > sizes[-1]:
        return "above"
    inside = None not in (star.low, star.high) and sizes[0] <= star.low and star.high <= sizes[-1]
    return "inside" if inside else "open"


def _teachers(place: Located, law: PowerLaw | None, settings: Law) -> list[TeacherMean]:
    runs = place.runs
    found = []
    for teacher in dict.fromkeys(runs.teacher_N.tolist()):
        own = np.flatnonzero(runs.teacher_N == teacher)
        weight = runs.averaged_N[own] / runs.averaged_N[own].sum()
        mean = float(weight @ runs.loss_N[own])
        low = high = None
        if law is not None:
            rows = np.flatnonzero(
                (law.runs.teacher_N == teacher)
                & (law.runs.student_N == place.student)
                & (law.runs.tokens_N == place.tokens)
            )
            error = float(np.sqrt(weight @ law.run_noise_NN[np.ix_(rows, rows)] @ weight))
            half = stats.t.ppf((1 + settings.confidence) / 2, law.noise_df) * error
            low, high = mean - half, mean + half
        found.append((teacher, float(runs.teacher_size_N[own[0]]), own, mean, low, high))
    least = min(mean for *_, mean, _, _ in found)
    return [
        TeacherMean(
            teacher=teacher,
            teacher_params_non_embedding=size,
            n_runs=int(runs.averaged_N[own].sum()),
            mean_loss_nats_per_token=mean,
            loss_low=low,
            loss_high=high,
            regret_nats=mean - least,
        )
        for teacher, size, own, mean, low, high in found
    ]


def own_optima(fit: Fit) -> dict[tuple[str, int], Interval]:
    """T* of each student and budget alone, if it is interior."""
    return {
        (place.student, round(place.tokens)): place.own.limits
        for place in fit.located
        if place.status == "interior" and place.own is not None
    }


def _verdict(exponents: Exponents, why_not: str) -> str:
    """The law in a sentence. why_not: why there is none."""
    if why_not:
        return f"The law is not identifiable: {why_not}."
    each = (("S", exponents.by_size), ("D", exponents.by_tokens))
    parts = [f"{symbol}^{bracketed(found)}" for symbol, found in each if found is not None]
    text = [f"T* ~ {' '.join(parts)}"] if parts else []
    together = exponents.by_size_at_fixed_tokens_per_param
    if together is not None:
        text.append(f"T* ~ S^{bracketed(together)} at equal tokens per parameter")
    return f"{', and '.join(text) or 'One student at one budget gives an optimum, but no law'}."
