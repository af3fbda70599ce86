"""Small studies with a known law, as the tests of the law fit them."""

import numpy as np

from capgap.config import Law
from capgap.law.simulate import simulate_runs

STUDENTS = (60e3, 100e3, 160e3)
FIVE = (60e3, 80e3, 100e3, 130e3, 160e3)
PAPER = (30e3, 60e3, 110e3, 200e3, 360e3, 640e3)  # as many sizes as two families of models give
LADDER = (80e3, 150e3, 280e3, 530e3, 990e3)
QUICK = Law(resamples=200)


def simulate(seed=0, students=STUDENTS, ladder=LADDER, **world):
    """Main-arm runs of every student with one ladder of teachers."""
    return simulate_runs(np.random.default_rng(seed), students, [ladder] * len(students), **world)


def noise_free(**world):
    return simulate(**{"noise_sd": 0, "seed_sd": 0, **world})
