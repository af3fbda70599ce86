"""
One loss surface over student size, teacher size and token budget, and T*(S, D) from it.

Within a cell group (one student size S at one budget D) the loss is a curve in u = log(T / S) whose
lowest point moves with S and D; the level of every group is free. With u, s = log S and d = log D
about their means over the runs,

  loss = level(S, D) + u (b1 + b2 s + b3 d [+ b4 d^2]) + E_k(u) (c1 [+ c2 s + c3 d])

  E_k(u) = (exp(k u) - k u - 1) / k^2, u^2 / 2 at k = 0

With a and c the two brackets, log(T*/S) = log(1 - k a / c) / k, -a / c at k = 0. k is 0, and the
terms in square brackets absent, unless an F test asks for them: all together, for a skewed curve
cannot move without changing its coefficients; or b4 alone. E_k bends one way whatever k, so a curve
has one minimum; it holds the parabola and curves that bend ever less, such as a teacher's help of
1 - S/T against damage by pruning that grows as log(T/S), which no cubic follows. The fit is least
squares, by a search over k alone, over cells within two of each group's best (a parabola over wide
or off-centre grids is biased, arXiv 2603.22339).

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
from scipy.optimize import minimize_scalar

from capgap.law.cells import Cells, Noise
from capgap.law.optimum import limits
from capgap.law.records import Interval

REACH = 2  # cells on either side of the best one of a group
TEST_LEVEL = 0.01  # of terms on demand; at 0.05 needless ones cost 3 points of coverage
TERMS = ("u", "u_s", "u_d", "u_dd", "bend", "bend_s", "bend_d", "k")
STEEPEST = 3.0  # |k| at most: the curvature changes by exp(3) from one T to 2.7 T
ROUNDING = 1e-9  # nats; residuals below it are no misfit
SMALL = 1e-3  # |k| below which E_k is taken from its series


@dataclass(frozen=True)
class Surface:
    """A fitted surface. Terms by name: u, u_s, u_d, u_dd, bend, bend_s, bend_d, k; absent: 0."""

    status: Literal["fitted", "flat", "not_identifiable"]
    reason: str
    terms: tuple[str, ...]
    term_P: np.ndarray  # nats per unit of each term; k per unit of u
    term_RP: np.ndarray | None  # None where no degree of freedom is left
    centre: tuple[float, float, float]  # of log S, log D and u
    tried: tuple[tuple[float, float], tuple[float, float]]  # least and most log S and log D
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
        slope_R, bend_R, k_R = (part[:, None] for part in self._parts(term_RP, student, tokens))
        u_K = log_teacher_K - np.log(student) - self.centre[2]
        return slope_R * u_K + bend_R * bowl(u_K, k_R)

    def at_optimum(self, student: float, tokens: float) -> tuple[np.ndarray, np.ndarray] | None:
        """How the loss rises about T*, by c E_k(log(T / T*)): c and k of each resample, (R,).

        c, the second derivative at T* in nats per squared unit of log T, is nan where there is no
        minimum.
        """
        if self.term_RP is None:
            return None
        slope_R, bend_R, k_R = self._parts(self.term_RP, student, tokens)
        known_R = np.isfinite(self._lowest(self.term_RP, student, tokens))
        return np.where(known_R, bend_R - k_R * slope_R, np.nan), k_R

    def elasticities(self, confidence: float) -> dict[str, Interval] | None:
        """How log T* moves with log S and with log D, on average over what was tried.

        size: at fixed D. tokens: at fixed S. size_at_fixed_tokens_per_param: along D in proportion
        to S. What is fixed stands at the centre of the runs. Left out is what the runs cannot show,
        and a way on which the surface has no minimum at an end. None unless fitted.
        """
        if self.status != "fitted":
            return None
        s, d = self.centre[:2]
        (s_low, s_high), (d_low, d_high) = self.tried
        half = min(s_high - s_low, d_high - d_low) / 2
        ways = {}  # from and to, as log S and log D
        if "u_s" in self.terms:
            ways["size"] = ((s_low, d), (s_high, d))
        if "u_d" in self.terms:
            ways["tokens"] = ((s, d_low), (s, d_high))
        if half > 0:
            ways["size_at_fixed_tokens_per_param"] = ((s - half, d - half), (s + half, d + half))
        found = {}
        for name, (first, last) in ways.items():
            (at_first, first_R), (at_last, last_R) = (
                self.log_ratio(*np.exp(end)) for end in (first, last)
            )
            if not np.isfinite(at_first + at_last):
                continue
            own = float(name != "tokens")  # log T* = log S + log ratio
            length = max(last[0] - first[0], last[1] - first[1])
            drawn_R = None if first_R is None else own + (last_R - first_R) / length
            found[name] = interval_of(own + (at_last - at_first) / length, drawn_R, confidence)
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

    def _parts(self, term_RP: np.ndarray, student: float, tokens: float):
        """Coefficients of u and of E_k(u), and k, each (R,)."""
        s, d = np.log(student) - self.centre[0], np.log(tokens) - self.centre[1]
        zero = np.zeros(len(term_RP))
        b = dict.fromkeys(TERMS, zero) | dict(zip(self.terms, term_RP.T, strict=True))
        slope = b["u"] + b["u_s"] * s + b["u_d"] * d + b["u_dd"] * d**2
        return slope, b["bend"] + b["bend_s"] * s + b["bend_d"] * d, b["k"]

    def _lowest(self, term_RP: np.ndarray, student: float, tokens: float) -> np.ndarray:
        """log(T*/S), (R,); nan where the curve has no lowest point."""
        slope_R, bend_R, k_R = self._parts(term_RP, student, tokens)
        with np.errstate(divide="ignore", invalid="ignore"):
            x_R = -slope_R / bend_R
            small_R = np.abs(k_R) < SMALL
            log_R = np.log1p(k_R * x_R) / np.where(small_R, 1.0, k_R)
            u_R = np.where(small_R, x_R - k_R * x_R**2 / 2, log_R)
        return np.where((bend_R > 0) & (1 + k_R * x_R > 0), self.centre[2] + u_R, np.nan)


def bowl(u: np.ndarray, k: np.ndarray | float) -> np.ndarray:
    """E_k(u) = (exp(k u) - k u - 1) / k^2, which is u^2 / 2 at k = 0; arrays broadcast."""
    small = np.abs(k) < SMALL
    some = np.where(small, 1.0, k)
    return np.where(
        small, u**2 / 2 + k * u**3 / 6 + k**2 * u**4 / 24, (np.expm1(some * u) - some * u) / some**2
    )


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
    u_M = log_t_M - log_s_L[group_M]
    centre = (float(log_s_L.mean()), float(log_d_L.mean()), float(u_M.mean()))
    model = _Model(
        loss_M=loss_M,
        level_ML=(group_M[:, None] == np.arange(len(groups))).astype(float),
        u_M=u_M - centre[2],
        s_M=log_s_L[group_M] - centre[0],
        d_M=log_d_L[group_M] - centre[1],
    )
    by_size, by_tokens = len(np.unique(log_s_L.round(9))) > 1, len(np.unique(log_d_L)) > 1
    terms = ("u", "bend", *("u_s",) * by_size, *("u_d",) * by_tokens)
    matrix = model.design(terms, 0.0)
    if np.linalg.matrix_rank(matrix) < matrix.shape[1]:
        return None
    curved = ("u_dd",) * (len(np.unique(log_d_L)) > 2)
    skewed = ("k", *("bend_s",) * by_size, *("bend_d",) * by_tokens, *curved)
    straight, terms = terms, model.if_needed(terms, skewed)
    if curved and terms == straight:
        terms = model.if_needed(terms, curved)
    fitted = model.fit(terms)
    beta, residual_M = fitted.beta_P, fitted.residual_M
    df = len(loss_M) - len(beta)
    variance, scale_df = float(residual_M @ residual_M) / df if df else 0.0, df
    if noise is not None:
        by_seeds = noise.sd**2 * float(variance_M.mean())
        if variance <= by_seeds:
            variance, scale_df = by_seeds, df + noise.df
    beta_RP = None
    if scale_df > 0:
        keys = [
            (c.student, name)
            for c, p in zip(groups, parts, strict=True)
            for name in np.array(c.teachers)[p]
        ]
        drawn = _draw(residual_M, keys, variance, scale_df, resamples, np.random.default_rng(seed))
        beta_RP = beta + drawn @ np.linalg.pinv(fitted.tangent_MP).T
    n = len(groups)
    names = [(c.student, c.tokens) for c in groups]
    surface = Surface(
        status="fitted",
        reason=f"{len(loss_M)} cells of {n} student sizes and budgets{_at_limit(terms, beta[n:])}",
        terms=terms,
        term_P=beta[n:],
        term_RP=None if beta_RP is None else beta_RP[:, n:],
        centre=centre,
        tried=((log_s_L.min(), log_s_L.max()), (log_d_L.min(), log_d_L.max())),
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


def _at_limit(terms: tuple[str, ...], term_P: np.ndarray) -> str:
    """A warning where the search for k ended at its limit, else nothing."""
    if "k" not in terms or abs(term_P[terms.index("k")]) < STEEPEST - SMALL:
        return ""
    return (
        f", whose curves bend more unevenly than the form allows (k at its limit of {STEEPEST:g})"
    )


def _judge(surface: Surface, confidence: float) -> Surface:
    """Whether the surface has a minimum at the centre of the runs beyond doubt."""
    value, drawn_R = surface.log_ratio(*np.exp(surface.centre[:2]))
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


@dataclass(frozen=True)
class _Fitted:
    """Least squares: levels first, then the terms."""

    beta_P: np.ndarray
    residual_M: np.ndarray
    tangent_MP: np.ndarray  # derivatives of the prediction by beta


@dataclass(frozen=True)
class _Model:
    """The cells that a surface is fitted to; u, s and d about their centres."""

    loss_M: np.ndarray
    level_ML: np.ndarray  # indicators of the groups
    u_M: np.ndarray
    s_M: np.ndarray
    d_M: np.ndarray

    def design(self, terms: tuple[str, ...], k: float) -> np.ndarray:
        """Columns of the levels and of all terms but k, at some k."""
        bowl_M = bowl(self.u_M, k)
        column = {
            "u": self.u_M,
            "u_s": self.u_M * self.s_M,
            "u_d": self.u_M * self.d_M,
            "u_dd": self.u_M * self.d_M**2,
            "bend": bowl_M,
            "bend_s": bowl_M * self.s_M,
            "bend_d": bowl_M * self.d_M,
        }
        return np.column_stack([self.level_ML, *(column[term] for term in terms if term != "k")])

    def fit(self, terms: tuple[str, ...]) -> _Fitted:
        """Least squares, by a search over k where it is a term."""
        if "k" not in terms:
            matrix = self.design(terms, 0.0)
            beta = np.linalg.lstsq(matrix, self.loss_M)[0]
            return _Fitted(beta, self.loss_M - matrix @ beta, matrix)

        def squares(k: float) -> float:
            matrix = self.design(terms, k)
            return float(
                np.sum((self.loss_M - matrix @ np.linalg.lstsq(matrix, self.loss_M)[0]) ** 2)
            )

        k_G = np.linspace(-STEEPEST, STEEPEST, 13)
        near = k_G[int(np.argmin([squares(k) for k in k_G]))]
        ends = max(near - 0.5, -STEEPEST), min(near + 0.5, STEEPEST)
        k = float(
            minimize_scalar(squares, bounds=ends, method="bounded", options={"xatol": 1e-6}).x
        )
        matrix = self.design(terms, k)
        beta = np.linalg.lstsq(matrix, self.loss_M)[0]
        by_k = (self.design(terms, k + SMALL) - self.design(terms, k - SMALL)) @ beta / (2 * SMALL)
        at = self.level_ML.shape[1] + terms.index("k")
        return _Fitted(
            np.insert(beta, at, k),
            self.loss_M - matrix @ beta,
            np.insert(matrix, at, by_k, axis=1),
        )

    def if_needed(self, terms: tuple[str, ...], more: tuple[str, ...]) -> tuple[str, ...]:
        """The terms, with more of them where the F test at TEST_LEVEL asks for it."""
        (without, df_without), (having, df) = (
            (float(np.sum(fitted.residual_M**2)), self._df(fitted))
            for fitted in (self.fit(terms), self.fit(terms + more))
        )
        if df_without - df != len(more) or df < 2:
            return terms
        f = (without - having) / len(more) / max(having / df, ROUNDING**2)
        return terms + more if stats.f.sf(f, len(more), df) < TEST_LEVEL else terms

    def _df(self, fitted: _Fitted) -> int:
        return len(self.loss_M) - int(np.linalg.matrix_rank(fitted.tangent_MP))


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
