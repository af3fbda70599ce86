"""
The law of two causes: a better teacher helps, the cut that made the init hurts.

    loss(S, D, T) = level(S, D) + g L_T + damage
    damage        = A (1 - exp(-z)),   z = c / A (D / D0)^-q (S / S0)^-r log(T / S)

L_T is the teacher's own loss, T the size of the model that the init was pruned from, S and D student
size and tokens, S0 and D0 their geometric means over the runs. The damage is 0 without a cut, grows as
c log(T/S) while it is small, is repaired by tokens, and cannot exceed A: an init that is destroyed
cannot be destroyed more. The best teacher stands where the next one's better loss no longer pays for
its heavier cut, so T* moves with tokens and with how well the family is trained.

Every group of runs that differ only in what the law describes has a level of its own: student, budget,
how the init was made (pruned, random, or a given model by its name), and whether there is a teacher.
Random and given inits have no damage, and runs without a teacher no g L_T. So the arm with crossed
teachers separates teacher and cut, and the arm without a teacher shows the damage alone.

The fit is robust (soft L1 about the noise of the runs), with weak normal priors on what runs may leave
open. Intervals are those of the jackknife over teachers: all runs that a draw of a teacher taught, or
whose init was pruned from it, are left out at a time, because they share its luck (the cluster-robust
variance CR3; MacKinnon, Nielsen and Webb 2023, arXiv 2205.03285), with t limits of teachers less one.

The form was chosen by the errors it leaves out: on three pilot studies of 36 to 58 runs, each student,
budget or teacher in turn was left out and its losses were predicted within groups. Errors (rms, mnats)
and mean regrets of the choice (mnats) for students left out; `docs/method.md` has all of them.

  damage                             two families of students         another vocabulary
  none                               47     15                        67     24
  c log(T/S) D^-q                    26     16                        21      3
  c log(T/S) D^-q S^-r               27      1                        25      5
  A (1 - (S/T)^k) D^-q S^-r          24      1                        23      7
  A (1 - exp(-z)) without S^-r       26     14                        19      5
  A (1 - exp(-z))                    17      1                        21      7
  A z / (1 + z)                      17      2                        20      7
  A log(1 + z)                       18      2                        20      7

Shapes: N cells (means over seeds), G groups, P parameters, K draws of teachers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats
from scipy.optimize import least_squares
from scipy.stats import qmc

from capgap.config.run_grid import NONE, pruned_from
from capgap.law.law_record import Interval, TwoCausesFit
from capgap.law.table import UNSTATED

# Prior means and standard deviations. On the pilot studies g was 0.25 to 0.5, c 0.08 to 0.15, q 0.8,
# r 0.2 to 0.5 and A 1.1 to 1.2 nats.
PRIORS = {
    "help": (0.3, 1.0),
    "log_rate": (-2.0, 1.5),
    "by_tokens": (0.75, 0.5),
    "by_size": (0.3, 0.5),
    "log_ceiling": (0.0, 1.0),
}
NAMES = tuple(PRIORS)
MEAN_P, SD_P = np.array(list(PRIORS.values())).T
STARTS = 8  # a power of two
STEP = 1e-30  # of the complex step, which takes no difference
NOISE_FLOOR = 1e-6  # nats
SOFT_SHARE = 0.56489  # mean of z^2 / sqrt(1 + z^2) over a standard normal z
PASSES = 6  # of fit and noise in turn
MOST_WIDE = 1.0  # width of an interval of g that leaves open whether teachers help at all or fully
HELD = 0.5  # share of a prior's standard deviation; a parameter known no better is held by it
FAR = 6.0  # usual residuals
GRID = 400  # sizes at which the loss is looked at for T*


@dataclass(frozen=True)
class _Cells:
    """The cells of a table as arrays."""

    loss_N: np.ndarray
    help_N: np.ndarray  # L_T; 0 without a teacher
    cut_N: np.ndarray  # log(T/S) of the init; 0 if it was not pruned
    size_N: np.ndarray  # log S about its mean over groups
    tokens_N: np.ndarray  # log D, likewise
    weight_N: np.ndarray  # square root of the runs behind a cell, 1 on average
    group_N: np.ndarray
    draw_NK: np.ndarray  # whether a draw of a teacher had a part in a cell

    def select(self, keep_N: np.ndarray) -> _Cells:
        """Some of the cells; groups are counted anew."""
        parts = {name: getattr(self, name)[keep_N] for name in self.__dataclass_fields__}
        parts["group_N"] = np.unique(parts["group_N"], return_inverse=True)[1]
        return _Cells(**parts)


def damage(
    theta_P: np.ndarray, cut: np.ndarray, size: np.ndarray, tokens: np.ndarray
) -> np.ndarray:
    """Nats that an init cut by log(T/S) = `cut` loses; size and tokens are logs about the centre.

    Broadcasts; real or complex.
    """
    _, log_rate, by_tokens, by_size, log_ceiling = theta_P
    z = np.exp(log_rate - log_ceiling - by_tokens * tokens - by_size * size) * cut
    return -np.exp(log_ceiling) * np.expm1(-z)


def _above_level(theta_P: np.ndarray, cells: _Cells) -> np.ndarray:
    return theta_P[0] * cells.help_N + damage(theta_P, cells.cut_N, cells.size_N, cells.tokens_N)


def _jacobian(theta_P: np.ndarray, cells: _Cells) -> np.ndarray:
    """Derivatives of `_above_level` by the parameters, (N, P), by the complex step."""
    moved = theta_P[:, None] + 1j * STEP * np.eye(len(theta_P))
    return (
        np.stack([np.imag(_above_level(moved[:, p], cells)) for p in range(len(theta_P))], 1) / STEP
    )


def _minimise(cells: _Cells, start_P: np.ndarray, noise: float) -> tuple[np.ndarray, float]:
    """(parameters and levels (P + G,), lowest cost) from one start at a stated noise (nats)."""
    n, groups = len(cells.loss_N), int(cells.group_N.max()) + 1
    level_NG = (cells.group_N[:, None] == np.arange(groups)).astype(float)
    p = len(start_P)
    scale_N1 = (cells.weight_N / noise)[:, None]

    def residuals(x: np.ndarray) -> np.ndarray:
        rest_N = _above_level(x[:p], cells) + level_NG @ x[p:] - cells.loss_N
        return np.concatenate([rest_N * scale_N1[:, 0], (x[:p] - MEAN_P) / SD_P])

    def slopes(x: np.ndarray) -> np.ndarray:
        of_runs = np.hstack([_jacobian(x[:p], cells), level_NG]) * scale_N1
        of_priors = np.hstack([np.diag(1 / SD_P), np.zeros((p, groups))])
        return np.vstack([of_runs, of_priors])

    def loss(z: np.ndarray) -> np.ndarray:
        """Soft L1 of the runs, squares of the priors: value and two derivatives."""
        root = np.sqrt(1 + z[:n])
        rho = np.ones((3, len(z)))
        rho[0], rho[2] = z, 0.0
        rho[:, :n] = 2 * (root - 1), 1 / root, -0.5 / root**3
        return rho

    rest_N = cells.loss_N - _above_level(start_P, cells)
    level_G = level_NG.T @ rest_N / level_NG.sum(axis=0)
    found = least_squares(
        residuals,
        np.concatenate([start_P, level_G]),
        jac=slopes,
        loss=loss,
        bounds=(
            np.concatenate([MEAN_P - 8 * SD_P, np.full(groups, -np.inf)]),
            np.concatenate([MEAN_P + 8 * SD_P, np.full(groups, np.inf)]),
        ),
        max_nfev=200,
    )
    return found.x, float(found.cost)


def _noise_of(cells: _Cells, x: np.ndarray, noise: float) -> float:
    """Standard deviation of a cell about the law, nats, by the weights that soft L1 gives."""
    p = len(NAMES)
    z_N = (_above_level(x[:p], cells) + x[p:][cells.group_N] - cells.loss_N) * cells.weight_N
    free = len(z_N) - (len(x) - p) - p
    squares = float(np.sum(z_N**2 / np.sqrt(1 + (z_N / noise) ** 2))) / SOFT_SHARE
    return max(NOISE_FLOOR, float(np.sqrt(squares / max(1, free))))


def _solve(
    cells: _Cells, starts: np.ndarray, noise: float, passes: int
) -> tuple[np.ndarray, float]:
    """(parameters and levels, noise) with the noise estimated in turn with them."""
    best, x = np.inf, starts[0]
    for start_P in starts:
        found, cost = _minimise(cells, start_P, noise)
        if cost < best:
            best, x = cost, found
    p = len(NAMES)
    for _ in range(passes):
        fresh = _noise_of(cells, x, noise)
        x, _ = _minimise(cells, x[:p], fresh)
        if abs(np.log(fresh / noise)) < 0.02:
            return x, fresh
        noise = fresh
    return x, noise


@dataclass(frozen=True)
class TwoCauses:
    """A fitted law of two causes."""

    theta_P: np.ndarray
    open_PP: np.ndarray  # columns: what the priors' standard deviations leave open, in parameters
    theta_KP: np.ndarray  # without each draw of a teacher in turn; K = 0 with fewer than three
    centre: tuple[float, float]  # mean log S and mean log D
    cells: _Cells
    groups: pd.DataFrame  # log S and log D of pruned, taught groups, by number
    noise: float  # standard deviation of a cell about the law, nats
    confidence: float
    rest: pd.DataFrame  # cells with their residual z in units of the usual one
    status: str
    reason: str

    @property
    def limit(self) -> float:
        """Standard errors in half an interval."""
        return float(stats.t.ppf((1 + self.confidence) / 2, max(1, len(self.theta_KP) - 1)))

    def interval(self, of: Callable[[np.ndarray], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """(value, half width of its interval) of a function of the parameters; NaN if unknown.

        The variance is that of the jackknife, and what the priors may be wrong by in directions
        that the runs leave open.
        """
        value = np.asarray(of(self.theta_P), dtype=float)
        k = len(self.theta_KP)
        if k == 0:
            return value, np.full_like(value, np.nan)
        drawn = np.array([of(theta_P) for theta_P in self.theta_KP])
        variance = (k - 1) / k * np.sum((drawn - drawn.mean(axis=0)) ** 2, axis=0)
        for step_P in self.open_PP.T:
            variance = variance + ((of(self.theta_P + step_P) - of(self.theta_P - step_P)) / 2) ** 2
        return value, self.limit * np.sqrt(variance)

    def above_level(
        self,
        student: float,
        tokens: float,
        teacher_loss_K: np.ndarray,
        cut_from_K: np.ndarray | None,
        theta_P: np.ndarray | None = None,
    ) -> np.ndarray:
        """g L_T + damage of students of one size, (K,), nats.

        cut_from_K: sizes the inits were pruned from; None for random or given inits.
        """
        theta_P = self.theta_P if theta_P is None else theta_P
        size, budget = np.log(student) - self.centre[0], np.log(tokens) - self.centre[1]
        helped = theta_P[0] * np.asarray(teacher_loss_K, dtype=float)
        if cut_from_K is None:
            return helped
        cut_K = np.maximum(0.0, np.log(np.asarray(cut_from_K, dtype=float) / student))
        return helped + damage(theta_P, cut_K, size, budget)

    def regret(
        self,
        student: float,
        tokens: float,
        teacher_loss_K: np.ndarray,
        cut_from_K: np.ndarray | None,
    ) -> list[Interval]:
        """Loss above the best of some teachers, with intervals."""
        best = int(np.argmin(self.above_level(student, tokens, teacher_loss_K, cut_from_K)))

        def over_best(theta_P: np.ndarray) -> np.ndarray:
            above_K = self.above_level(student, tokens, teacher_loss_K, cut_from_K, theta_P)
            return above_K - above_K[best]

        return _intervals(*self.interval(over_best))

    def loss(
        self, student: float, tokens: float, teacher_loss: float, cut_from: float | None
    ) -> Interval:
        """Predicted loss of a pruned student (nats per token), with its interval.

        Where the student and budget are not of the table, the level is that of a plane in log S and
        log D through those of the table, whose prediction error is in the interval.
        """
        sources = None if cut_from is None else np.array([cut_from])

        def predicted(theta_P: np.ndarray) -> np.ndarray:
            above = self.above_level(student, tokens, np.array([teacher_loss]), sources, theta_P)
            return above + self._level(student, tokens, theta_P)[0]

        value, half = self.interval(predicted)
        plane = self._level(student, tokens, self.theta_P)[1]
        return _intervals(value, np.array([np.hypot(half[0], plane)]))[0]

    def _level(self, student: float, tokens: float, theta_P: np.ndarray) -> tuple[float, float]:
        """(level of pruned and taught students, half width of the plane's prediction), nats."""
        rest_N = self.cells.loss_N - _above_level(theta_P, self.cells)
        weight_N = self.cells.weight_N**2 / np.sqrt(1 + self.rest["z"].to_numpy() ** 2)
        value_G = np.bincount(self.cells.group_N, weight_N * rest_N)
        value_G = value_G / np.bincount(self.cells.group_N, weight_N)
        here, value_G = self.groups.to_numpy(), value_G[self.groups.index]
        at = np.array([np.log(student), np.log(tokens)])
        same = (np.abs(here - at) < 0.01).all(axis=1)
        if same.any():
            return float(value_G[same].mean()), 0.0
        use = np.ptp(here, axis=0) > 0.01
        design = np.column_stack([np.ones(len(here)), (here - here.mean(axis=0))[:, use]])
        row = np.concatenate([[1.0], (at - here.mean(axis=0))[use]])
        fit, _, rank, _ = np.linalg.lstsq(design, value_G, rcond=None)
        free = len(value_G) - rank
        if free < 1:
            return float(row @ fit), np.nan
        variance = np.sum((value_G - design @ fit) ** 2) / free
        leverage = row @ np.linalg.pinv(design.T @ design) @ row
        t = stats.t.ppf((1 + self.confidence) / 2, free)
        return float(row @ fit), float(t * np.sqrt(variance * (1 + leverage)))

    def best_teacher(
        self, student: float, tokens: float, loss_of: Callable[[np.ndarray], np.ndarray], ends
    ) -> tuple[Interval, str]:
        """T* (parameters) within a family, and whether it is 'interior', 'smallest' or 'largest'.

        loss_of: losses of teachers by size; ends: smallest and largest size there is. At an end T* is
        only bounded, and a limit beyond an end is None.
        """
        low = np.log(max(ends[0], student))
        grid = np.linspace(low, max(low, np.log(ends[1])), GRID)
        size_I, loss_I = np.exp(grid), loss_of(np.exp(grid))

        def at(theta_P: np.ndarray) -> float:
            return grid[int(np.argmin(self.above_level(student, tokens, loss_I, size_I, theta_P)))]

        value, half = self.interval(at)
        ends_of = [value - half, value + half]
        low_limit = None if not ends_of[0] > grid[0] else float(np.exp(ends_of[0]))
        high_limit = None if not ends_of[1] < grid[-1] else float(np.exp(ends_of[1]))
        where = "smallest" if value == grid[0] else "largest" if value == grid[-1] else "interior"
        return Interval(value=float(np.exp(value)), low=low_limit, high=high_limit), where

    def record(self) -> TwoCausesFit:
        """What goes into `law.json`."""
        value_P, half_P = self.interval(lambda theta_P: theta_P)
        help_, _, by_tokens, by_size, _ = _intervals(value_P, half_P)
        rate, ceiling = (self._exponential(i, value_P, half_P) for i in (1, 4))
        known_P = np.linalg.norm(self.open_PP, axis=1) < HELD * SD_P
        far = self.rest[self.rest["z"].abs() > FAR]
        return TwoCausesFit(
            status=self.status,
            reason=self.reason,
            help=help_,
            damage_rate_nats=rate,
            damage_by_tokens=by_tokens,
            damage_by_size=by_size,
            damage_ceiling_nats=ceiling,
            held=[name for name, known in zip(NAMES, known_P, strict=True) if not known],
            centre_student_params=float(np.exp(self.centre[0])),
            centre_tokens=float(np.exp(self.centre[1])),
            noise_nats=self.noise,
            n_cells=len(self.rest),
            n_teachers=len(self.theta_KP),
            far_off=[
                f"student {row.student}, init {row.init}, teacher {row.teacher}, {row.tokens} tokens"
                for row in far.itertuples()
            ],
        )

    def _exponential(self, i: int, value_P: np.ndarray, half_P: np.ndarray) -> Interval:
        logs = _intervals(value_P[[i]], half_P[[i]])[0]
        return Interval(
            value=float(np.exp(logs.value)),
            low=None if logs.low is None else float(np.exp(logs.low)),
            high=None if logs.high is None else float(np.exp(logs.high)),
        )


def _intervals(value_K: np.ndarray, half_K: np.ndarray) -> list[Interval]:
    return [
        Interval(
            value=float(value),
            low=None if np.isnan(half) else float(value - half),
            high=None if np.isnan(half) else float(value + half),
        )
        for value, half in zip(value_K, half_K, strict=True)
    ]


def fit_two_causes(
    cells: pd.DataFrame,
    confidence: float = 0.95,
    intervals: bool = True,
    near: TwoCauses | None = None,
) -> TwoCauses | str:
    """Fit the law to all arms of a table (`means.cell_table`), or say why it is not available.

    intervals: whether to leave out each teacher in turn. near: a fit of almost the same cells, to
    start from; it leaves out nothing.
    """
    use = _usable(cells)
    if isinstance(use, str):
        return use
    arrays, centre = _arrays(use)
    if np.bincount(arrays.group_N).max() < 2:
        return "no student has two teachers at one budget"
    box = qmc.scale(qmc.Sobol(len(NAMES), seed=0).random(STARTS), MEAN_P - SD_P, MEAN_P + SD_P)
    within = arrays.loss_N - _group_mean(arrays, arrays.loss_N)
    rough = max(NOISE_FLOOR, float(np.std(within)) / 3)
    starts = np.vstack([MEAN_P, box]) if near is None else near.theta_P[None]
    x, noise = _solve(arrays, starts, near.noise if near else rough, PASSES)
    p, k = len(NAMES), arrays.draw_NK.shape[1]
    without = []
    for draw in range(k) if k >= 3 and intervals and near is None else ():
        kept = arrays.select(~arrays.draw_NK[:, draw])
        without.append(_solve(kept, x[None, :p], noise, 2)[0][:p])
    rest_N = arrays.loss_N - _above_level(x[:p], arrays) - x[p:][arrays.group_N]
    rest_N *= arrays.weight_N
    # by the median, which a far-off cell does not move
    usual = 1.4826 * float(np.median(np.abs(rest_N)))
    usual *= np.sqrt(len(rest_N) / max(1, len(rest_N) - len(x)))
    rest = use[["student", "init", "teacher", "tokens"]].assign(z=rest_N / max(usual, NOISE_FLOOR))
    groups = use.assign(group=arrays.group_N).groupby("group").first()
    groups = groups[groups["kind"].eq("pruned") & groups["teacher"].ne(NONE)]
    places = pd.DataFrame(
        {"size": np.log(groups["student_params"]), "tokens": np.log(groups["tokens"])}
    )
    fitted = TwoCauses(
        theta_P=x[:p],
        open_PP=_left_open(x[:p], arrays, noise),
        theta_KP=np.array(without).reshape(-1, p),
        centre=centre,
        cells=arrays,
        groups=places,
        noise=noise,
        confidence=confidence,
        rest=rest,
        status="",
        reason="",
    )
    status, reason = _judge(fitted, arrays)
    return TwoCauses(**{**fitted.__dict__, "status": status, "reason": reason})


def _usable(cells: pd.DataFrame) -> pd.DataFrame | str:
    """Cells that the law is about, with `cut` (log T/S) and `kind` of the init; or why there are none."""
    if (
        "teacher_loss" not in cells
        or cells.loc[cells["teacher"] != NONE, "teacher_loss"].isna().all()
    ):
        return "the table has no losses of the teachers"
    if (cells["init"] == UNSTATED).any():
        return "the table has no column init, so that it is not known which students were pruned"
    sizes = cells[cells["teacher"] != NONE].groupby("teacher")["teacher_params"].first()
    source = {pruned_from(name): size for name, size in sizes.items()}
    pruned = cells["init"].str.startswith(pruned_from(""))
    use = cells.assign(
        kind=np.where(pruned, "pruned", cells["init"]),
        source=cells["init"].map(source),
    )
    known = (~pruned | use["source"].notna()) & (
        use["teacher"].eq(NONE) | use["teacher_loss"].notna()
    )
    use = use[known].reset_index(drop=True)
    cut = np.log(use["source"] / use["student_params"]).fillna(0.0)
    return use.assign(cut=np.maximum(0.0, cut))


def _arrays(use: pd.DataFrame) -> tuple[_Cells, tuple[float, float]]:
    keys = ["student", "tokens", "kind"]
    taught = use["teacher"] != NONE
    group_N = use.assign(taught=taught).groupby([*keys, "taught"], sort=True).ngroup().to_numpy()
    draw = use["teacher"] + "/" + use["teacher_seed"].astype(str)
    made = use["init"] + "/" + use["teacher_seed"].astype(str)
    teachers = sorted(set(draw[taught]))
    draw_NK = np.column_stack([draw.eq(name) | made.eq(pruned_from(name)) for name in teachers])
    logs = np.log(use[["student_params", "tokens"]].to_numpy(float))
    centre = logs[np.unique(group_N, return_index=True)[1]].mean(axis=0)
    root_N = np.sqrt(use["n"].to_numpy(float))
    cells = _Cells(
        loss_N=use["loss"].to_numpy(float),
        help_N=np.where(taught, use["teacher_loss"].fillna(0.0), 0.0).astype(float),
        cut_N=use["cut"].to_numpy(float),
        size_N=logs[:, 0] - centre[0],
        tokens_N=logs[:, 1] - centre[1],
        weight_N=root_N / root_N.mean(),
        group_N=group_N,
        draw_NK=draw_NK,
    )
    return cells, (float(centre[0]), float(centre[1]))


def _left_open(theta_P: np.ndarray, cells: _Cells, noise: float) -> np.ndarray:
    """(I - R) times the priors' standard deviations, (P, P), R the resolution of the runs.

    R is the share of each parameter that the runs decide (Backus and Gilbert); the rest of it stays
    at the prior's mean.
    """
    slope_NP = _jacobian(theta_P, cells)
    weight_N = cells.weight_N**2
    totals_G = np.bincount(cells.group_N, weight_N)
    for p in range(len(theta_P)):
        mean_G = np.bincount(cells.group_N, weight_N * slope_NP[:, p]) / totals_G
        slope_NP[:, p] -= mean_G[cells.group_N]
    slope_NP = slope_NP * cells.weight_N[:, None] / noise
    runs_PP = slope_NP.T @ slope_NP
    resolved_PP = np.linalg.solve(runs_PP + np.diag(SD_P**-2.0), runs_PP)
    return (np.eye(len(theta_P)) - resolved_PP) * SD_P


def _group_mean(cells: _Cells, value_N: np.ndarray) -> np.ndarray:
    totals = np.bincount(cells.group_N, value_N) / np.bincount(cells.group_N)
    return totals[cells.group_N]


def _judge(fitted: TwoCauses, cells: _Cells) -> tuple[str, str]:
    """Whether the runs tell help and damage apart, and why not."""
    k = len(fitted.theta_KP)
    if k < 3:
        return "not_identifiable", f"{cells.draw_NK.shape[1]} teachers, and intervals need three"
    _, half_P = fitted.interval(lambda theta_P: theta_P)
    if 2 * half_P[0] > MOST_WIDE:
        return "not_identifiable", (
            f"the runs do not tell a teacher's help from the damage of the cut: g is known to "
            f"{half_P[0]:.2f}; add teachers of one size with different losses, or the arm "
            "cross_teacher"
        )
    return "identified", f"{len(cells.loss_N)} cells of {k} teachers"
