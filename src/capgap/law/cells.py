"""
From runs to cells: the mean loss of each teacher at one student size and token budget.

Runs of different teachers with the same seed see the same data in the same order, so seeds are
blocks: run = teacher + seed + noise. Only the noise can change which teacher is best.

Shapes: N runs of one student and budget, K teachers by size, R resamples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd


@dataclass(frozen=True)
class Cells:
    """The teachers of one student size at one token budget."""

    student: str
    student_params: float  # mean over the runs, without embeddings
    tokens: int
    teachers: tuple[str, ...]  # K, smallest first
    teacher_params_K: np.ndarray  # without embeddings
    n_seeds_K: np.ndarray
    mean_K: np.ndarray  # nats per token; where seeds are missing, adjusted for their effect
    map_KN: np.ndarray  # linear map from the runs' losses to mean_K
    residual_N: np.ndarray  # nats per token, teacher and seed effects removed
    df: int  # degrees of freedom of the residuals
    within_ss: float  # squares within cells, seed effects left in, nats^2
    within_df: int

    def by_size(self) -> tuple[np.ndarray, np.ndarray]:
        """Distinct teacher sizes (U), ascending, and the averaging of teachers of one size (U, K)."""
        size_U, group_K = np.unique(self.teacher_params_K, return_inverse=True)
        same_UK = group_K == np.arange(len(size_U))[:, None]
        return size_U, same_UK / same_UK.sum(axis=1, keepdims=True)


@dataclass(frozen=True)
class Noise:
    """Differences between runs that only the seed tells apart, pooled over all cells."""

    residuals: np.ndarray  # inflated to the variance of the noise, nats per token
    df: int

    @property
    def sd(self) -> float:
        """Standard deviation of one run around teacher + seed, nats per token."""
        return float(np.sqrt(np.mean(self.residuals**2)))

    def draw(self, rng: np.random.Generator, resamples: int, runs: int) -> np.ndarray:
        """New noise for every run, (R, N), nats per token.

        Each resample draws residuals of whole runs with replacement and scales them by
        sqrt(df / chi2(df)), because the variance itself is known from `df` degrees of freedom
        only: for the difference of two means this makes the normal interval the t interval.
        """
        scale_R1 = np.sqrt(self.df / rng.chisquare(self.df, size=(resamples, 1)))
        return scale_R1 * rng.choice(self.residuals, size=(resamples, runs))


def cells_of(main: pd.DataFrame) -> list[Cells]:
    """Group main-arm runs into cells, by token budget and then by student size."""
    groups = [group for _, group in main.groupby(["student", "tokens"], sort=True)]
    paired = all(_connected(group) for group in groups)
    cells = [_cells(group, paired) for group in groups]
    return sorted(cells, key=lambda c: (c.tokens, c.student_params, c.student))


def pool(cells: list[Cells]) -> Noise | None:
    """Noise pooled over all cells, None where the seeds leave no degree of freedom.

    Residuals of a fit are too small by sqrt(df / N): with two seeds a cell and five teachers, by
    sqrt(4 / 10). The inflation makes their mean square the unbiased estimate of the variance.
    """
    df = sum(c.df for c in cells)
    if df == 0:
        return None
    residuals = np.concatenate([c.residual_N for c in cells])
    return Noise(residuals * np.sqrt(len(residuals) / df), df)


def between_seeds(cells: list[Cells]) -> tuple[float, int] | None:
    """Standard deviation within a cell (nats) with seed effects in it, and its df; None if none."""
    df = sum(c.within_df for c in cells)
    return (float(np.sqrt(sum(c.within_ss for c in cells) / df)), df) if df else None


def _design(group: pd.DataFrame, paired: bool) -> tuple[np.ndarray, list[str]]:
    """Indicator columns of the teachers, smallest first, and of the seeds."""
    sizes = _sizes(group)
    teachers = sorted(sizes, key=lambda name: (sizes[name], name))
    teacher_NK = group["teacher"].to_numpy()[:, None] == np.array(teachers)
    seed_N = group["seed"].to_numpy()
    seed_NB = seed_N[:, None] == np.unique(seed_N) if paired else np.zeros((len(group), 0))
    return np.hstack([teacher_NK, seed_NB]).astype(float), teachers


def _sizes(group: pd.DataFrame) -> dict[str, float]:
    """Parameters by teacher's name, which stands for one model (`read_runs` checks that)."""
    return dict(zip(group["teacher"], group["teacher_params_non_embedding"], strict=True))


def _connected(group: pd.DataFrame) -> bool:
    """Whether seeds link all teachers; if not, teacher and seed effects cannot be told apart."""
    design, _ = _design(group, paired=True)
    return np.linalg.matrix_rank(design) == design.shape[1] - 1


def _cells(group: pd.DataFrame, paired: bool) -> Cells:
    design, teachers = _design(group, paired)
    k = len(teachers)
    loss_N = group["val_loss_nats_per_token"].to_numpy()
    effects = np.linalg.pinv(design)  # rows: teachers, then seeds
    map_KN = effects[:k] + effects[k:].mean(axis=0) if paired else effects
    n_seeds_K = design[:, :k].sum(axis=0).astype(int)
    raw_mean_K = design[:, :k].T @ loss_N / n_seeds_K
    within_N = loss_N - design[:, :k] @ raw_mean_K
    sizes = _sizes(group)
    return Cells(
        student=group["student"].iloc[0],
        student_params=float(group["student_params_non_embedding"].mean()),
        tokens=int(group["tokens"].iloc[0]),
        teachers=tuple(teachers),
        teacher_params_K=np.array([sizes[name] for name in teachers], dtype=float),
        n_seeds_K=n_seeds_K,
        mean_K=map_KN @ loss_N,
        map_KN=map_KN,
        residual_N=loss_N - design @ (effects @ loss_N),
        df=len(group) - int(np.linalg.matrix_rank(design)),
        within_ss=float(within_N @ within_N),
        within_df=len(group) - k,
    )
