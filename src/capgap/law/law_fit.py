"""The joint fit with its noise: parameters, their uncertainty, and intervals of what follows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

from capgap.law import joint_fit, noise
from capgap.law.grouped_runs import GroupedRuns

PASSES = 4  # of noise and fit in turn


@dataclass(frozen=True)
class JointLaw:
    runs: GroupedRuns
    curves: joint_fit.Curves
    x_P: np.ndarray
    parts: noise.Components
    near: noise.Linearised
    mode_J: np.ndarray
    draws: noise.NoiseDraws
    remove_MN: np.ndarray
    objective: float

    @property
    def levels(self) -> int:
        return len(self.runs.first_G)


def fit(runs: GroupedRuns, noise_sd: float | None = None) -> JointLaw:
    axes = joint_fit.axes_of(runs)
    curves = joint_fit.Curves(runs, axes)
    n = len(runs.loss_N)
    rough = 0.01
    remove = joint_fit.remover(runs, rough**2 * np.eye(n))
    starts = joint_fit.starting_points(curves, runs)
    solution = joint_fit.solve(curves, runs.loss_N, remove, starts)
    df = max(1, n - len(runs.first_G) - curves.p)
    rough_sd = rough * np.sqrt(max(solution.objective / df, 1e-6))
    several = len(set(runs.student_N)) > 1
    parts = noise.components_of(runs, rough_sd, noise_sd, several)
    phi = np.zeros(len(parts.names))
    x = solution.x_P
    for turn in range(PASSES):
        near = linearise(runs, curves, parts, x)
        phi = noise.mode(parts, near, phi)
        v = np.tensordot(parts.variances(phi[None])[0], near.part_JNN, axes=1)
        remove = joint_fit.remover(runs, v)
        new = joint_fit.solve(curves, runs.loss_N, remove, np.vstack([x, starts]) if turn == 0 else x[None])
        moved = np.abs(new.x_P - x).max()
        x = new.x_P
        if moved < 3e-3:
            break
    near = linearise(runs, curves, parts, x)
    draws = noise.draw_noise(parts, near, phi)
    return JointLaw(runs, curves, x, parts, near, phi, draws, remove, new.objective)


def linearise(runs: GroupedRuns, curves: joint_fit.Curves, parts, x_P: np.ndarray) -> noise.Linearised:
    f, slope = curves.evaluate(x_P[None])
    f_N, slope_NP = f[0], slope[0]
    g = runs.group_N
    levels_NG = (g[:, None] == np.arange(g.max() + 1)).astype(float)
    least_G = np.full(g.max() + 1, np.inf)
    np.minimum.at(least_G, g, f_N)
    contrast_CN = np.linalg.qr(levels_NG, mode="complete")[0][:, levels_NG.shape[1] :].T
    precision = curves.prior_PP.T @ curves.prior_PP
    by_star = slope_NP[:, 0] / curves.design_NQ[:, 0]
    return noise.Linearised(
        contrast_CN,
        contrast_CN @ (runs.loss_N - f_N),
        contrast_CN @ slope_NP,
        precision,
        precision @ (curves.prior_mean_P - x_P),
        noise.parts_at(parts, f_N - least_G[g], by_star, runs.index("student_N")),
    )
