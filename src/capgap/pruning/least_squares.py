"""
Linear least squares from second moments, with a ridge that is chosen on held-out tokens.

W minimises sum |t - W z - b|^2 + ridge |W - prior|^2 over pairs of an input z and a target t. The
ridge is that share of the mean square of an input which predicts one half of the sequences best from
the other, and the other way round: few tokens for many inputs keep W near its prior, and where z
determines t it vanishes. Sums are kept in float64, for each half by itself.
"""

# N tokens, I inputs, O outputs

from __future__ import annotations

import torch

RIDGES = (1e-10, 1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)


class Regression:
    """Sums over tokens from which a linear map is fitted."""

    def __init__(self, inputs: int, outputs: int, device: torch.device, *, intercept: bool):
        def zeros(*shape: int) -> torch.Tensor:
            return torch.zeros(2, *shape, dtype=torch.float64, device=device)

        self.intercept = intercept
        self.gram, self.cross = zeros(inputs, inputs), zeros(outputs, inputs)
        self.input_sum, self.target_sum, self.count = zeros(inputs), zeros(outputs), zeros()

    def add(self, z_NI: torch.Tensor, t_NO: torch.Tensor, half_N: torch.Tensor) -> None:
        """Add pairs; half_N is 0 or 1 for each."""
        for half in (0, 1):
            z, t = z_NI[half_N == half].double(), t_NO[half_N == half].double()
            self.gram[half] += z.T @ z
            self.cross[half] += t.T @ z
            self.input_sum[half] += z.sum(0)
            self.target_sum[half] += t.sum(0)
            self.count[half] += len(z)

    def solve(self, prior_OI: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """W and b (zeros without an intercept), in float64."""
        ridge = RIDGES[0]
        if self.count.min() > 0:
            losses = [self._predicted(prior_OI, ridge) for ridge in RIDGES]
            ridge = RIDGES[min(range(len(RIDGES)), key=losses.__getitem__)]
        sums = (x.sum(0) for x in self._sums())
        return self._solve(prior_OI, ridge, *sums)

    def _sums(self) -> tuple[torch.Tensor, ...]:
        return self.gram, self.cross, self.input_sum, self.target_sum, self.count

    def _predicted(self, prior: torch.Tensor, ridge: float) -> float:
        """Squared error on either half by the other's map, up to a constant."""
        total = 0.0
        for half in (0, 1):
            gram, cross, inputs, targets, count = (x[1 - half] for x in self._sums())
            w, b = self._solve(prior, ridge, *(x[half] for x in self._sums()))
            total += ((w @ gram - 2 * cross) * w).sum()
            total += b @ (2 * (w @ inputs - targets) + count * b)
        return float(total)

    def _solve(self, prior, ridge, gram, cross, inputs, targets, count):
        if self.intercept:
            gram = gram - torch.outer(inputs, inputs) / count
            cross = cross - torch.outer(targets, inputs) / count
        damped = gram + (ridge * gram.diagonal().mean() + TINY) * torch.eye(len(gram)).to(gram)
        w = prior + torch.linalg.solve(damped, (cross - prior @ gram).T).T
        b = (targets - w @ inputs) / count if self.intercept else torch.zeros_like(targets)
        return w, b


TINY = 1e-30  # where all inputs are zero
