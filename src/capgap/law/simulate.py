"""
Runs with a known law, to see whether the regression finds it.

The loss of a student of size S from a teacher of size T is

  floor + curvature (exp(k d) - k d - 1) / k^2 + teacher + seed + noise,   d = log(T / T*(S))

with T* = slope S + intercept and k the skew: a curve with its minimum at T*, second derivative
`curvature` there and third derivative k times that; k = 0 is the parabola.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from capgap.design import pruned_from


def simulate_runs(
    rng: np.random.Generator,
    students: Sequence[float],
    ladders: Sequence[Sequence[float]],
    *,
    seeds: int = 2,
    tokens: int = 1_000_000,
    slope: float = 2.5,
    intercept: float = 0.0,
    curvature: float = 0.25,
    skew: float = 0.0,
    noise_sd: float = 0.003,
    seed_sd: float = 0.003,
    unevenness_sd: float = 0.0,
    scatter_sd: float = 0.0,
) -> pd.DataFrame:
    """Main-arm runs of each student with the teachers of its ladder, columns as in RunRow.

    students, ladders: parameters without embeddings. curvature: nats per squared unit of log size.
    noise_sd, seed_sd: nats, of each run and of each seed (shared by a student's teachers).
    unevenness_sd: nats, of each student and teacher, the same for all seeds. scatter_sd: of log T*
    about the line, one draw a student.
    """
    rows = []
    for student, ladder in zip(students, ladders, strict=True):
        star = (slope * student + intercept) * np.exp(rng.normal(0, scatter_sd))
        d_K = np.log(np.asarray(ladder, dtype=float) / star)
        curve_K = d_K**2 / 2 if skew == 0 else (np.expm1(skew * d_K) - skew * d_K) / skew**2
        curve_K = 4 + curvature * curve_K + rng.normal(0, unevenness_sd, len(d_K))
        order_B = rng.normal(0, seed_sd, seeds)
        loss_KB = curve_K[:, None] + order_B + rng.normal(0, noise_sd, (len(d_K), seeds))
        for k, size in enumerate(ladder):
            for seed in range(seeds):
                rows.append(
                    {
                        "student": f"{student:.0f}",
                        "init": pruned_from(f"t{size:.0f}"),
                        "teacher": f"t{size:.0f}",
                        "seed": seed,
                        "student_params_non_embedding": round(student),
                        "teacher_params_non_embedding": round(size),
                        "tokens": tokens,
                        "val_loss_nats_per_token": loss_KB[k, seed],
                        "arm": "main",
                    }
                )
    return pd.DataFrame(rows)
