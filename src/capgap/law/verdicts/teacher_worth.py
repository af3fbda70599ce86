"""
What a teacher is worth: the loss without one above that with the best, at equal tokens and at equal compute.

Only inits that were trained both ways count, with their own teacher and on the data alone, and the best of
each. Controls often have fewer repetitions, so a pruned init without a teacher is taken at the mean loss
with its own teacher plus the mean gain of the runs that share init and order of the data.

At equal compute the FLOPs of the teacher's forward passes buy a student without one more tokens, D (1 +
f_T / (3 f_S)) instead of D. Its loss there is read off between two of its budgets, on a straight line in
log D. Losses bend upwards over log D, so the line lies above the curve, a little in the teacher's favour.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from capgap.config.run_grid import NONE
from capgap.law.law_record import Interval, WorthAtEqualCompute
from capgap.law.power_law.power_law import PowerLaw
from capgap.law.table.column_names import LOSS
from capgap.law.table.token_flops import TokenFlops


@dataclass(frozen=True)
class Cell:
    """A student at one budget, with and without a teacher; losses on the scale of the fit.

    means: by teacher whose students' init was also trained without one: `mean`, `size`, the number of
    runs, and `params`, its size. alone: `mean` and `size` of that init without a teacher. smallest: size of
    the smallest teacher, whether or not it is among these. shares_init: whether all teachers teach one
    init, as random and given ones. gain: of the own teacher over none, mean over all pairs of runs; None
    without pairs.
    """

    means: pd.DataFrame
    alone: pd.DataFrame
    smallest: float
    shares_init: bool
    gain: float | None

    @property
    def best(self) -> str:
        """The teacher with the lowest loss."""
        return str(self.means["mean"].idxmin())

    @property
    def own(self) -> str:
        """The teacher whose init does best without one; the best one if that is as good."""
        alone = self.alone["mean"]
        return self.best if alone[self.best] <= alone.min() else str(alone.idxmin())


def cell_of(group: pd.DataFrame) -> Cell:
    """The cell of the runs of one student at one budget (`read_runs`)."""
    group = group.assign(runs=group.get("n", 1), row=np.arange(len(group)))
    main = group[group["arm"] == "main"]
    without = group[(group["teacher"] == NONE) & group["init"].isin(main["init"])]
    same = [name for name in ("init", "init_seed", "seed") if name in group]
    if "teacher_seed" in group and without["teacher_seed"].any():
        same.append("teacher_seed")
    both = main.merge(without[[*same, LOSS, "runs", "row"]], on=same, suffixes=("", "_alone"))
    both["gain"] = both[f"{LOSS}_alone"] - both[LOSS]
    shares_init = main["init"].nunique() == 1 and main["teacher"].nunique() > 1
    found = {}
    for teacher, pairs in both.groupby("teacher", sort=True):
        taught = main[main["teacher"] == teacher]
        pair_runs = pairs[["runs", "runs_alone"]].min(axis=1)
        mean = float(np.average(taught[LOSS], weights=taught["runs"]))
        alone = mean + float(np.average(pairs["gain"], weights=pair_runs))
        size = min(
            pairs.drop_duplicates("row")["runs"].sum(),
            pairs.drop_duplicates("row_alone")["runs_alone"].sum(),
        )
        if shares_init:
            alone = float(np.average(without[LOSS], weights=without["runs"]))
            size = without["runs"].sum()
        params = taught["teacher_params_non_embedding"].iloc[0]
        found[teacher] = mean, taught["runs"].sum(), params, alone, size
    columns = ["mean", "size", "params", "alone", "alone_size"]
    cells = pd.DataFrame.from_dict(found, orient="index", columns=columns)
    return Cell(
        cells[["mean", "size", "params"]],
        cells[["alone", "alone_size"]].set_axis(["mean", "size"], axis=1),
        float(main["teacher_params_non_embedding"].min()),
        shares_init,
        float(both["gain"].mean()) if len(both) else None,
    )


def at_equal_tokens(cell: Cell, law: PowerLaw | None, confidence: float) -> Interval | None:
    """Loss of the best init without a teacher above that with the best teacher; None without controls.

    Below 0 no teacher is better. The interval has the noise of the gain and of the two teachers' means,
    and none without a power law; that the lowest of several means was chosen is not in it.
    """
    if not len(cell.alone):
        return None
    own, best = cell.own, cell.best
    alone, means = cell.alone.loc[own], cell.means
    value = float(alone["mean"] - means.at[best, "mean"])
    if law is None:
        return Interval.around(value, None)
    order, shared = variances(law)
    teacher = law.component_variances.get("teacher", 0.0)  # both have the same init
    if cell.shares_init:
        variance = order / alone["size"] + (order + teacher) / means.at[best, "size"]
    else:
        variance = (2 * order + teacher) / alone["size"]
    if own != best:
        variance += sum((order + shared) / means.at[name, "size"] for name in (own, best))
    return _around(value, variance, law, confidence)


def at_equal_compute(
    cells: dict[int, Cell],
    tokens: int,
    size: float,
    flops: TokenFlops,
    law: PowerLaw | None,
    confidence: float,
) -> WorthAtEqualCompute | None:
    """The same for the teacher that is worth most for its compute; its targets are computed online.

    cells: of one student by budget. size: of the student, parameters. None if the tokens that the
    compute of the best one buys, or of the next larger one, lie beyond the budgets without a teacher; and
    if it is the smallest that counts, but not the smallest that was tried.
    """
    budgets = [budget for budget, cell in sorted(cells.items()) if len(cell.alone)]
    if tokens not in budgets:
        return None
    log_B = np.log(budgets)
    loss_B = [float(cells[b].alone["mean"].min()) for b in budgets]
    found = []
    for name, row in cells[tokens].means.sort_values("params").iterrows():
        alone = 3 * float(flops.forward("student", size))
        bought = tokens * float(flops.per_token(size, row.params, 1)) / alone
        if bought > budgets[-1]:
            break  # as for all larger ones
        found.append(
            (float(np.interp(math.log(bought), log_B, loss_B)) - row["mean"], name, bought)
        )
    if not found:
        return None
    value, name, bought = max(found)
    if name == found[-1][1] and len(found) < len(cells[tokens].means):
        return None  # a larger one may be worth more
    if name == found[0][1] and cells[tokens].means.at[name, "params"] > cells[tokens].smallest:
        return None  # or a smaller one, whose init was not trained without it
    gain = Interval.around(value, None)
    if law is not None:
        order, shared = variances(law)
        upper = int(np.searchsorted(log_B, math.log(bought)))
        ends = [
            cells[b].alone.at[cells[b].own, "size"] for b in budgets[max(0, upper - 1) : upper + 1]
        ]
        # as if the means between which it lies moved together, and nothing of init or teacher cancelled
        variance = (order + shared) * (1 / min(ends) + 1 / cells[tokens].means.at[name, "size"])
        gain = _around(value, variance, law, confidence)
    return WorthAtEqualCompute(teacher=str(name), tokens_alone=bought, gain=gain)


def _around(value: float, variance: float, law: PowerLaw, confidence: float) -> Interval:
    half = stats.t.ppf((1 + confidence) / 2, law.noise_df) * math.sqrt(variance)
    return Interval.around(value, half)


def variances(law: PowerLaw) -> tuple[float, float]:
    """Variance of a run, and of a teacher or init, nats^2."""
    variance = law.component_variances
    own = sum(variance.get(name, 0.0) for name in ("order", "trunk"))
    return own, sum(variance.get(name, 0.0) for name in ("init", "teacher"))
