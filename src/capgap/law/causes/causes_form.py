"""The formula of the law of two causes, its parameters with their priors, and its cells as arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

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
STEP = 1e-30  # of the complex step, which takes no difference


@dataclass(frozen=True)
class CauseCells:
    """The cells of a table as arrays."""

    loss_N: np.ndarray
    help_N: np.ndarray  # L_T; 0 without a teacher
    cut_N: np.ndarray  # log(T/S) of the init; 0 if it was not pruned
    size_N: np.ndarray  # log S about its mean over groups
    tokens_N: np.ndarray  # log D, likewise
    weight_N: np.ndarray  # square root of the runs behind a cell, 1 on average
    group_N: np.ndarray
    draw_NK: np.ndarray  # whether a draw of a teacher had a part in a cell

    def select(self, keep_N: np.ndarray) -> CauseCells:
        """Some of the cells; groups are counted anew."""
        parts = {name: getattr(self, name)[keep_N] for name in self.__dataclass_fields__}
        parts["group_N"] = np.unique(parts["group_N"], return_inverse=True)[1]
        return CauseCells(**parts)


def damage(
    theta_P: np.ndarray, cut: np.ndarray, size: np.ndarray, tokens: np.ndarray
) -> np.ndarray:
    """Damage, nats, of an init pruned by log(T/S) = `cut`; formula in `two_causes.py`.

    size, tokens: log S and log D about the centre. Arguments broadcast and may be complex.
    """
    _, log_rate, by_tokens, by_size, log_ceiling = theta_P
    z = np.exp(log_rate - log_ceiling - by_tokens * tokens - by_size * size) * cut
    return -np.exp(log_ceiling) * np.expm1(-z)


def above_level(theta_P: np.ndarray, cells: CauseCells) -> np.ndarray:
    """g L_T + damage of cells, (N,), nats."""
    return theta_P[0] * cells.help_N + damage(theta_P, cells.cut_N, cells.size_N, cells.tokens_N)


def jacobian_of(theta_P: np.ndarray, cells: CauseCells) -> np.ndarray:
    """Derivatives of `above_level` by the parameters, (N, P), by the complex step."""
    moved = theta_P[:, None] + 1j * STEP * np.eye(len(theta_P))
    return (
        np.stack([np.imag(above_level(moved[:, p], cells)) for p in range(len(theta_P))], 1) / STEP
    )
