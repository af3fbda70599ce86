"""Runs of a world in which the law of two causes holds, with the noise of real studies."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from capgap.config.run_grid import NONE, RANDOM, arm_of, pruned_from
from capgap.law.causes.causes_form import damage

# help, log_rate, by_tokens, by_size, log_ceiling
PILOT = (0.4, np.log(0.14), 0.8, 0.5, np.log(1.1))


def family_loss(size: np.ndarray | float) -> np.ndarray | float:
    """Loss of well-trained teachers by parameters, nats per token, near the pilot's."""
    return 2.1 + 0.85 * (np.asarray(size) / 2e4) ** -0.4


def simulate_causes(
    rng: np.random.Generator,
    students: Sequence[float] = (6e3, 10e3, 16e3, 32e3),
    ladder: Sequence[float] = (23e3, 41e3, 78e3, 145e3, 283e3, 539e3),
    budgets: Sequence[int] = (250_000, 500_000, 1_000_000),
    *,
    theta: Sequence[float] = PILOT,
    arms: Sequence[str] = (),
    seeds: int = 1,
    teacher_sd: float = 0.0,
    init_sd: float = 0.0,
    order_sd: float = 0.003,
    training_sd: float = 0.03,
    centre: tuple[float, float] = (13e3, 500e3),
) -> pd.DataFrame:
    """Runs with columns as in RunRow.

    theta: parameters as in `causes_form.NAMES`, about `centre` (student parameters, tokens).
    teacher_sd, init_sd, order_sd: nats, of each teacher (beyond its own loss), of each student's
    init from it, and of each run. training_sd: nats, of a teacher's own loss about the family's
    curve, which its students see through `help`.
    """
    theta_P = np.asarray(theta, dtype=float)
    own = {t: float(family_loss(t) + rng.normal(0, training_sd)) for t in ladder}
    luck = {t: rng.normal(0, teacher_sd) for t in ladder}
    rows = []
    for s in students:
        teachers = [t for t in ladder if t > 1.2 * s]
        made = {t: rng.normal(0, init_sd) for t in teachers}
        for a in [*teachers, None]:
            for b in [*teachers, None]:
                init = RANDOM if a is None else pruned_from(f"t{a:.0f}")
                teacher = NONE if b is None else f"t{b:.0f}"
                if arm_of(init, teacher) not in ("main", *arms):
                    continue
                for d in budgets:
                    logs = np.log(s / centre[0]), np.log(d / centre[1])
                    loss = 3.2 - 0.35 * logs[0] - 0.12 * logs[1]
                    loss += 0.6 if a is None else made[a] + damage(theta_P, np.log(a / s), *logs)
                    loss += 0.3 if b is None else theta_P[0] * own[b] + luck[b]
                    for seed in range(seeds):
                        rows.append(
                            {
                                "student": f"s{s:.0f}",
                                "init": init,
                                "teacher": teacher,
                                "seed": seed,
                                "student_params_non_embedding": round(s),
                                "teacher_params_non_embedding": np.nan if b is None else round(b),
                                "tokens": d,
                                "val_loss_nats_per_token": loss + rng.normal(0, order_sd),
                                "arm": arm_of(init, teacher),
                                "teacher_val_loss_nats_per_token": np.nan if b is None else own[b],
                            }
                        )
    return pd.DataFrame(rows)
