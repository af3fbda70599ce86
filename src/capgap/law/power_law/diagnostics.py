"""
Checks of the power law: outlying runs, students and teachers off the law, and counts of size.

A run is predicted from all others by the fitted law and its noise (leave-one-out residuals of
generalised least squares): with P = V^-1 - V^-1 X (X' V^-1 X)^-1 X' V^-1, the prediction misses run
i by (P r)_i / P_ii with variance 1 / P_ii. A suspected outlier is judged by a fit without it, so that
it can neither pull the curve nor widen the noise estimate.

Shapes: N runs, P parameters with the groups' levels.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
from scipy import stats

from capgap.config import Law
from capgap.errors import CapgapError
from capgap.law.law_record import Interval, Misfit, SizeCount, TeacherEffect
from capgap.law.number_text import listed
from capgap.law.power_law.noise import draws_of
from capgap.law.power_law.power_law import PowerLaw, fit_power_law, linearise
from capgap.law.table.grouped_runs import SIZES, group_runs
from capgap.law.table.read_runs import main_arm

OUTLIER = 6.0  # studentized residual that stops the fit
SUSPECT = 0.75  # share of the largest residual that an outlier can have in a fit that contains it
SUSPECTS = 3  # runs that are left out in turn at most
RARE = 0.001  # probability, over all runs, above which a residual beyond OUTLIER is allowed
OFF_FAMILY = 0.9  # level at which a teacher's effect excludes 0
MISFIT_LEVEL = 0.05


def precision_without_fit(law: PowerLaw, covariance_NN: np.ndarray) -> np.ndarray:
    """P of the module's formula, (N, N), with the law's parameters and levels removed."""
    near = law.near
    noise_CC = near.contrast_CN @ covariance_NN @ near.contrast_CN.T
    inverse_CC = np.linalg.inv(noise_CC)
    solved_CP = inverse_CC @ near.column_CP
    normal_PP = near.column_CP.T @ solved_CP + near.prior_PP
    p_CC = inverse_CC - solved_CP @ np.linalg.solve(normal_PP, solved_CP.T)
    return near.contrast_CN.T @ p_CC @ near.contrast_CN


def left_out_residuals(law: PowerLaw) -> tuple[np.ndarray, np.ndarray]:
    """(how far every run lies from its prediction by all others, its standard deviation), nats.

    NaN for a run that nothing else predicts.
    """
    p_NN = precision_without_fit(law, law.noise_NN)
    weight_N = p_NN.diagonal().copy()
    weight_N[weight_N < 1e-9 * weight_N.max()] = np.nan
    return p_NN @ law.floor_N / weight_N, 1 / np.sqrt(weight_N)


def outlier_in(law: PowerLaw, settings: Law) -> None:
    """Raise CapgapError, naming the run, if one lies further from the law than OUTLIER allows."""
    missed_N, sd_N = left_out_residuals(law)
    studentized_N = np.nan_to_num(np.abs(missed_N / sd_N))
    df = max(1, len(law.near.residual_C) - law.curves.p)
    limit = SUSPECT * OUTLIER * np.sqrt(df / (df - 1 + OUTLIER**2))
    suspects = [i for i in np.argsort(-studentized_N)[:SUSPECTS] if studentized_N[i] > limit]
    for run in suspects:
        keep_N = np.arange(len(law.runs.loss_N)) != run
        rest = law.runs.select(keep_N)
        groups = len(rest.first_G)
        lost = groups < len(law.runs.first_G)
        if lost or rest.most_sizes < 3 or len(rest.loss_N) - groups < 4:
            continue
        without = fit_power_law(rest, settings.noise_sd)
        distance, df = _distance(law, without, run)
        chance = 2 * stats.t.sf(abs(distance), df) * len(keep_N)
        if abs(distance) > OUTLIER and chance < RARE:
            columns = ", ".join(
                f"{name}: {getattr(law.runs, f'{name}_N')[run]}"
                for name in ("student", "teacher", "seed")
            )
            tokens = f"tokens: {law.runs.tokens_N[run]:.0f}"
            raise CapgapError(
                f"the run ({law.runs.name(run)}) has a loss of {law.runs.loss_N[run]:.4f}, "
                f"{abs(distance):.0f} standard deviations from what the other runs predict (the "
                f"limit is {OUTLIER:.0f}); check whether it diverged, and repeat it, or leave it out "
                f"with law.exclude: [{{{columns}, {tokens}}}]"
            )


def _distance(law: PowerLaw, without: PowerLaw, run: int) -> tuple[float, float]:
    """Studentized residual of a run by the law fitted without it, and its degrees of freedom."""
    components = dataclasses.replace(
        without.components,
        index={name: draws_of(law.runs, name) for name in without.components.index},
        weight_N=1 / law.runs.averaged_N,
    )
    near = linearise(law.runs, law.curves, components, without.x_P)
    variance_J = components.variances(without.mode_J[None])[0]
    moved = dataclasses.replace(law, x_P=without.x_P, components=components, near=near)
    p_NN = precision_without_fit(moved, np.tensordot(variance_J, near.part_JNN, axes=1))
    return float((p_NN @ moved.floor_N)[run] / np.sqrt(p_NN[run, run])), without.noise_df


def misfit_of(law: PowerLaw) -> Misfit:
    """F test of an optimum and a curvature of each student's own against the common law."""
    runs, near = law.runs, law.near
    students = list(dict.fromkeys(runs.student_N.tolist()))
    none = Misfit(p=None, students=[], reason="too few students or runs for a test of the form")
    if len(students) < 2:
        return none
    own_NH = runs.student_N[:, None] == np.array(students)
    slope_NP = law.curves.evaluate(law.x_P[None])[1][0]
    by_star_N = slope_NP[:, 0] / law.curves.design_NQ[:, 0]
    extra_NE = np.hstack([own_NH * by_star_N[:, None], own_NH * slope_NP[:, [-2]]])
    noise_CC = near.contrast_CN @ law.run_noise_NN @ near.contrast_CN.T
    lower = np.linalg.cholesky(noise_CC)
    x_CP = np.linalg.solve(lower, near.column_CP)
    e_CE = np.linalg.solve(lower, near.contrast_CN @ extra_NE)
    y_C = np.linalg.solve(lower, near.residual_C)

    def rest(columns: np.ndarray) -> tuple[float, int]:
        fit, _, rank, _ = np.linalg.lstsq(columns, y_C, rcond=1e-8)
        return float(np.sum((y_C - columns @ fit) ** 2)), int(rank)

    (common, rank), (own, own_rank) = rest(x_CP), rest(np.hstack([x_CP, e_CE]))
    more, df = own_rank - rank, len(y_C) - own_rank
    if more < 1 or df < 1:
        return none
    scale = max(own / df, 1e-12)
    p = float(stats.f.sf((common - own) / more / scale, more, df))
    worst = []
    if p < MISFIT_LEVEL:
        gains = []
        for h, student in enumerate(students):
            columns = np.hstack([x_CP, e_CE[:, [h, len(students) + h]]])
            gains.append((common - rest(columns)[0], student))
        worst = [student for _, student in sorted(gains, reverse=True)[:2]]
    text = "optima and curvatures of the students agree with one law"
    if worst:
        text = f"optima or curvatures of {listed(worst)} differ from the common law"
    return Misfit(p=p, students=worst, reason=f"{text} (p = {p:.2g})")


def teacher_effects(law: PowerLaw) -> list[TeacherEffect]:
    """Effects of every teacher drawn, if teachers have a component of their own.

    Best linear unbiased predictions with their prediction intervals (Henderson 1975): shrunk toward
    0, so that no correction for the number of teachers is needed.
    """
    index_N = law.components.index.get("teacher")
    if index_N is None:
        return []
    p_NN = precision_without_fit(law, law.noise_NN)
    variance = law.component_variances["teacher"]
    own_NT = (index_N[:, None] == np.arange(index_N.max() + 1)).astype(float)
    effect_T = variance * own_NT.T @ p_NN @ law.floor_N
    left_T = variance - variance**2 * np.einsum("nt,nm,mt->t", own_NT, p_NN, own_NT)
    half_T = stats.norm.ppf((1 + OFF_FAMILY) / 2) * np.sqrt(np.maximum(left_T, 0))
    several = len(set(law.runs.teacher_draw_N)) > len(set(law.runs.teacher_N))
    found = []
    for t in range(own_NT.shape[1]):
        run = int(np.argmax(index_N == t))
        name = law.runs.teacher_draw_N if several else law.runs.teacher_N
        value, half = float(effect_T[t]), float(half_T[t])
        found.append(
            TeacherEffect(
                teacher=str(name[run]),
                teacher_params_non_embedding=float(law.runs.teacher_size_N[run]),
                effect_nats=value,
                effect=Interval.around(value, half),
                off_family=abs(value) > half,
            )
        )
    return found


def size_counts(runs: pd.DataFrame, settings: Law) -> list[SizeCount]:
    """How well the law fits under every count of size whose columns are complete in the table."""
    main, found = main_arm(runs), []
    for name, columns in SIZES.items():
        if all(column in main and main[column].notna().all() for column in columns):
            law = fit_power_law(group_runs(main, name), settings.noise_sd)
            residual_C = law.near.residual_C
            df = max(1, len(residual_C) - law.curves.p)
            rms = float(np.sqrt(residual_C @ residual_C / df))
            found.append(SizeCount(size=name, rms_nats=rms))
    return found
