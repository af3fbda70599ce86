"""Small studies with a known law, and the tables of runs in tests/law_cases."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from law_simulation import Design, World, line
from law_simulation import simulate as simulate_world

from capgap.config import Law
from capgap.config.run_grid import RANDOM
from capgap.law.table.read_runs import read_runs

STUDENTS = (60e3, 100e3, 160e3)
FIVE = (60e3, 80e3, 100e3, 130e3, 160e3)
LADDER = (80e3, 150e3, 280e3, 530e3, 990e3)
QUICK = Law()


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
    between_init_sd: float = 0.0,
    scatter_sd: float = 0.0,
) -> pd.DataFrame:
    """Runs of each student with the teachers of its ladder at one budget, T* = slope S + intercept.

    noise_sd, seed_sd, between_init_sd: nats, of the order, of blocks, and of inits. scatter_sd: of
    log T*.
    """
    world = World(
        line(slope, intercept),
        curvature=curvature,
        skew=skew,
        tilt=-skew,
        order_sd=noise_sd,
        block_sd=seed_sd,
        init_sd=between_init_sd,
        star_scatter=scatter_sd,
    )
    design = Design(
        dict(zip(students, ladders, strict=True)), dict.fromkeys(students, (tokens,)), range(seeds)
    )
    return simulate_world(rng, world, design)


def simulate(seed=0, students=STUDENTS, ladder=LADDER, **world):
    """Main-arm runs of every student with one ladder of teachers."""
    return simulate_runs(np.random.default_rng(seed), students, [ladder] * len(students), **world)


def noise_free(**world):
    return simulate(**{"noise_sd": 0, "seed_sd": 0, **world})


def case(name):
    """The runs of a table in tests/law_cases."""
    return read_runs(Path(__file__).parent / "law_cases" / f"{name}.csv")


def holds(interval, truth):
    """Whether an interval, open on a side whose limit is None, holds a number."""
    low = -np.inf if interval.low is None else interval.low
    high = np.inf if interval.high is None else interval.high
    return bool(low <= truth <= high)


def width(interval):
    return np.inf if None in (interval.low, interval.high) else interval.high - interval.low


TWO_KINDS_LADDER = (20e3, 40e3, 80e3, 160e3, 320e3)
TWO_KINDS = Design(
    dict.fromkeys((10e3, 15e3), TWO_KINDS_LADDER),
    dict.fromkeys((10e3, 15e3), (500e3, 1e6)),
    replicas=(1, 2),
)


def two_kinds(
    seed: int, ratio: float, teacher_sd: float = 0.01, other: str = "given-small", star=80e3
):
    """Runs of pruned students with T* = `star`, and of others with T* `ratio` times smaller.

    Every draw of a teacher moves its students by the same luck, whatever their init.
    """
    rng = np.random.default_rng(seed)
    worlds = [World(lambda s, d, r=r: star / r, skew=0.0, order_sd=0.001) for r in (1.0, ratio)]
    pruned, second = (simulate_world(rng, world, TWO_KINDS) for world in worlds)
    second = second.assign(init=other, arm="random_init" if other == RANDOM else "given")
    runs = pd.concat([pruned, second], ignore_index=True)
    luck = {key: rng.normal(0, teacher_sd) for key, _ in runs.groupby(["teacher", "teacher_seed"])}
    keys = zip(runs["teacher"], runs["teacher_seed"], strict=True)
    runs["val_loss_nats_per_token"] += [luck[key] for key in keys]
    return read_runs(runs)
