"""
One loss surface over student size, teacher size and token budget, and T*(S, D) from it.

Within a cell group (one student size S at one budget D) the loss is a curve in u = log(T / S) whose
lowest point moves with S and D; the level of every group is free:

  loss = level(S, D) + b1 u + b2 u^2 + u (b3 log S + b4 log D)
         [+ b5 u^3 + u^2 (b6 log S + b7 log D)] [+ b8 u log^2 D]

so that log(T*/S) = -(b1 + b3 log S + b4 log D + b8 log^2 D) / 2 b2 where the curve is a parabola,
and the rising root of its derivative where it is a cubic, which needs the terms in u^2 to move
without changing its shape. The bracketed terms enter only where an F test asks for them. All terms
are linear in the b: the fit is least squares over cells within two of each group's best (a parabola
over wide or off-centre grids is biased, arXiv 2603.22339), with no optimiser.

Optima beyond the grid need no special case here: a curve that still falls at the edge of its group
bends the surface as any other curve does.

Errors: the distances of cells to the surface hold noise between seeds, unevenness of teachers and
misfit alike. Their variance (never below the noise between seeds) and their correlation between
budgets of one student and teacher, which share most of a training run, drive the resamples.

Shapes: M cells, P terms, R resamples, L levels (groups).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy import stats

from capgap.law.cells import Cells, Noise
from capgap.law.optimum import limits
from capgap.law.records import Interval

REACH = 2  # cells on either side of the best one of a group
TEST_LEVEL = 0.01  # of terms on demand; at 0.05 needless ones cost 3 points of coverage


@dataclass(frozen=True)
class Surface:
    """A fitted surface. Terms by name: u, u2, u_s, u_d, u3, u_dd; absent ones are 0."""

    status: Literal["fitted", "flat", "not_identifiable"]
    reason: str
    terms: tuple[str, ...]
    term_P: np.ndarray  # nats per unit of each term
    term_RP: np.ndarray | None  # None where no degree of freedom is left
    centre: tuple[float, float]  # of log S and log D
    levels: dict[tuple[str, int], float]  # nats, by student and budget
    level_R: dict[tuple[str, int], np.ndarray]
    reach: dict[tuple[str, int], tuple[float, float]]  # log T of the smallest and largest teacher
    rms_nats: float
    error_sd_nats: float
    df: int

    def log_ratio(self, student: float, tokens: float) -> tuple[float, np.ndarray | None]:
        """log(T*/S): estimate and resamples; nan where the surface has no minimum there."""
        drawn = None if self.term_RP is None else self._lowest(self.term_RP, student, tokens)
        return float(self._lowest(self.term_P[None], student, tokens)[0]), drawn

    def curve(
        self, log_teacher_K: np.ndarray, student: float, tokens: float, drawn: bool = False
    ) -> np.ndarray:
        """Loss relative to the group's level, (1, K), or for each resample (R, K); nats."""
        term_RP = self.term_RP if drawn else self.term_P[None]
        u_K = log_teacher_K - np.log(student)
        return term_RP @ self._columns(u_K, np.log(student), np.log(tokens)).T

    def curvature(self, student: float, tokens: float) -> np.ndarray | None:
        """Second derivative at T* in nats per squared unit of log T, for each resample."""
        if self.term_RP is None:
            return None
        slope_R, half_R, third_R = self._parts(self.term_RP, student, tokens)
        return 2 * np.sqrt(np.maximum(0, half_R**2 - 3 * third_R * slope_R))

    def elasticities(self, confidence: float) -> dict[str, Interval] | None:
        """How log T* moves with log S and with log D at the centre of the runs.

        size: at fixed D. tokens: at fixed S. size_at_fixed_tokens_per_param: along D in proportion
        to S. A term that the runs cannot show is left out. None unless fitted.
        """
        if self.status != "fitted":
            return None
        students, budgets = (len({key[i] for key in self.levels}) for i in (0, 1))
        step = 1e-4
        s, d = np.exp(self.centre)
        moves = {}
        if "u_s" in self.terms:
            moves["size"] = (np.exp(step), 1.0)
        if "u_d" in self.terms:
            moves["tokens"] = (1.0, np.exp(step))
        if students > 1 and budgets > 1:
            moves["size_at_fixed_tokens_per_param"] = (np.exp(step), np.exp(step))
        found = {}
        for name, (by_s, by_d) in moves.items():
            ends = [self.log_ratio(s * by_s**sign, d * by_d**sign) for sign in (1, -1)]
            own = float(by_s > 1)  # log T* = log S + log ratio
            value = own + (ends[0][0] - ends[1][0]) / (2 * step)
            drawn_R = None
            if self.term_RP is not None:
                drawn_R = own + (ends[0][1] - ends[1][1]) / (2 * step)
            found[name] = interval_of(value, drawn_R, confidence)
        return found

    def ratio(self, student: float, tokens: float, confidence: float) -> Interval | None:
        """T*/S with its interval; None where the surface has no minimum there."""
        value, drawn_R = self.log_ratio(student, tokens)
        if not np.isfinite(value):
            return None
        logs = interval_of(value, drawn_R, confidence)
        return Interval(
            **{
                name: None if number is None or not np.isfinite(number) else float(np.exp(number))
                for name, number in logs.model_dump().items()
            }
        )

    def _columns(self, u_M: np.ndarray, log_s, log_d) -> np.ndarray:
        return _columns(self.terms, u_M, log_s - self.centre[0], log_d - self.centre[1])

    def _parts(self, term_RP: np.ndarray, student: float, tokens: float):
        """Slope at u = 0, half the second and a sixth of the third derivative, each (R,)."""
        ls, ld = np.log(student) - self.centre[0], np.log(tokens) - self.centre[1]
        b = dict(zip(self.terms, term_RP.T, strict=True))
        zero = np.zeros(len(term_RP))
        slope = b["u"] + b.get("u_s", zero) * ls + b.get("u_d", zero) * ld
        half = b["u2"] + b.get("u2_s", zero) * ls + b.get("u2_d", zero) * ld
        return slope + b.get("u_dd", zero) * ld**2, half, b.get("u3", zero)

    def _lowest(self, term_RP: np.ndarray, student: float, tokens: float) -> np.ndarray:
        """Where the derivative slope + 2 half u + 3 third u^2 has its rising root, (R,)."""
        slope_R, half_R, third_R = self._parts(term_RP, student, tokens)
        square_R = half_R**2 - 3 * third_R * slope_R
        root_R = half_R + np.sqrt(np.where(square_R > 0, square_R, np.nan))
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(root_R > 0, -slope_R / root_R, np.nan)


def interval_of(value: float, drawn_R: np.ndarray | None, confidence: float) -> Interval:
    """Percentile interval; a resample without a value may be anything, so it opens both sides."""
    if drawn_R is None:
        return Interval(value=value, low=None, high=None)
    missing = ~np.isfinite(drawn_R)
    low, high = limits(
        np.where(missing, -np.inf, drawn_R), np.where(missing, np.inf, drawn_R), confidence
    )
    return Interval(
        value=value,
        low=low if np.isfinite(low) else None,
        high=high if np.isfinite(high) else None,
    )


def fit_surface(
    cells: list[Cells], noise: Noise | None, resamples: int, confidence: float, seed: int
) -> Surface | None:
    """Fit the surface to all groups with three teacher sizes or more; None without any.

    Status: fitted where the curve bends upwards beyond doubt (one-sided at the interval's level),
    flat where the data leave that open, not_identifiable with no degree of freedom left.
    """
    groups = [c for c in cells if len(np.unique(c.teacher_params_K)) >= 3]
    if not groups:
        return None
    parts = [_window(c) for c in groups]
    group_M = np.concatenate([np.full(len(p), i) for i, p in enumerate(parts)])
    log_t_M = np.concatenate(
        [np.log(c.teacher_params_K[p]) for c, p in zip(groups, parts, strict=True)]
    )
    loss_M = np.concatenate([c.mean_K[p] for c, p in zip(groups, parts, strict=True)])
    variance_M = np.concatenate(
        [(c.map_KN[p] ** 2).sum(axis=1) for c, p in zip(groups, parts, strict=True)]
    )
    log_s_L = np.log([c.student_params for c in groups])
    log_d_L = np.log([float(c.tokens) for c in groups])
    centre = (float(log_s_L.mean()), float(log_d_L.mean()))
    level_ML = (group_M[:, None] == np.arange(len(groups))).astype(float)

    def design(terms: tuple[str, ...]) -> np.ndarray:
        columns = _columns(
            terms,
            log_t_M - log_s_L[group_M],
            log_s_L[group_M] - centre[0],
            log_d_L[group_M] - centre[1],
        )
        return np.hstack([level_ML, columns])

    terms = ("u", "u2")
    terms += ("u_s",) * (len(np.unique(log_s_L.round(9))) > 1)
    terms += ("u_d",) * (len(np.unique(log_d_L)) > 1)
    skew = ("u3", *(f"u2{term[1:]}" for term in terms[2:]))
    optional = (skew,) + (("u_dd",),) * (len(np.unique(log_d_L)) > 2)
    if np.linalg.matrix_rank(design(terms)) < len(groups) + len(terms):
        return None
    for more in optional:
        terms = _if_needed(design, terms, more, loss_M)
    matrix = design(terms)
    solve = np.linalg.pinv(matrix)
    beta = solve @ loss_M
    residual_M = loss_M - matrix @ beta
    df = len(loss_M) - matrix.shape[1]
    floor = 0.0 if noise is None else noise.sd**2 * float(variance_M.mean())
    variance = max(floor, float(residual_M @ residual_M) / df if df else floor)
    scale_df = df if noise is None else df + noise.df
    beta_RP = None
    if scale_df > 0:
        keys = [
            (c.student, name)
            for c, p in zip(groups, parts, strict=True)
            for name in np.array(c.teachers)[p]
        ]
        beta_RP = (
            beta
            + _draw(residual_M, keys, variance, scale_df, resamples, np.random.default_rng(seed))
            @ solve.T
        )
    n = len(groups)
    names = [(c.student, c.tokens) for c in groups]
    surface = Surface(
        status="fitted",
        reason=f"{len(loss_M)} cells of {n} student sizes and budgets",
        terms=terms,
        term_P=beta[n:],
        term_RP=None if beta_RP is None else beta_RP[:, n:],
        centre=centre,
        levels=dict(zip(names, beta[:n].tolist(), strict=True)),
        level_R={} if beta_RP is None else dict(zip(names, beta_RP[:, :n].T, strict=True)),
        reach={
            name: (float(np.log(c.teacher_params_K.min())), float(np.log(c.teacher_params_K.max())))
            for name, c in zip(names, groups, strict=True)
        },
        rms_nats=float(np.sqrt(np.mean(residual_M**2))),
        error_sd_nats=float(np.sqrt(variance)),
        df=int(df),
    )
    return _judge(surface, confidence)


def _judge(surface: Surface, confidence: float) -> Surface:
    """Whether the surface has a minimum at the centre of the runs beyond doubt."""
    value, drawn_R = surface.log_ratio(*np.exp(surface.centre))
    if drawn_R is None:
        reason = f"{surface.reason}: no degree of freedom is left for errors"
        return replace(surface, status="not_identifiable", reason=reason)
    if not np.isfinite(value) or np.mean(~np.isfinite(drawn_R)) > (1 - confidence) / 2:
        reason = f"{surface.reason}: whether the loss rises on both sides of an optimum is not sure"
        return replace(surface, status="flat", reason=reason)
    return surface


def _window(cells: Cells) -> np.ndarray:
    """Indices of the teachers within REACH sizes of the best one."""
    size_U, average_UK = cells.by_size()
    best = int((average_UK @ cells.mean_K).argmin())
    low, high = size_U[max(best - REACH, 0)], size_U[min(best + REACH, len(size_U) - 1)]
    return np.flatnonzero((cells.teacher_params_K >= low) & (cells.teacher_params_K <= high))


def _columns(terms: tuple[str, ...], u_M: np.ndarray, ls, ld) -> np.ndarray:
    column = {
        "u": u_M,
        "u2": u_M**2,
        "u3": u_M**3,
        "u2_s": u_M**2 * ls,
        "u2_d": u_M**2 * ld,
        "u_s": u_M * ls,
        "u_d": u_M * ld,
        "u_dd": u_M * ld**2,
    }
    return np.stack([column[term] for term in terms], axis=1)


def _if_needed(
    design, terms: tuple[str, ...], more: tuple[str, ...], loss_M: np.ndarray
) -> tuple[str, ...]:
    """The terms, with more of them where the F test at TEST_LEVEL asks for it."""

    def rss(names: tuple[str, ...]) -> tuple[float, int]:
        matrix = design(names)
        beta, _, rank, _ = np.linalg.lstsq(matrix, loss_M)
        return float(np.sum((loss_M - matrix @ beta) ** 2)), len(loss_M) - int(rank)

    (without, df_without), (having, df) = rss(terms), rss(terms + more)
    if df_without - df != len(more) or df < 2:
        return terms
    f = (without - having) / len(more) / max(having / df, 1e-300)
    return terms + more if stats.f.sf(f, len(more), df) < TEST_LEVEL else terms


def _draw(
    residual_M: np.ndarray,
    keys: list[tuple[str, str]],
    variance: float,
    df: int,
    resamples: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """Errors of all cells, (R, M): normal with the t scale of their degrees of freedom.

    Cells of one student and teacher at several budgets share the part that the residuals show.
    """
    unit_M = np.unique([f"{a}\n{b}" for a, b in keys], return_inverse=True)[1]
    sums = np.bincount(unit_M, residual_M)
    squares = np.bincount(unit_M, residual_M**2)
    count = np.bincount(unit_M)
    pairs = float((squares * (count - 1)).sum())
    shared = float((sums**2 - squares).sum()) / pairs if pairs > 0 else 0.0
    shared = float(np.clip(shared, 0, 1))
    common = rng.normal(size=(resamples, len(count)))[:, unit_M]
    own = rng.normal(size=(resamples, len(residual_M)))
    scale_R1 = np.sqrt(variance * df / rng.chisquare(df, size=(resamples, 1)))
    return scale_R1 * (np.sqrt(shared) * common + np.sqrt(1 - shared) * own)
