"""Small studies with a known law, and the tables of runs in tests/law_cases."""

from pathlib import Path

import numpy as np

from capgap.config import Law
from capgap.law.simulate import simulate_runs
from capgap.law.table import read_runs

STUDENTS = (60e3, 100e3, 160e3)
FIVE = (60e3, 80e3, 100e3, 130e3, 160e3)
LADDER = (80e3, 150e3, 280e3, 530e3, 990e3)
QUICK = Law()


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
