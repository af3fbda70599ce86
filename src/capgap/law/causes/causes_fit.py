"""
Fit the law of two causes to a table of cells.

The fit is robust (soft L1 about the noise of the runs, found in turn with it) with weak normal priors;
levels of groups are parameters like the others. Shapes as in `two_causes.py`.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
from scipy.optimize import least_squares
from scipy.stats import qmc

from capgap.config.run_grid import NONE, pruned_from
from capgap.law.causes.causes_form import MEAN_P, NAMES, SD_P, CauseCells, above_level, jacobian_of
from capgap.law.causes.two_causes import TwoCauses
from capgap.law.loss_plane import group_means
from capgap.law.table.read_runs import UNSTATED

STARTS = 8  # a power of two
NOISE_FLOOR = 1e-6  # nats
SOFT_SHARE = 0.56489  # mean of z^2 / sqrt(1 + z^2) over a standard normal z
PASSES = 6  # alternations of fit and noise estimate
MOST_WIDE = 1.0  # width of g's interval beyond which g may be 0 as well as 1


def _minimise(cells: CauseCells, start_P: np.ndarray, noise: float) -> tuple[np.ndarray, float]:
    """(parameters and levels (P + G,), lowest cost) from one start at a stated noise (nats)."""
    n, groups = len(cells.loss_N), int(cells.group_N.max()) + 1
    level_NG = (cells.group_N[:, None] == np.arange(groups)).astype(float)
    p = len(start_P)
    scale_N1 = (cells.weight_N / noise)[:, None]

    def residuals(x: np.ndarray) -> np.ndarray:
        rest_N = above_level(x[:p], cells) + level_NG @ x[p:] - cells.loss_N
        return np.concatenate([rest_N * scale_N1[:, 0], (x[:p] - MEAN_P) / SD_P])

    def slopes(x: np.ndarray) -> np.ndarray:
        of_runs = np.hstack([jacobian_of(x[:p], cells), level_NG]) * scale_N1
        of_priors = np.hstack([np.diag(1 / SD_P), np.zeros((p, groups))])
        return np.vstack([of_runs, of_priors])

    def loss(z: np.ndarray) -> np.ndarray:
        """Soft L1 of the runs, squares of the priors: value and two derivatives."""
        root = np.sqrt(1 + z[:n])
        rho = np.ones((3, len(z)))
        rho[0], rho[2] = z, 0.0
        rho[:, :n] = 2 * (root - 1), 1 / root, -0.5 / root**3
        return rho

    rest_N = cells.loss_N - above_level(start_P, cells)
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


def _noise_of(cells: CauseCells, x: np.ndarray, noise: float) -> float:
    """Standard deviation of a cell about the law, nats, by the weights that soft L1 gives."""
    p = len(NAMES)
    z_N = (above_level(x[:p], cells) + x[p:][cells.group_N] - cells.loss_N) * cells.weight_N
    free = len(z_N) - (len(x) - p) - p
    squares = float(np.sum(z_N**2 / np.sqrt(1 + (z_N / noise) ** 2))) / SOFT_SHARE
    return max(NOISE_FLOOR, float(np.sqrt(squares / max(1, free))))


def _solve(
    cells: CauseCells, starts: np.ndarray, noise: float, passes: int
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


def fit_two_causes(
    cells: pd.DataFrame,
    confidence: float = 0.95,
    near: TwoCauses | None = None,
) -> TwoCauses | str:
    """Fit the law to all arms of a table (`run_means.cell_table`), or return why that is impossible.

    confidence: of the intervals. near: a fit of almost the same cells to start from; no teacher is
    then left out, so there are no intervals.
    """
    use = _usable(cells)
    if isinstance(use, str):
        return use
    arrays, centre = _arrays(use)
    if np.bincount(arrays.group_N).max() < 2:
        return "no student has two teachers at one budget"
    box = qmc.scale(qmc.Sobol(len(NAMES), seed=0).random(STARTS), MEAN_P - SD_P, MEAN_P + SD_P)
    within = arrays.loss_N - group_means(arrays.loss_N, arrays.group_N)[arrays.group_N]
    rough = max(NOISE_FLOOR, float(np.std(within)) / 3)
    starts = np.vstack([MEAN_P, box]) if near is None else near.theta_P[None]
    x, noise = _solve(arrays, starts, near.noise if near else rough, PASSES)
    p, k = len(NAMES), arrays.draw_NK.shape[1]
    without = []
    for draw in range(k) if k >= 3 and near is None else ():
        kept = arrays.select(~arrays.draw_NK[:, draw])
        without.append(_solve(kept, x[None, :p], noise, 2)[0][:p])
    rest_N = arrays.loss_N - above_level(x[:p], arrays) - x[p:][arrays.group_N]
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
    return replace(fitted, status=status, reason=reason)


def _usable(cells: pd.DataFrame) -> pd.DataFrame | str:
    """The cells that the law describes, with `cut` (log T/S) and `kind` of the init, or why not."""
    if (
        "teacher_loss" not in cells
        or cells.loc[cells["teacher"] != NONE, "teacher_loss"].isna().all()
    ):
        return "the table has no losses of the teachers"
    if (cells["init"] == UNSTATED).any():
        return "the table has no column init, so it is not known which students were pruned"
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


def _arrays(use: pd.DataFrame) -> tuple[CauseCells, tuple[float, float]]:
    keys = ["student", "tokens", "kind"]
    taught = use["teacher"] != NONE
    group_N = use.assign(taught=taught).groupby([*keys, "taught"], sort=True).ngroup().to_numpy()
    draw = use["teacher"] + "/" + use["teacher_seed"].astype(str)
    # the init of a run without a teacher was pruned from the draw that its own seed names
    source_seed = use["teacher_seed"].where(taught, use["init_seed"])
    made = use["init"] + "/" + source_seed.astype(str)
    teachers = sorted(set(draw[taught]))
    draw_NK = np.column_stack([draw.eq(name) | made.eq(pruned_from(name)) for name in teachers])
    logs = np.log(use[["student_params", "tokens"]].to_numpy(float))
    centre = logs[np.unique(group_N, return_index=True)[1]].mean(axis=0)
    root_N = np.sqrt(use["n"].to_numpy(float))
    cells = CauseCells(
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


def _left_open(theta_P: np.ndarray, cells: CauseCells, noise: float) -> np.ndarray:
    """(I - R) times the priors' standard deviations, (P, P), R the resolution of the runs.

    R is the share of each parameter that the runs decide (Backus and Gilbert); the rest of it stays
    at the prior's mean.
    """
    slope_NP = jacobian_of(theta_P, cells)
    weight_N = cells.weight_N**2
    for p in range(len(theta_P)):
        mean_G = group_means(slope_NP[:, p], cells.group_N, weight_N)
        slope_NP[:, p] -= mean_G[cells.group_N]
    slope_NP = slope_NP * cells.weight_N[:, None] / noise
    runs_PP = slope_NP.T @ slope_NP
    resolved_PP = np.linalg.solve(runs_PP + np.diag(SD_P**-2.0), runs_PP)
    return (np.eye(len(theta_P)) - resolved_PP) * SD_P


def _judge(fitted: TwoCauses, cells: CauseCells) -> tuple[str, str]:
    """Whether the runs tell help and damage apart, and why not."""
    k = len(fitted.theta_KP)
    if k < 3:
        return (
            "not_identifiable",
            f"intervals need three teachers, there are {cells.draw_NK.shape[1]}: add a teacher",
        )
    _, half_P = fitted.interval(lambda theta_P: theta_P)
    if 2 * half_P[0] > MOST_WIDE:
        return "not_identifiable", (
            f"the runs do not separate a teacher's help from the damage of pruning (g is known only to "
            f"within {half_P[0]:.2f}); add teachers of one size with different losses, or the arm "
            "cross_teacher"
        )
    return "identified", f"{len(cells.loss_N)} cells of {k} teachers"
