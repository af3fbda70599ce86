"""
The law of a study: the joint fit with its noise, and the intervals of everything that follows.

Fit and noise alternate; the noise is estimated from the model linearised at the fit. An exponent and
log T* of a student and budget are weighted sums of (alpha, a, b). The interval of such a sum is that
of a mixture of normals over draws of the noise. If the objective is not quadratic out to its ends,
the profile interval replaces it if it is wider: its end is where the objective, minimised over
everything else, has risen as far as a quadratic one would have. A side on which it never rises so
far is open: the runs only bound T*.

Shapes as in `curve_fit.py` and `noise.py`; K teachers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import optimize, special

from capgap.law.law_record import Interval
from capgap.law.power_law import curve_fit, noise
from capgap.law.power_law.loss_curve import above_lowest
from capgap.law.table.grouped_runs import GroupedRuns

TURNS = 4  # alternations of noise and fit
# nats, of the fit before the noise is known; weighs the runs against the prior of k
FIRST_SD = 0.01
SETTLED = 3e-3  # change of a parameter at which the alternation ends
QUADRATIC = 0.2  # relative error of the quadratic rise below which no profile is computed
OPEN = 3.0  # a side whose end is further than this from the estimate (log T*, exponent) is open
REGRET_DRAWS = 2048


@dataclass(frozen=True)
class Solved:
    """A fit at a known noise, with the covariance of its parameters."""

    curves: curve_fit.Curves
    loss_N: np.ndarray
    remove_MN: np.ndarray
    x_P: np.ndarray
    objective: float
    covariance_PP: np.ndarray


def interval_of(solved: Solved, weight_P: np.ndarray, offsets: tuple[float, float]) -> Interval:
    """Interval of a weighted sum of the parameters: the offsets about the estimate, or the profile.

    The profile replaces an end if it is wider there. If it leaves a side open, the standard error
    means nothing, and both ends are taken from the profile.
    """
    value = float(weight_P @ solved.x_P)
    ends = [_end(solved, weight_P, offset, narrower=False) for offset in offsets]
    if None in ends:
        ends = [
            end if end is None else _end(solved, weight_P, offset, narrower=True)
            for end, offset in zip(ends, offsets, strict=True)
        ]
    low, high = (None if end is None else value + end for end in ends)
    return Interval(value=value, low=low, high=high)


def _end(solved: Solved, weight_P: np.ndarray, offset: float, narrower: bool) -> float | None:
    """Distance of an interval's end from the estimate, None for an open side.

    narrower: whether the profile also replaces an end that lies further out.
    """
    covariance_P = solved.covariance_PP @ weight_P
    variance = float(weight_P @ covariance_P)
    rise, direction_P = offset**2 / variance, covariance_P / variance
    passed, gaps = {0.0: solved.x_P}, {0.0: -rise}

    def gap(distance: float) -> float:
        """Rise of the objective with the sum held at a distance, less the required rise.

        Results are kept, because a second search from other starts may end elsewhere.
        """
        if distance not in gaps:
            near = min(passed, key=lambda d: abs(d - distance))
            starts = [
                solved.x_P + distance * direction_P,
                passed[near] + (distance - near) * direction_P,
            ]
            found = curve_fit.solve(
                solved.curves,
                solved.loss_N,
                solved.remove_MN,
                np.array(starts),
                fixed=weight_P[:, None],
            )
            passed[distance] = found.x_P
            gaps[distance] = found.objective - solved.objective - rise
        return gaps[distance]

    inner = float(np.clip(offset, -OPEN, OPEN))
    at = gap(inner)
    if (at > QUADRATIC * rise and narrower) or (at > 0 and inner != offset):
        return float(optimize.brentq(gap, 0.0, inner, rtol=1e-2, xtol=1e-3))
    if at >= -QUADRATIC * rise and inner == offset:
        return offset
    while abs(inner) < OPEN:
        outer = float(np.sign(offset) * min(OPEN, abs(inner) * 1.6))
        if gap(outer) > 0:
            return float(optimize.brentq(gap, inner, outer, rtol=1e-2, xtol=1e-3))
        inner = outer
    return None


@dataclass(frozen=True)
class PowerLaw:
    """The fitted law of a table."""

    runs: GroupedRuns
    curves: curve_fit.Curves
    x_P: np.ndarray
    components: noise.Components
    near: noise.Linearised
    mode_J: np.ndarray
    remove_MN: np.ndarray
    objective: float

    @property
    def axes(self) -> curve_fit.Axes:
        """Coordinates of u*."""
        return self.curves.axes

    @cached_property
    def draws(self) -> noise.NoiseDraws:
        """Draws of the noise, over which every interval averages."""
        return noise.draw_noise(self.components, self.near, self.mode_J)

    @cached_property
    def covariance_PP(self) -> np.ndarray:
        """Covariance of the parameters at the most likely noise."""
        return noise.marginal(self.components, self.near, self.mode_J[None])[2][0]

    @cached_property
    def component_variances(self) -> dict[str, float]:
        """Variance of every component at the most likely noise."""
        variance_J = self.components.variances(self.mode_J[None])[0]
        return dict(zip(self.components.names, variance_J.tolist(), strict=True))

    @cached_property
    def floor_N(self) -> np.ndarray:
        """Losses of the runs without the fitted curve: the level of each run's group, with its error."""
        return self.runs.loss_N - self.curves.evaluate(self.x_P[None])[0][0]

    @cached_property
    def noise_NN(self) -> np.ndarray:
        """Covariance of the runs at the most likely noise, nats^2."""
        variance_J = self.components.variances(self.mode_J[None])[0]
        return np.tensordot(variance_J, self.near.part_JNN, axes=1)

    @cached_property
    def run_noise_NN(self) -> np.ndarray:
        """The same without the components for errors of the fitted form (`noise.FORM`)."""
        variance_J = self.components.variances(self.mode_J[None])[0].copy()
        form = [j for j, n in enumerate(self.components.names) if n in noise.FORM]
        variance_J[form] = 0.0
        return np.tensordot(variance_J, self.near.part_JNN, axes=1)

    @cached_property
    def sd(self) -> dict[str, tuple[float, float, float]]:
        """Standard deviation of every component: median and 95 % interval of its posterior, nats."""
        sd_RJ = np.sqrt(self.components.variances(self.draws.phi_RJ))
        return {
            name: tuple(weighted_quantiles(sd_RJ[:, j], self.draws.weight_R, (0.5, 0.025, 0.975)))
            for j, name in enumerate(self.components.names)
        }

    @cached_property
    def noise_df(self) -> float:
        """Degrees of freedom of the variance between single runs of two teachers (Satterthwaite)."""
        variance_RJ = self.components.variances(self.draws.phi_RJ)
        names = self.components.names
        use = [j for j, n in enumerate(names) if n in ("order", "trunk", "init", "teacher")]
        log_R = np.log(variance_RJ[:, use].sum(axis=1))
        mean = self.draws.weight_R @ log_R
        return float(np.clip(2 / (self.draws.weight_R @ (log_R - mean) ** 2), 1.0, 1e4))

    def weights(self, size: float, tokens: float) -> np.ndarray:
        """Weights of (alpha, a - 1, b) in log T*/S of a student and budget."""
        return self.axes.coordinates(np.float64(size), np.float64(tokens))

    def log_ratio(self, size: float, tokens: float, confidence: float) -> Interval | None:
        """log T*/S of a student (parameters) at a budget (tokens); None if it is not determined."""
        return self.combination(self.weights(size, tokens), confidence)

    def star(self, size: float, tokens: float, confidence: float) -> Interval | None:
        """T* in parameters; None if the runs do not determine it."""
        found = self.log_ratio(size, tokens, confidence)
        return None if found is None else found.apply(lambda u: size * np.exp(u))

    def exponent(self, by_size: float, by_tokens: float, confidence: float) -> Interval | None:
        """by_size a + by_tokens b; None if the runs do not determine it."""
        found = self.combination(np.array([0.0, by_size, by_tokens]), confidence)
        return None if found is None else found.apply(lambda v: v + by_size)

    def combination(self, weight_3: np.ndarray, confidence: float) -> Interval | None:
        """A weighted sum of (alpha, a - 1, b)."""
        if not self.axes.determines(weight_3):
            return None
        weight_P = self._padded(weight_3)
        return interval_of(self.solved, weight_P, self._offsets(weight_P, confidence))

    def multipliers(self, weight_3: np.ndarray, confidence: float) -> tuple[float, float]:
        """Ends of the interval of a weighted sum in standard errors at the most likely noise.

        They are further out than a normal's, because the noise is not known exactly.
        """
        weight_P = self._padded(weight_3)
        se = np.sqrt(weight_P @ self.covariance_PP @ weight_P)
        low, high = self._offsets(weight_P, confidence)
        return low / se, high / se

    def _padded(self, weight_3: np.ndarray) -> np.ndarray:
        weight_P = np.zeros(self.curves.p)
        weight_P[: self.curves.q] = self.axes.basis_3Q.T @ weight_3
        return weight_P

    def _offsets(self, weight_P: np.ndarray, confidence: float) -> tuple[float, float]:
        """Ends of an interval less the estimate, from the mixture over draws of the noise."""
        step_R = self.draws.step_RP @ weight_P
        sd_R = np.sqrt(np.einsum("rpq,p,q->r", self.draws.covariance_RPP, weight_P, weight_P))
        tail = (1 - confidence) / 2
        low, high = (
            mixture_quantile(step_R, sd_R, self.draws.weight_R, p) for p in (tail, 1 - tail)
        )
        # the interval must hold the estimate, even if the draws lie to one side
        return min(low, -0.25 * sd_R.min()), max(high, 0.25 * sd_R.min())

    @cached_property
    def solved(self) -> Solved:
        """The problem whose objective the profiles follow."""
        return Solved(
            self.curves,
            self.runs.loss_N,
            self.remove_MN,
            self.x_P,
            self.objective,
            self.covariance_PP,
        )

    @cached_property
    def parameter_draws(self) -> tuple[np.ndarray, np.ndarray]:
        """Draws of the parameters (R, P) with their weights, for what is not a weighted sum.

        They come from the mixture over draws of the noise and are weighed by how far the objective
        departs from its quadratic approximation there.
        """
        rng = np.random.default_rng(0)
        pick_R = rng.choice(len(self.draws.weight_R), REGRET_DRAWS, p=self.draws.weight_R)
        size_RP, axis_RPP = np.linalg.eigh(self.draws.covariance_RPP)  # may be singular by rounding
        root_RPP = axis_RPP * np.sqrt(np.maximum(size_RP, 0))[:, None, :]
        z_RP = rng.normal(size=(REGRET_DRAWS, self.curves.p))
        step_RP = self.draws.step_RP[pick_R] + np.einsum("rpq,rq->rp", root_RPP[pick_R], z_RP)
        x_RP = self.x_P + step_RP
        precision_PP = np.linalg.inv(self.covariance_PP)
        expected_R = np.einsum("rp,pq,rq->r", step_RP, precision_PP, step_RP)
        found = np.concatenate(
            [
                self.curves.objective(x_RP[i : i + 128], self.runs.loss_N, self.remove_MN)
                for i in range(0, REGRET_DRAWS, 128)
            ]
        )
        log_w_R = np.clip((expected_R - (found - self.objective)) / 2, -10, 3)
        weight_R = np.exp(log_w_R)
        return x_RP, weight_R / weight_R.sum()

    def log_star_draws(self, size: float, tokens: float) -> np.ndarray:
        """Draws of log T* of a student and budget, (R,)."""
        weight_Q = self.axes.basis_3Q.T @ self.weights(size, tokens)
        return np.log(size) + self.parameter_draws[0][:, : self.curves.q] @ weight_Q

    def excess(
        self,
        teacher_size_K: np.ndarray,
        size: float,
        tokens: float,
        shift_R: np.ndarray | float = 0.0,
        draws: bool = False,
    ) -> np.ndarray:
        """Loss above the lowest point of a student's curve, nats: at the fit (1, K), or draws (R, K).

        shift_R: added to log T*. Meaningful only if the runs determine T* there.
        """
        weight_Q = self.axes.basis_3Q.T @ self.weights(size, tokens)
        x_RP = self.parameter_draws[0] if draws else self.x_P[None]
        star_R1 = (x_RP[:, : self.curves.q] @ weight_Q + shift_R)[:, None]
        away_RK = np.log(np.asarray(teacher_size_K, dtype=float) / size) - star_R1
        lean_R1 = star_R1 - self.axes.middle
        return above_lowest(away_RK, lean_R1, x_RP[:, -2, None], x_RP[:, -1, None])


def mixture_quantile(mean_R: np.ndarray, sd_R: np.ndarray, weight_R: np.ndarray, p: float) -> float:
    """Quantile of a mixture of normals."""
    z = special.ndtri(p)
    edges = mean_R + sd_R * z
    low, high = edges.min(), edges.max()
    if high - low < 1e-12 * max(1.0, abs(low)):
        return float(low)
    return float(
        optimize.brentq(lambda x: weight_R @ special.ndtr((x - mean_R) / sd_R) - p, low, high)
    )


def weighted_quantiles(value_R: np.ndarray, weight_R: np.ndarray, shares) -> list[float]:
    """Quantiles of weighted draws."""
    order = np.argsort(value_R)
    return [float(v) for v in np.interp(shares, np.cumsum(weight_R[order]), value_R[order])]


def fit_power_law(runs: GroupedRuns, noise_sd: float | None = None) -> PowerLaw:
    """Fit the law to the runs of the main arm. noise_sd: of one run, nats, if it is known.

    Raises CapgapError as `curve_fit.solve`.
    """
    axes = curve_fit.axes_of(runs)
    curves = curve_fit.Curves(runs, axes)
    n = len(runs.loss_N)
    remove_MN = curve_fit.remover(runs, FIRST_SD**2 * np.eye(n))
    starts_BP = curve_fit.starting_points(curves, runs)
    found = curve_fit.solve(curves, runs.loss_N, remove_MN, starts_BP)
    df = max(1, n - len(runs.first_G) - curves.p)
    rough_sd = FIRST_SD * float(np.sqrt(max(found.objective / df, 1e-6)))
    several = len(set(runs.student_N)) > 1
    components = noise.components_of(runs, rough_sd, noise_sd, several)
    mode_J, x_P = np.zeros(len(components.names)), found.x_P
    for turn in range(TURNS):
        near = linearise(runs, curves, components, x_P)
        mode_J = noise.mode(components, near, mode_J)
        variance_J = components.variances(mode_J[None])[0]
        remove_MN = curve_fit.remover(runs, np.tensordot(variance_J, near.part_JNN, axes=1))
        tries_BP = np.vstack([x_P, starts_BP]) if turn == 0 else x_P[None]
        found = curve_fit.solve(curves, runs.loss_N, remove_MN, tries_BP)
        moved = np.abs(found.x_P - x_P).max()
        x_P = found.x_P
        if moved < SETTLED:
            break
    near = linearise(runs, curves, components, x_P)
    return PowerLaw(runs, curves, x_P, components, near, mode_J, remove_MN, found.objective)


def linearise(
    runs: GroupedRuns, curves: curve_fit.Curves, components: noise.Components, x_P: np.ndarray
) -> noise.Linearised:
    """The model linearised about some parameters."""
    (f_N,), (slope_NP,) = curves.evaluate(x_P[None])
    group_N = runs.group_N
    levels_NG = (group_N[:, None] == np.arange(group_N.max() + 1)).astype(float)
    least_G = np.full(levels_NG.shape[1], np.inf)
    np.minimum.at(least_G, group_N, f_N)
    contrast_CN = np.linalg.qr(levels_NG, mode="complete")[0][:, levels_NG.shape[1] :].T
    precision_PP = curves.prior_PP.T @ curves.prior_PP
    by_log_star_N = slope_NP[:, 0] / curves.design_NQ[:, 0]
    part_JNN = noise.parts_at(
        components, f_N - least_G[group_N], by_log_star_N, slope_NP[:, -2], runs.index("student_N")
    )
    return noise.Linearised(
        contrast_CN=contrast_CN,
        residual_C=contrast_CN @ (runs.loss_N - f_N),
        column_CP=contrast_CN @ slope_NP,
        prior_PP=precision_PP,
        prior_pull_P=precision_PP @ (curves.prior_mean_P - x_P),
        part_JNN=part_JNN,
    )
