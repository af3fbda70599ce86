"""
The basis of a narrower model's residual stream in that of the model it is cut from.

Cutting channels keeps d of the D axes. Any other d directions are possible if they are absorbed into
all weights that write to the stream and that read it: the stream of the cut model is then c B x, with
orthonormal rows of B. The directions are the principal components of the norms' inputs. (SliceGPT,
arXiv 2401.15024, uses other components in every layer, with matrices on the residual connection. Here
one B serves all layers, so that the cut model keeps its architecture.) Of all bases of these directions
the one nearest to the channels with the highest scores is chosen (orthogonal Procrustes), so that
channels change as little as possible.

RMSNorm depends only on the length of the stream, which B preserves except for the dropped components.
LayerNorm first subtracts the mean over channels, so one row of B is that mean, and the others are
orthogonal to it. c = sqrt(d / D) preserves the mean square of a channel, relative to a norm's epsilon.
"""

# D and d hidden channels of the model and of the cut one

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch

from capgap.errors import CapgapError


class NormKind(NamedTuple):
    """How a norm acts on a channel: multiply by offset + weight, with or without centring first."""

    offset: float  # 1 of Gemma's, else 0
    centred: bool  # LayerNorm

    def gain(self, norm: torch.nn.Module) -> torch.Tensor:
        """The factor of each channel, D in float64."""
        return self.offset + norm.weight.detach().double()


def kind_of(norm: torch.nn.Module, name: str) -> NormKind:
    """The kind of a norm, found by applying it to probe vectors.

    Raises CapgapError for one that neither multiplies channels by its weight nor by 1 + its weight.
    """
    weight = norm.weight.detach().float()
    axis = torch.arange(len(weight), dtype=torch.float32)
    probe = torch.cos(axis + 1)
    probe -= probe.mean()
    probe = (probe / probe.square().mean().sqrt()).to(norm.weight)

    def gain(shift: float) -> torch.Tensor:
        with torch.no_grad():
            up, down = norm(probe + shift).float(), norm(shift - probe).float()
        return (up - down) / 2 / probe.float()

    strong = probe.float().abs() > 0.1
    centred = torch.allclose(gain(1.0)[strong], gain(0.0)[strong], rtol=1e-3, atol=1e-5)
    for offset in (0.0, 1.0):
        if torch.allclose(gain(0.0)[strong], (offset + weight)[strong], rtol=1e-2, atol=1e-3):
            return NormKind(offset, centred)
    raise CapgapError(
        f"{name}: the refit does not support this kind of norm; set prune.refit to none"
    )


class Basis(NamedTuple):
    """The map from the stream x of the model to the stream c B x of the cut model."""

    rows_dD: torch.Tensor  # B, orthonormal rows, float64
    scale: float  # c

    def narrow(self, streams: torch.Tensor) -> torch.Tensor:
        """c B x for every x of the last dimension."""
        return streams.double() @ (self.scale * self.rows_dD).T

    def widen(self, gain_D: torch.Tensor) -> torch.Tensor:
        """The map (D x d) from the output of a norm without gain to that of the norm with this gain."""
        return gain_D[:, None] * self.rows_dD.T / self.scale


def selection(kept: np.ndarray, of: int, device: torch.device) -> torch.Tensor:
    """The rows of the identity that are kept, d x D in float64."""
    return torch.eye(of, dtype=torch.float64, device=device)[torch.from_numpy(kept).to(device)]


def principal_basis(moments_DD: torch.Tensor, kept: np.ndarray, *, centred: bool) -> Basis:
    """The d principal directions of second moments, as near as possible to the kept channels.

    centred: whether norms subtract the mean over channels; the moments are then those without it.
    """
    of, d = len(moments_DD), len(kept)
    axes_dD = selection(kept, of, moments_DD.device)
    scale = math.sqrt(d / of)
    if not centred:
        main_Dd = torch.linalg.eigh(moments_DD)[1][:, -d:]
        return Basis(_nearest(axes_dD @ main_Dd) @ main_Dd.T, scale)
    mean_D = torch.full((of,), of**-0.5, dtype=torch.float64, device=moments_DD.device)
    mean_d = mean_D.new_full((d,), d**-0.5)
    # lowers the mean to the smallest eigenvalue, whatever the rank
    lowered = moments_DD - (1 + moments_DD.trace()) * torch.outer(mean_D, mean_D)
    main = torch.linalg.eigh(lowered)[1][:, of - d + 1 :]
    rest = _complement(mean_d)
    turned = rest @ _nearest(rest.T @ axes_dD @ main) @ main.T
    return Basis(turned + torch.outer(mean_d, mean_D), scale)


def _nearest(matrix: torch.Tensor) -> torch.Tensor:
    """The orthogonal matrix nearest to a square one."""
    left, _, right = torch.linalg.svd(matrix)
    return left @ right


def _complement(unit_d: torch.Tensor) -> torch.Tensor:
    """An orthonormal basis of what is orthogonal to a unit vector, d x (d - 1)."""
    full = torch.cat([unit_d[:, None], torch.eye(len(unit_d)).to(unit_d)], dim=1)
    return torch.linalg.qr(full)[0][:, 1 : len(unit_d)]
