"""
Products with matrices that are rounded once a step, not once a micro-batch, on a GPU in bfloat16.

The weights that learn stay float32. Autocast rounds them anew in every forward pass, and rounds their
gradients. Here each matrix has a rounded copy, which is written again after each step of the optimizer,
and the gradient comes out of its product in float32 if the device has such a product. The copy takes
what autocast's copies take until the backward pass, 2 bytes a parameter.
"""

# N tokens, I inputs, O outputs

from __future__ import annotations

import torch
from torch.autograd.function import once_differentiable

from capgap.engine.device_path import by_cache, has_wide_products


class _Product(torch.autograd.Function):
    """x W^T + b, with W rounded and its gradient in float32."""

    @staticmethod
    def forward(ctx, x, weight, bias, rounded, wide: bool):
        """x: ... x inputs, of the type of `rounded`, outputs x inputs; weight gets its gradient."""
        ctx.save_for_backward(x, rounded)
        ctx.wide = wide
        return torch.nn.functional.linear(x, rounded, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        """Gradients by x, by the weight in float32, and by the bias."""
        x, rounded = ctx.saved_tensors
        grad_NO, x_NI = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
        if ctx.wide:
            grad_weight = torch.mm(grad_NO.T, x_NI, out_dtype=torch.float32)
        else:
            grad_weight = torch.mm(grad_NO.T, x_NI).float()
        grad_bias = grad_NO.sum(0) if ctx.needs_input_grad[2] else None
        return grad @ rounded, grad_weight, grad_bias, None, None


class RoundedLinear(torch.nn.Linear):
    """A linear layer that multiplies by `rounded`, a copy of its weight. Made by `round_products`."""

    rounded: torch.Tensor
    wide: bool

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """The product in the type of the copy."""
        dtype = self.rounded.dtype
        bias = None if self.bias is None else self.bias.to(dtype)
        return _Product.apply(input.to(dtype), self.weight, bias, self.rounded, self.wide)


class Rounding:
    """The rounded copies of a model that learns, or of none."""

    def __init__(self, layers: list[RoundedLinear] = ()):
        self.layers = list(layers)

    @torch.no_grad()
    def refresh(self) -> None:
        """Write all copies again, after the weights have changed."""
        if self.layers:
            copies, weights = zip(*((x.rounded, x.weight) for x in self.layers), strict=True)
            torch._foreach_copy_(copies, weights)  # pyright: ignore[reportPrivateImportUsage]

    def undo(self) -> None:
        """Make the layers what they were."""
        for layer in self.layers:
            del layer.rounded
            del layer.wide
            layer.__class__ = torch.nn.Linear  # pyright: ignore[reportAttributeAccessIssue]


def round_products(model: torch.nn.Module, precision: str) -> Rounding:
    """Give the linear layers of a model on a GPU rounded copies of their weights.

    None in float32, on a CPU, and for sharded models, which FSDP gathers in bfloat16. The output head
    keeps its own, because a loss reads its weights.
    """
    first = next(model.parameters())
    if precision == "float32" or by_cache(first) or hasattr(first, "full_tensor"):
        return Rounding()
    wide = has_wide_products(first.device)
    head = model.get_output_embeddings()  # pyright: ignore[reportCallIssue]
    layers = [x for x in model.modules() if type(x) is torch.nn.Linear and x is not head]
    for layer in layers:
        rounded = layer.weight.detach().to(getattr(torch, precision))
        layer.register_buffer("rounded", rounded, persistent=False)
        layer.wide = wide
        layer.__class__ = RoundedLinear
    return Rounding(layers)
