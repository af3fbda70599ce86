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

from capgap.config.run_grid import NONE, RANDOM, arm_of, pruned_from


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


def simulate_study(
    rng: np.random.Generator,
    students: Sequence[float],
    ladder: Sequence[float],
    *,
    budgets: Sequence[int] = (1_000_000, 4_000_000),
    seeds: int = 2,
    arms: Sequence[str] = ("no_teacher", "random_init", "cross_teacher"),
    damage: float = 0.08,
    help_nats: float = 0.2,
    decay: float = 0.3,
    bend: float = 0.0,
    ratio: float = 2.5,
    noise_sd: float = 0.002,
) -> pd.DataFrame:
    """Runs with control arms from a mechanism: starts that pruning damages, teachers that help.

    The loss of a student S pruned from A and taught by B for D tokens is, in nats per token,

      level(S, D) + damage log(A/S) (D / 1M)^-decay - help (1 - S/B) + bend/2 log^2(B / (ratio S))

    without the last two terms where there is no teacher, and with 0.6 nats instead of the second
    for a random start. With bend = 0 the main arm has its optimum at T*/S = help / damage
    (D / 1M)^decay although larger teachers always help more: the start makes it. With damage =
    help = 0 the teacher does.
    """
    rows = []
    for s in students:
        teachers = [t for t in ladder if t > s]
        pairs = [(a, b) for a in [*teachers, None] for b in [*teachers, None]]
        for a, b in pairs:
            init = RANDOM if a is None else pruned_from(f"t{a:.0f}")
            teacher = NONE if b is None else f"t{b:.0f}"
            arm = arm_of(init, teacher)
            if arm != "main" and arm not in arms:
                continue
            for d in budgets:
                loss = 3 - 0.25 * np.log(s / 1e5) - 0.1 * np.log(d / 1e6)
                loss += 0.6 if a is None else damage * np.log(a / s) * (d / 1e6) ** -decay
                if b is not None:
                    loss -= help_nats * (1 - s / b)
                    loss += bend / 2 * np.log(b / (ratio * s)) ** 2
                for seed in range(seeds):
                    rows.append(
                        {
                            "student": f"{s:.0f}",
                            "init": init,
                            "teacher": teacher,
                            "seed": seed,
                            "student_params_non_embedding": round(s),
                            "teacher_params_non_embedding": np.nan if b is None else round(b),
                            "tokens": d,
                            "val_loss_nats_per_token": loss + rng.normal(0, noise_sd),
                            "arm": arm,
                            "teacher_val_loss_nats_per_token": (
                                np.nan if b is None else 2.2 + 1.5 * (b / 1e4) ** -0.25
                            ),
                            "start_val_loss_nats_per_token": (
                                7.0 if a is None else 4 + 0.5 * np.log(a / s)
                            ),
                        }
                    )
    return pd.DataFrame(rows)
