"""Small studies with a known law, and the tables of runs in tests/law_cases."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from capgap.config import Law
from capgap.law.simulate import Design, World, line
from capgap.law.simulate import simulate as simulate_world
from capgap.law.table import read_runs

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
    """Whether an interval, open where a limit is None, holds a number."""
    low = -np.inf if interval.low is None else interval.low
    high = np.inf if interval.high is None else interval.high
    return bool(low <= truth <= high)


def width(interval):
    return np.inf if None in (interval.low, interval.high) else interval.high - interval.low
