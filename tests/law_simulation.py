"""
Simulated studies with a known law, which show whether a fit recovers it.

The loss of a student of size S, distilled for D tokens from a teacher of size T, is

    level(S, D) + F(log(T/S) - u*(S, D)) + noise

with u* = log T*/S of a stated law and F a curve with its minimum there
(`capgap.law.power_law.loss_curve`), plus independent normal draws for the order of the data, blocks of
runs that share it, stable phases, pruned inits and teachers, as `capgap.law.power_law.noise` names them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from capgap.config.run_grid import pruned_from
from capgap.law.power_law.loss_curve import bowl

Star = Callable[[float, float], float]  # (S, D) -> T*


@dataclass(frozen=True)
class World:
    """The true law of T*, the curves about it, and the noise as standard deviations in nats."""

    star: Star
    curvature: float = 0.1  # nats per squared unit of log T, at T* of 2.5 S
    skew: float = -1.0  # k of the curve
    order_sd: float = 0.003
    block_sd: float = 0.0
    trunk_sd: float = 0.0
    init_sd: float = 0.0
    teacher_sd: float = 0.0
    star_scatter: float = 0.0  # of log T* about the law, one draw a student
    curvature_scatter: float = 0.0  # of log curvature, one draw a student
    # power of T*/S in the curvature, beyond the power `skew` that the fit assumes
    tilt: float = 0.0
    ceiling: float = np.inf  # nats above the optimum to which curves saturate


def power(
    a: float, b: float, centre: float = 50e3, at: tuple[float, float] = (17e3, 500e3)
) -> Star:
    """T* = centre (S / at[0])^a (D / at[1])^b."""
    return lambda s, d: centre * (s / at[0]) ** a * (d / at[1]) ** b


def line(slope: float, intercept: float) -> Star:
    """T* = slope S + intercept at every budget."""
    return lambda s, d: slope * s + intercept


@dataclass(frozen=True)
class Design:
    """The run grid: every student with the teachers of its ladder at its budgets."""

    ladders: Mapping[float, Sequence[float]]  # teacher sizes by student size
    budgets: Mapping[float, Sequence[float]]  # tokens by student size
    seeds: Sequence[int] = (0,)
    replicas: Sequence[int] = (0,)  # draws of every teacher, each with its own init


def shared_ladder(
    students: Sequence[float], ladder: Sequence[float], teachers: int, ratio: float = 2.9
):
    """By student, the adjacent teachers of one ladder whose sizes centre on `ratio` times its own."""
    sizes = np.sort(np.asarray(ladder, dtype=float))
    found = {}
    for s in students:
        from_centre = [
            abs(np.log(sizes[i : i + teachers] / (ratio * s)).mean())
            for i in range(len(sizes) - teachers + 1)
        ]
        first = int(np.argmin(from_centre))
        found[s] = tuple(sizes[first : first + teachers])
    return found


def _level(size: float, tokens: float) -> float:
    """Lowest loss of a student over all teachers, nats per token."""
    return 4.0 * (size / 1e4) ** -0.06 * (tokens / 5e5) ** -0.025


def simulate(rng: np.random.Generator, world: World, design: Design) -> pd.DataFrame:
    """Main-arm runs, columns as in RunRow with teacher_seed."""
    draws: dict[tuple, float] = {}

    def drawn(kind: str, sd: float, *key) -> float:
        if sd == 0:
            return 0.0
        if (kind, *key) not in draws:
            draws[kind, *key] = rng.normal(0, sd)
        return draws[kind, *key]

    rows = []
    for s in sorted(design.ladders):
        for d in sorted(design.budgets[s]):
            star = world.star(s, d) * np.exp(drawn("star", world.star_scatter, s))
            lean = np.log(star / s / 2.5)
            scale = world.curvature * np.exp(
                (world.skew + world.tilt) * lean + drawn("curvature", world.curvature_scatter, s)
            )
            for t in design.ladders[s]:
                excess = scale * float(bowl(np.log(t / star), np.float64(world.skew)))
                if np.isfinite(world.ceiling):
                    excess = -world.ceiling * np.expm1(-excess / world.ceiling)
                for replica in design.replicas:
                    shared = drawn("teacher", world.teacher_sd, t, replica)
                    shared += drawn("init", world.init_sd, s, t, replica)
                    for seed in design.seeds:
                        noise = drawn("block", world.block_sd, s, d, seed)
                        noise += drawn("trunk", world.trunk_sd, s, t, replica, seed)
                        rows.append(
                            {
                                "student": f"{s:.0f}",
                                "init": pruned_from(f"t{t:.0f}"),
                                "teacher": f"t{t:.0f}",
                                "seed": seed,
                                "student_params_non_embedding": round(s),
                                "teacher_params_non_embedding": round(t),
                                "tokens": round(d),
                                "val_loss_nats_per_token": _level(s, d)
                                + excess
                                + shared
                                + noise
                                + rng.normal(0, world.order_sd),
                                "arm": "main",
                                "teacher_seed": replica,
                            }
                        )
    runs = pd.DataFrame(rows)
    return runs if len(design.replicas) > 1 else runs.drop(columns="teacher_seed")
