"""
Do the intervals of the law cover the truth as often as they claim, and are the verdicts right?

Simulates whole studies with a known law, fits each, and prints three tables as markdown:

  estimates        coverage of the intervals of T* (of all students and budgets), of the exponents and
                   of T*/S at 25 tokens per parameter, with the median half width of each interval (of
                   logs for T* and T*/S)
  verdicts         how often the published ratio is found, the law contradicted, or the curves flat
  recommendations  mean regret, for a student size that was not tried, of the recommended teacher
                   and of the best teacher of the nearest student, nats per token, by the true curves

    OMP_NUM_THREADS=1 python benchmarks/coverage.py --studies 200 --rows rows.json

Finished rows are kept in the file of --rows, and a second call with the same file continues after them.
With 200 studies a coverage of 95 % is known to +-3 points. Order noise is 0.003 nats, that of pruned
inits 0.004; T* = 50k (S/17k)^0.30 (D/500k)^0.68 unless stated otherwise.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from law_simulation import Design, Star, World, line, power, shared_ladder, simulate

from capgap.config import Law
from capgap.law.answers.power_law_answer import predict, regrets
from capgap.law.fit_law import fit_law
from capgap.law.optimum_records import optima_of
from capgap.law.power_law.loss_curve import bowl
from capgap.law.power_law.power_law import fit_power_law
from capgap.law.table.grouped_runs import group_runs
from capgap.law.verdicts.claims import overall_of
from capgap.law.verdicts.flatness import is_flat

WIDE = np.array([5, 7.1, 10, 14.4, 20.5, 29, 41, 58, 82, 116, 164, 232, 328, 464, 656]) * 1e3
COARSE = WIDE[::2]
NOISE = {"order_sd": 0.003, "init_sd": 0.004}
THREE, FIVE = (6e3, 12e3, 24e3), (6e3, 9e3, 13e3, 19e3, 28e3)


def per_token(ratio: float, exponent: float) -> Star:
    """T*/S = ratio (D / S / 25)^exponent: a law in tokens per student parameter."""
    return lambda s, d: ratio * s * (d / s / 25) ** exponent


def kink(star: Star, tokens: float, b: float) -> Star:
    """A law up to some tokens, and T* ~ D^b from there."""
    return lambda s, d: star(s, min(d, tokens)) * max(1.0, d / tokens) ** b


def _one_budget(students: Sequence[float], ladder: np.ndarray, teachers: int, **runs) -> Design:
    ladders = shared_ladder(students, ladder, teachers)
    return Design(ladders, dict.fromkeys(students, (500000.0,)), **runs)


def _per_param(students: Sequence[float], ladder: np.ndarray, teachers: int, **runs) -> Design:
    ladders = shared_ladder(students, ladder, teachers)
    return Design(ladders, {s: (12.5 * s, 25 * s, 50 * s) for s in students}, **runs)


def _table(students: Sequence[float], ladder: Sequence[float], budgets, **runs) -> Design:
    return Design(dict.fromkeys(students, ladder), dict.fromkeys(students, budgets), **runs)


DEFAULT = _table((13e3, 16e3, 20e3), (23e3, 41e3, 64e3, 126e3), (5e5,), seeds=(0, 1))
BUDGETS = _table((13e3, 17e3, 22e3), (23e3, 41e3, 92e3, 164e3), (25e4, 5e5, 1e6))
DESIGNS = {
    "one budget, 4 teachers": DEFAULT,
    "three budgets": BUDGETS,
    "three budgets, 2 replicas": dataclasses.replace(BUDGETS, replicas=(0, 1)),
    "tokens per parameter": _per_param(THREE, COARSE, 4),
    "the same, 2 replicas": _per_param(THREE, COARSE, 4, replicas=(0, 1)),
    "5 students, 5 teachers": _one_budget(FIVE, WIDE, 5, seeds=(0, 1)),
    "5 students, 3 budgets": _per_param(FIVE, WIDE, 6),
}
TEACHER_SDS = (0.0, 0.005, 0.01)
LAW = (0.30, 0.68)
FORMS = {  # other truths, teacher sd 0.005
    "skew 0.5": {"skew": 0.5},
    "curvature +-30 % by student": {"curvature_scatter": 0.3},
    "T* scattered by 6 %": {"star_scatter": 0.06},
    "curves saturate at 0.1 nats": {"ceiling": 0.1},
    "a plateau from 500k tokens": {"star": kink(power(*LAW), 5e5, 0.0)},
}
CONSTANT = {"seeds": (0, 1)}
VERDICTS = {
    "T* = 2.5 S": (World(line(2.5, 0)), _one_budget(THREE, WIDE, 5, **CONSTANT)),
    "T* = 2.5 S, 3 budgets": (World(line(2.5, 0)), _per_param(THREE, WIDE, 5, **CONSTANT)),
    "T* = 2.5 S + 5k, S over a factor of 20": (
        World(line(2.5, 5e3)),
        _one_budget((6e3, 11e3, 20e3, 36e3, 65e3, 120e3), WIDE, 5, **CONSTANT),
    ),
    "T* = 2.5 S, 5 students": (World(line(2.5, 0)), _one_budget(FIVE, WIDE, 5, **CONSTANT)),
    "T* = 1.7 S": (World(line(1.7, 0)), _one_budget(THREE, WIDE, 5, **CONSTANT)),
    "T* = 3.5 S": (World(line(3.5, 0)), _one_budget(THREE, WIDE, 5, **CONSTANT)),
    "T* ~ S^0.6": (World(power(0.6, 0)), _one_budget(THREE, WIDE, 5, **CONSTANT)),
    "T*/S ~ (D/S)^0.7": (World(per_token(2.5, 0.7)), _per_param(THREE, WIDE, 5, **CONSTANT)),
    "no teacher differs": (
        World(line(2.5, 0), curvature=0.0),
        _one_budget(THREE, WIDE, 5, **CONSTANT),
    ),
}
UNSEEN = {
    "one budget, 4 teachers": (18e3, 5e5),
    "three budgets": (19e3, 7e5),
    "tokens per parameter": (17e3, 4.2e5),
}


class Rows:
    """Rows of the tables, computed once and kept in a file."""

    def __init__(self, path: Path | None):
        self.path = path
        self.done = json.loads(path.read_text()) if path and path.exists() else {}

    def show(self, key: Sequence[object], row: Callable[[], Sequence[str]]) -> None:
        """Print a row, made by `row` unless the file has it. key: what it depends on."""
        name = json.dumps(key)
        if name not in self.done:
            self.done[name] = list(row())
            if self.path:
                self.path.write_text(json.dumps(self.done, indent=1))
        print(f"| {' | '.join(self.done[name])} |", flush=True)


def estimates(settings: Law, studies: int, only: str | None, table: Rows) -> None:
    """Print the table of estimates."""
    names = ("T*", "a", "b", "a + b", "T*/S at 25")
    print(f"| study | teacher sd | {' | '.join(names)} | s a study |")
    print(f"|---|---|{'---|' * (len(names) + 1)}")
    rows = [(name, design, sd, {}) for name, design in DESIGNS.items() for sd in TEACHER_SDS]
    rows += [(name, BUDGETS, 0.005, more) for name, more in FORMS.items()]
    for name, design, sd, more in rows:
        if only and only not in name:
            continue
        world = World(**{"star": power(*LAW), "teacher_sd": sd, **NOISE, **more})

        def row(name=name, design=design, sd=sd, world=world):
            rng, start = np.random.default_rng(0), time.process_time()
            found: dict[str, list[tuple[bool, float]]] = {n: [] for n in names}
            for _ in range(studies):
                one_study(rng, world, design, settings, found)
            spent = (time.process_time() - start) / studies
            return [name, f"{sd:g}", *(_cell(found[n]) for n in names), f"{spent:.2f}"]

        table.show(["estimates", studies, name, sd], row)


def one_study(rng, world: World, design: Design, settings: Law, found) -> None:
    """Simulate and fit one study; add (covered, half width) to every list."""
    law = fit_power_law(group_runs(simulate(rng, world, design)))
    runs, first = law.runs, law.runs.first_G

    def add(name: str, limits, truth: float) -> None:
        if limits is not None and np.isfinite(truth):
            low = -np.inf if limits.low is None else limits.low
            high = np.inf if limits.high is None else limits.high
            found[name].append((low <= truth <= high, limits.width / 2))

    level = settings.confidence
    for size, tokens in zip(runs.size_N[first], runs.tokens_N[first], strict=True):
        add("T*", law.log_ratio(size, tokens, level), np.log(world.star(size, tokens) / size))
    exact = world.star_scatter == 0 and world.star(1e4, 1e6) / world.star(1e4, 5e5) > 1.01
    a, b = LAW if exact else (np.nan, np.nan)
    add("a", law.exponent(1, 0, level), a)
    add("b", law.exponent(0, 1, level), b)
    add("a + b", law.exponent(1, 1, level), a + b)
    size = float(np.exp(law.axes.centre[0]))
    at_25 = np.log(world.star(size, 25 * size) / size)
    add("T*/S at 25", law.log_ratio(size, 25 * size, level), at_25)


def _cell(found: list[tuple[bool, float]]) -> str:
    if not found:
        return "-"
    covered, width = np.array(found, dtype=float).T
    return f"{covered.mean():.1%}, {np.median(width):.2f}"


def verdicts(settings: Law, studies: int, table: Rows) -> None:
    """Print the table of verdicts."""
    print("\n| truth | teacher sd | the published ratio | contradicted | supported | flat |")
    print("|---|---|---|---|---|---|")
    for sd in (0.005, 0.0):
        for name, (world, design) in VERDICTS.items():
            noisy = World(**{**world.__dict__, **NOISE, "teacher_sd": sd})

            def row(name=name, design=design, sd=sd, noisy=noisy):
                rng, counts = np.random.default_rng(0), np.zeros(4)
                for _ in range(studies):
                    fit = fit_law(simulate(rng, noisy, design), settings)
                    overall = overall_of(
                        fit.power_law, "", optima_of(fit, settings, own=False), [], settings
                    )
                    ratio = next(claim for claim in overall.claims if claim.name == "ratio")
                    status = [overall.status == s for s in ("contradicted", "supported")]
                    counts += [ratio.answer == "yes", *status, is_flat(fit.power_law, settings)]
                return [name, f"{sd:g}", *(f"{count / studies:.1%}" for count in counts)]

            table.show(["verdicts", studies, name, sd], row)


def recommendations(settings: Law, studies: int, table: Rows) -> None:
    """Print the table of recommendations."""
    print("\n| study | teacher sd | recommended | best of the nearest student | difference |")
    print("|---|---|---|---|---|")
    for name, (size, tokens) in UNSEEN.items():
        for sd in TEACHER_SDS:
            world = World(power(*LAW), teacher_sd=sd, **NOISE)

            def row(name=name, size=size, tokens=tokens, sd=sd, world=world):
                rng, found = np.random.default_rng(0), []
                for _ in range(studies):
                    fit = fit_law(simulate(rng, world, DESIGNS[name]), settings)
                    found.append(_regrets(fit, world, size, tokens, settings))
                own, nearest = np.mean(found, axis=0)
                cells = [f"{own:.4f}", f"{nearest:.4f}", f"{own - nearest:+.4f}"]
                return [name, f"{sd:g}", *cells]

            table.show(["recommendations", studies, name, sd], row)


def _regrets(fit, world: World, size: float, tokens: float, settings: Law) -> tuple[float, float]:
    """True regret of the recommended teacher and of the nearest student's best one."""
    teachers = np.unique(fit.runs.teacher_size_N)
    teachers = teachers[teachers > size]
    star = world.star(size, tokens)
    scale = world.curvature * np.exp(world.skew * np.log(star / size / 2.5))
    true = scale * bowl(np.log(teachers / star), np.float64(world.skew))
    found = predict(fit, size, tokens, settings.confidence)
    values = [r.value for r in regrets(fit, found, teachers, size, tokens, settings.confidence)]
    near = min(
        fit.located,
        key=lambda p: abs(np.log(p.size / size)) + abs(np.log(p.tokens / tokens)),
    )
    best = near.means.size_U[near.means.mean_U.argmin()]
    pick = int(np.abs(np.log(teachers / best)).argmin())
    return float(true[int(np.argmin(values))] - true.min()), float(true[pick] - true.min())


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--studies", type=int, default=200)
    parser.add_argument("--tables", nargs="+", default=["estimates", "verdicts", "recommendations"])
    parser.add_argument("--only", help="studies whose name holds this, of the first table")
    parser.add_argument("--rows", type=Path, help="file that keeps finished rows")
    args = parser.parse_args()
    settings, table = Law(), Rows(args.rows)
    if "estimates" in args.tables:
        estimates(settings, args.studies, args.only, table)
    if "verdicts" in args.tables:
        verdicts(settings, args.studies, table)
    if "recommendations" in args.tables:
        recommendations(settings, args.studies, table)


if __name__ == "__main__":
    sys.exit(main())
