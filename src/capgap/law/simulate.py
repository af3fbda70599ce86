"""Simulated runs of a whole study with its control arms, for calibration and tests."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from capgap.config.run_grid import NONE, RANDOM, arm_of, pruned_from


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
    """Runs with control arms from a mechanism: pruning damages inits, and teachers help.

    The loss of a student S pruned from A and taught by B for D tokens is, in nats per token,

      level(S, D) + damage log(A/S) (D / 1M)^-decay - help (1 - S/B) + bend/2 log^2(B / (ratio S))

    without the last two terms if there is no teacher, and with 0.6 nats instead of the second
    for a random init. With bend = 0 the main arm has its optimum at T*/S = help / damage
    (D / 1M)^decay although larger teachers always help more, so the init is its cause. With damage
    = help = 0 the teacher is.
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
