"""
Do the intervals of the law cover the truth as often as they say?

Simulates whole studies with a known law, fits each, and prints for each kind of world how often
the interval of the optimum and of the slope holds the truth, and how far the estimates are off.

    python benchmarks/coverage.py --studies 300

Columns: optima inside the grid (of those simulated); coverage of their intervals; intervals open
on a side; mean and root mean square of log(T* estimated / T* true); median width of the interval in
log T*; lines fitted; coverage and median width of the slope's interval, as reported (runs and
scatter) and over runs alone; mean slope (the truth is 2.5). With 300 studies a coverage of 95 %
of 900 optima is known to +-1.5 points, of 300 slopes to +-2.5.
"""

from __future__ import annotations

import argparse

import numpy as np
import pandas as pd

from capgap.config import Law
from capgap.law.simulate import simulate_runs
from capgap.law.study import law_record

SLOPE, INTERCEPT = 2.5, 5e3
STUDENTS = (60e3, 100e3, 160e3)
WORLDS = {
    "parabola": {},
    "3 seeds": {"seeds": 3},
    "3 teachers": {"teachers": 3, "step": 2.2},
    "4 teachers": {"teachers": 4},
    "7 teachers": {"teachers": 7, "step": 1.5},
    "skew 0.5": {"skew": 0.5},
    "skew 1": {"skew": 1.0},
    "skew 1, 3 teachers": {"skew": 1.0, "teachers": 3, "step": 2.2},
    "flat (curvature 0.05)": {"curvature": 0.05},
    "very flat (0.01)": {"curvature": 0.01},
    "uneven teachers 0.005": {"unevenness_sd": 0.005},
    "uneven teachers 0.02": {"unevenness_sd": 0.02},
    "scatter 5 %": {"scatter_sd": 0.05},
    "1 student, 3 teachers": {"students": (100e3,), "teachers": 3, "step": 2.2},
    "5 students": {"students": (60e3, 80e3, 100e3, 130e3, 160e3)},
}


def one_study(
    rng: np.random.Generator,
    settings: Law,
    *,
    students: tuple[float, ...] = STUDENTS,
    teachers: int = 5,
    step: float = 1.8,
    scatter_sd: float = 0.0,
    **world,
) -> dict[str, list[float]]:
    """Simulate and fit one study; the ladder starts near 1.4 times each student, at random."""
    start = {3: 1.2, 7: 0.9}.get(teachers, 1.3)
    ladders = [
        [s * start * factor * step**k for k in range(teachers)]
        for s, factor in zip(students, rng.uniform(0.85, 1.2, len(students)), strict=True)
    ]
    truth = {
        f"{s:.0f}": (SLOPE * s + INTERCEPT) * np.exp(rng.normal(0, scatter_sd)) for s in students
    }
    runs = pd.concat(
        [
            simulate_runs(rng, [s], [ladder], slope=0, intercept=truth[f"{s:.0f}"], **world)
            for s, ladder in zip(students, ladders, strict=True)
        ]
    )
    record = law_record(runs, settings)
    out: dict[str, list[float]] = {name: [] for name in COLUMNS}
    for optimum in record.optima:
        out["inside"].append(optimum.status == "interior")
        if optimum.status == "interior":
            star, true = optimum.teacher_params, truth[optimum.student]
            out["covered"].append(_holds(star, true))
            out["open"].append(star.low is None or star.high is None)
            out["error"].append(np.log(star.value / true))
            if not out["open"][-1]:
                out["width"].append(np.log(star.high / star.low))
    line = record.lines[0]
    out["fitted"].append(line.status == "fitted")
    if line.status == "fitted":
        out["slope"].append(line.slope.value)
        for name, interval in (("slope_all", line.slope), ("slope_runs", line.slope_resampled)):
            out[name].append(_holds(interval, SLOPE))
            if None not in (interval.low, interval.high):
                out[f"{name}_width"].append(interval.high - interval.low)
    return out


COLUMNS = [
    "inside",
    "covered",
    "open",
    "error",
    "width",
    "fitted",
    "slope",
    "slope_all",
    "slope_all_width",
    "slope_runs",
    "slope_runs_width",
]


def _holds(interval, truth: float) -> bool:
    low = -np.inf if interval.low is None else interval.low
    high = np.inf if interval.high is None else interval.high
    return bool(low <= truth <= high)


def main() -> None:
    """Print one line a world."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--studies", type=int, default=300)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--world", choices=WORLDS, help="only this one")
    args = parser.parse_args()
    settings = Law(resamples=args.resamples)
    print(
        f"{'world':24s} inside covered  open    bias     rms   width | fitted "
        "slope covered  width   runs only  width"
    )
    for name, world in WORLDS.items():
        if args.world not in (None, name):
            continue
        rng = np.random.default_rng(args.seed)
        studies = [one_study(rng, settings, **world) for _ in range(args.studies)]
        column = {c: np.array([v for s in studies for v in s[c]], dtype=float) for c in COLUMNS}
        mean = {c: v.mean() if len(v) else np.nan for c, v in column.items()}
        middle = {c: np.median(v) if len(v) else np.nan for c, v in column.items()}
        rms = np.sqrt(np.mean(column["error"] ** 2))
        print(
            f"{name:24s} {mean['inside']:6.1%} {mean['covered']:7.1%} {mean['open']:5.1%} "
            f"{mean['error']:+7.4f} {rms:7.4f} {middle['width']:7.4f} | {mean['fitted']:6.1%} "
            f"{mean['slope']:5.2f} {mean['slope_all']:7.1%} {middle['slope_all_width']:6.2f} "
            f"{mean['slope_runs']:11.1%} {middle['slope_runs_width']:6.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
