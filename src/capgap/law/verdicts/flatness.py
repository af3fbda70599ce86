"""
Whether teacher size makes a difference: a parabola in log T/S, the same in all groups.

It is fitted with the noise of the runs alone, at every draw of that noise, so that test and bounds
account for the uncertainty of the noise: above all of how far teachers of one size differ, about
which a few teachers say little.

The law is flat if the parabola is not significant (half of alpha) and the ends and the middle of the
ladder are shown to differ by at most four ties: two one-sided tests at alpha (Schuirmann 1987).

Shapes: R draws of the noise, C contrasts of runs without the groups' levels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from capgap.config import Law
from capgap.law.power_law import noise
from capgap.law.power_law.power_law import PowerLaw, mixture_quantile

FLAT_TIES = 4  # a difference between teachers that still counts as flat, in ties
ENDS = (0.1, 0.9)  # quantiles of log T/S over the runs that stand for the ends of the ladders


@dataclass(frozen=True)
class Pooled:
    """Differences of loss: lower end to middle, middle to upper end, end to end; nats."""

    p: float  # p-value of no difference
    difference_3: np.ndarray
    bound_3: np.ndarray  # upper bounds of their absolute values, each at the stated confidence


def pooled_differences(law: PowerLaw, confidence: float) -> Pooled:
    """Differences over the ladders by the pooled parabola. confidence: of the one-sided bounds."""
    near, u_N = law.near, law.runs.log_ratio_N
    u_N = u_N - u_N.mean()
    column_C2 = near.contrast_CN @ np.column_stack([u_N, u_N**2])
    loss_C = near.contrast_CN @ law.runs.loss_N
    variance_RJ = law.components.variances(law.draws.phi_RJ).copy()
    variance_RJ[:, [name in noise.FORM for name in law.components.names]] = 0.0
    normal_R22, pull_R2 = [], []
    for variance_J in variance_RJ:
        lower_CC = np.linalg.cholesky(np.tensordot(variance_J, near.part_JCC, axes=1))
        white_C3 = np.linalg.solve(lower_CC, np.column_stack([column_C2, loss_C]))
        normal_R22.append(white_C3[:, :2].T @ white_C3[:, :2])
        pull_R2.append(white_C3[:, :2].T @ white_C3[:, 2])
    covariance_R22 = np.linalg.inv(normal_R22)
    beta_R2 = np.einsum("rij,rj->ri", covariance_R22, pull_R2)
    chi2_R = np.einsum("ri,ri->r", beta_R2, pull_R2)
    weight_R = law.draws.weight_R
    low, high = np.quantile(u_N, ENDS)
    middle = (low + high) / 2
    steps = [(low, middle), (middle, high), (low, high)]
    contrast_32 = np.array([[b - a, b**2 - a**2] for a, b in steps])
    mean_R3 = beta_R2 @ contrast_32.T
    sd_R3 = np.sqrt(np.einsum("ci,rij,cj->rc", contrast_32, covariance_R22, contrast_32))
    bounds = [
        max(
            abs(mixture_quantile(mean_R3[:, c], sd_R3[:, c], weight_R, tail))
            for tail in (1 - confidence, confidence)
        )
        for c in range(len(steps))
    ]
    p = float(weight_R @ stats.chi2.sf(chi2_R, 2))
    return Pooled(p, weight_R @ mean_R3, np.array(bounds))


def is_flat(law: PowerLaw, settings: Law) -> bool:
    """Whether teacher size makes no difference that matters, by the rule of the module."""
    found = pooled_differences(law, settings.confidence)
    small = found.bound_3 <= FLAT_TIES * settings.tie_nats
    return bool(found.p >= (1 - settings.confidence) / 2 and small.all())
