"""
The variance components of a study's noise, estimated jointly.

The error of a run is the sum of independent normal parts, each drawn anew for

  order    every run: what the order of the data and rounding do
  block    every student, budget and data seed (alike for all teachers)
  trunk    every student, init, teacher and seed: what the budgets of one stable phase share
  init     every student and pruned init
  teacher  every teacher that was trained: shared by all students and budgets
  scatter  every student: its log T* about the power law (nats through the slope of its curve)
  curvature  every student: the logarithm of the curvature of its losses about the common one
  misfit   every run, in proportion to its fitted excess over its group's best teacher: curves are
           not exactly of the fitted form, and least so far from the optimum

A component whose draws coincide with those of another one is left out, and the other one includes its
variance. The standard deviations have lognormal priors, scaled by the order's, from replicas of the
default study's family: without replicas the runs contain little about how much a teacher shared by
all students moves them. The posterior is the restricted likelihood (REML; Patterson and Thompson
1971) times the priors. It is sampled by importance sampling from a multivariate t about its mode, so
that every later interval averages over the uncertainty of the noise.

Shapes: N runs, J components, R draws of the noise, P columns of the linearised model.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import optimize, stats
from scipy.stats import qmc

from capgap.law.table.grouped_runs import GroupedRuns

# Medians and standard deviations of the log of a component's standard deviation: relative to that
# of the order, of the order and init together (teacher), or absolute (scatter: of log T*; misfit:
# share of the excess). Redraws at 500k tokens gave order 0.006, init 0.010, teacher with init 0.013.
PRIORS = {
    "block": (1.0, 1.5),
    "trunk": (0.7, 0.8),
    "init": (1.6, 0.8),
    "teacher": (1.0, 1.0),
    "scatter": (0.01, 1.0),
    "curvature": (0.05, 1.2),
    "misfit": (0.02, 1.2),
}
FORM = ("scatter", "curvature", "misfit")  # errors of the fitted form, not of single runs
LEAST_SD = 1e-5  # nats, of the order: below the precision of an evaluation; keeps V regular
ORDER_SD = 2.0  # of the log of the order's standard deviation about the residuals'; hardly a prior
STATED_SD = 0.1  # the same about a stated value
DRAWS = 512  # only a tenth of them have weight if components are hard to separate
CHUNK = 32  # draws that are evaluated at a time
COARSEST_LAST = {
    "block": ("tokens_N", "student_N", "seed_N"),
    "trunk": ("student_N", "init_draw_N", "teacher_draw_N", "seed_N"),
    "init": ("student_N", "init_draw_N", "teacher_draw_N"),
    "teacher": ("teacher_draw_N",),
}


@dataclass(frozen=True)
class Components:
    """The components that a table can have, and which runs share a draw of each."""

    names: tuple[str, ...]  # J, order first
    index: dict[str, np.ndarray]  # draw of every run, of the components with shared draws
    weight_N: np.ndarray  # variance of a row's order noise, relative
    order: tuple[float, float]  # prior of the order's log standard deviation: mean, sd
    prior: dict[str, tuple[float, float]]  # of the others, as PRIORS
    includes: dict[str, tuple[str, ...]]  # components left out, by the one that holds their share
    stated: bool  # whether the order's standard deviation was stated

    def variances(self, phi_RJ: np.ndarray) -> np.ndarray:
        """Variances of all components, (R, J), from standardised log standard deviations."""
        sd = {"order": np.hypot(LEAST_SD, np.exp(self.order[0] + self.order[1] * phi_RJ[:, 0]))}
        for j, name in enumerate(self.names[1:], 1):
            median, spread = self.prior[name]
            scale = 1.0 if name in FORM else sd["order"]
            if name == "teacher":
                own = [sd[n] for n in ("order", "trunk", "init") if n in sd]
                scale = np.sqrt(np.square(own).sum(axis=0))
            sd[name] = scale * median * np.exp(spread * phi_RJ[:, j])
        return np.stack(list(sd.values()), axis=1) ** 2


def components_of(
    runs: GroupedRuns, rough_sd: float, noise_sd: float | None, several_students: bool
) -> Components:
    """The components of a table. rough_sd: of residuals, nats. noise_sd: stated, of one run."""
    order_index = np.arange(len(runs.loss_N))
    pooled = (runs.averaged_N > 1) & np.isfinite(runs.stated_sd_N)
    weight_N, order, stated = 1 / runs.averaged_N, (np.log(rough_sd), ORDER_SD), False
    if noise_sd is not None:
        order, stated = (np.log(noise_sd), STATED_SD), True
    elif pooled.any():
        df = float((runs.averaged_N - 1)[pooled].sum())
        variance = float(((runs.averaged_N - 1) * runs.stated_sd_N**2)[pooled].sum() / df)
        if variance > 0:
            order, stated = (np.log(variance) / 2, 1 / np.sqrt(2 * df)), True
    kept, includes = {"order": order_index}, {}
    prior = dict(PRIORS)
    for name in COARSEST_LAST:
        index = draws_of(runs, name)
        if index.max() == 0 or (name == "block" and np.array_equal(index, runs.group_N)):
            continue  # all runs share one draw, or the level of their group absorbs it
        same = next((n for n, other in kept.items() if np.array_equal(other, index)), None)
        # if the order is stated, the rest of a run's noise belongs to the other component
        if same is None or (same == "order" and stated):
            kept[name] = index
        elif same == "order":
            includes["order"] = (*includes.get("order", ()), name)
        else:  # the coarser one keeps its name
            kept[name] = kept.pop(same)
            includes[name] = (*includes.pop(same, ()), same)
            medians = prior[name][0], prior[same][0]
            prior[name] = (float(np.hypot(*medians)), prior[name][1])
    names = [name for name in ("order", *COARSEST_LAST) if name in kept]
    if several_students:
        names += ["scatter", "curvature"]
    del kept["order"]
    return Components((*names, "misfit"), kept, weight_N, order, prior, includes, stated)


def draws_of(runs: GroupedRuns, name: str) -> np.ndarray:
    """Which draw of a component every run has, as an index."""
    return runs.index(*COARSEST_LAST[name])


@dataclass(frozen=True)
class Linearised:
    """The model near its solution, with the groups' levels removed by contrasts of runs (C, N)."""

    contrast_CN: np.ndarray  # orthonormal, without the levels
    residual_C: np.ndarray
    column_CP: np.ndarray  # derivatives by the parameters of the curves
    prior_PP: np.ndarray  # precision
    prior_pull_P: np.ndarray  # precision times distance of the prior's mean from the solution
    part_JNN: np.ndarray  # covariance of the runs for a unit variance of every component

    @cached_property
    def part_JCC(self) -> np.ndarray:
        """The same of the contrasts."""
        return self.contrast_CN @ self.part_JNN @ self.contrast_CN.T


def parts_at(
    parts: Components,
    excess_N: np.ndarray,
    by_log_star_N: np.ndarray,
    by_log_curvature_N: np.ndarray,
    student_N: np.ndarray,
) -> np.ndarray:
    """Covariance of the runs for a unit variance of every component, (J, N, N).

    excess_N: fitted excess of every run over its group's best teacher. by_log_star_N: derivative of
    its loss by log T*. by_log_curvature_N: the same by the log of its curvature.
    """
    found = []
    for name in parts.names:
        if name == "order":
            found.append(np.diag(parts.weight_N))
        elif name == "misfit":
            found.append(np.diag(excess_N**2))
        elif name in ("scatter", "curvature"):
            slope_N = by_log_star_N if name == "scatter" else by_log_curvature_N
            found.append((student_N[:, None] == student_N) * np.outer(slope_N, slope_N))
        else:
            index = parts.index[name]
            found.append((index[:, None] == index).astype(float))
    return np.array(found)


def marginal(parts: Components, near: Linearised, phi_RJ: np.ndarray):
    """For every draw of the noise: log posterior (R,), step of the parameters (R, P), its covariance.

    The covariance is (R, P, P). phi_RJ: standardised log standard deviations.
    """
    variance_RJ = parts.variances(phi_RJ)
    v_RCC = np.tensordot(variance_RJ, near.part_JCC, axes=1)
    lower_RCC = np.linalg.cholesky(v_RCC)
    both = np.column_stack([near.column_CP, near.residual_C])
    white = np.linalg.solve(lower_RCC, np.broadcast_to(both, (len(phi_RJ), *both.shape)))
    a_RCP, r_RC = white[..., :-1], white[..., -1]
    normal_RPP = np.swapaxes(a_RCP, 1, 2) @ a_RCP + near.prior_PP
    pull_RP = np.einsum("rcp,rc->rp", a_RCP, r_RC) + near.prior_pull_P
    covariance_RPP = np.linalg.inv(normal_RPP)
    covariance_RPP = (covariance_RPP + np.swapaxes(covariance_RPP, 1, 2)) / 2
    step_RP = np.einsum("rpq,rq->rp", covariance_RPP, pull_RP)
    log_posterior_R = (
        -np.log(np.einsum("rcc->rc", lower_RCC)).sum(axis=1)
        + np.linalg.slogdet(covariance_RPP)[1] / 2
        - ((r_RC**2).sum(axis=1) - (pull_RP * step_RP).sum(axis=1)) / 2
        - (phi_RJ**2).sum(axis=1) / 2
    )
    return log_posterior_R, step_RP, covariance_RPP


@dataclass(frozen=True)
class NoiseDraws:
    """Weighted draws of the noise, and the linearised parameters given each."""

    phi_RJ: np.ndarray
    weight_R: np.ndarray  # sums to 1
    step_RP: np.ndarray  # correction of the parameters
    covariance_RPP: np.ndarray


def mode(parts: Components, near: Linearised, start_J: np.ndarray) -> np.ndarray:
    """The most likely noise, standardised."""
    h = 1e-4
    step = h * np.vstack([np.zeros(len(start_J)), np.eye(len(start_J))])

    def objective(phi_J: np.ndarray) -> tuple[float, np.ndarray]:
        value_R = -marginal(parts, near, phi_J + step)[0]
        return value_R[0], (value_R[1:] - value_R[0]) / h

    found = optimize.minimize(
        objective,
        start_J,
        jac=True,
        method="L-BFGS-B",
        bounds=[(-6, 6)] * len(start_J),
        options={"maxiter": 50, "ftol": 1e-6, "gtol": 1e-3},
    )
    return found.x


def draw_noise(parts: Components, near: Linearised, mode_J: np.ndarray) -> NoiseDraws:
    """Draws from the posterior of the noise by importance sampling about its mode."""
    j = len(mode_J)
    h = 0.25
    row, column = np.triu_indices(j, 1)
    one = h * np.eye(j)
    offsets = np.vstack([np.zeros(j), one, -one, one[row] + one[column]])
    value = marginal(parts, near, mode_J + offsets)[0]
    centre, up, down, corner = np.split(value, [1, j + 1, 2 * j + 1])
    hessian = np.diag(up + down - 2 * centre)
    hessian[row, column] = hessian[column, row] = corner - up[row] - up[column] + centre
    size, direction = np.linalg.eigh(-hessian / h**2)
    spread_JJ = direction / np.sqrt(np.clip(size, 0.3, None))
    degrees = 6
    uniform = qmc.Sobol(j + 1, scramble=True, seed=0).random(DRAWS)
    normal_RJ = stats.norm.ppf(uniform[:, :j])
    scale_R1 = np.sqrt(degrees / stats.chi2.ppf(uniform[:, j:], degrees))
    unit_RJ = normal_RJ * scale_R1
    phi_RJ = np.clip(mode_J + unit_RJ @ spread_JJ.T, -8, 8)
    log_q_R = -(degrees + j) / 2 * np.log1p((unit_RJ**2).sum(axis=1) / degrees)
    chunks = [marginal(parts, near, phi_RJ[i : i + CHUNK]) for i in range(0, DRAWS, CHUNK)]
    log_posterior_R, step_RP, covariance_RPP = (
        np.concatenate(c) for c in zip(*chunks, strict=True)
    )
    log_w_R = log_posterior_R - log_q_R
    weight_R = np.exp(log_w_R - log_w_R.max())
    return NoiseDraws(phi_RJ, weight_R / weight_R.sum(), step_RP, covariance_RPP)
