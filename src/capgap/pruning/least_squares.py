"""
Linear least squares from second moments, with a ridge that is chosen on held-out tokens.

W minimises sum |t - W z - b|^2 + ridge |W - prior|^2 over pairs of an input z and a target t. The
ridge is the multiple of an input's mean square with which a fit to one half of the sequences best
predicts the other half. With few tokens for many inputs W stays near its prior; if z determines t, the
smallest ridge is chosen. Sums are kept in float64, separately for each half.
"""

# N tokens, I inputs, O outputs

from __future__ import annotations

import math

import torch

from capgap.errors import CapgapError

RIDGES = (1e-10, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
JUDGED_OUTPUTS = 64  # outputs by which a ridge is chosen, evenly spread over all


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
        """W (O x I) and b (O; zeros without an intercept), float64; CapgapError if sums are not finite."""
        ridges = RIDGES
        if self.count.min() > 0:
            some = slice(None, None, math.ceil(len(prior_OI) / JUDGED_OUTPUTS))
            losses = [self._predicted(prior_OI, ridge, some) for ridge in RIDGES]
            ridges = RIDGES[min(range(len(RIDGES)), key=losses.__getitem__) :]
        sums = [x.sum(0) for x in self._sums()]
        found = (self._solve(prior_OI, ridge, *sums) for ridge in ridges)
        maps = next((maps for maps in found if maps is not None), None)
        if maps is None:
            raise CapgapError(
                "the calibration text gives activations that are not finite, so nothing can be refitted; "
                "check the model, or set prune.refit to none"
            )
        return maps

    def _sums(self) -> tuple[torch.Tensor, ...]:
        return self.gram, self.cross, self.input_sum, self.target_sum, self.count

    def _predicted(self, prior: torch.Tensor, ridge: float, some: slice) -> float:
        """Squared error of some outputs on the second half by the map of the first, up to a constant."""
        first, second = ([x[half] for x in self._sums()] for half in (0, 1))
        for sums in (first, second):
            sums[1], sums[3] = sums[1][some], sums[3][some]
        maps = self._solve(prior[some], ridge, *first)
        if maps is None:
            return math.inf
        w, b = maps
        gram, cross, inputs, targets, count = second
        error = ((w @ gram - 2 * cross) * w).sum()
        return float(error + b @ (2 * (w @ inputs - targets) + count * b))

    def _solve(self, prior, ridge, gram, cross, inputs, targets, count):
        """W and b from sums; None if the ridge is smaller than the sums' rounding errors."""
        if self.intercept:
            gram = gram - torch.outer(inputs, inputs) / count
            cross = cross - torch.outer(targets, inputs) / count
        damped = gram.clone()
        damped.diagonal().add_(ridge * gram.diagonal().mean() + TINY)
        factor, failed = torch.linalg.cholesky_ex(damped)
        if failed:
            return None
        w = prior + torch.cholesky_solve((cross - prior @ gram).T, factor).T
        b = (targets - w @ inputs) / count if self.intercept else torch.zeros_like(targets)
        return w, b


TINY = 1e-30  # avoids division by zero if all inputs are zero
