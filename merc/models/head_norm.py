"""Layer norm and GELU of wide rows in one pass over them."""

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

EPSILON = 1e-5
PIECE = 2**22
"""Numbers that are worked on at a time: small enough to stay in a core's cache from one operation to the next."""


def head_norm_gelu(x_NHD: Tensor, weight_HD: Tensor, bias_HD: Tensor) -> Tensor:
    """GELU(w_h · (x − mean)/sd + b_h) over the last dimension, weight and bias of each head: (N, H, D) → (N, H, D)."""
    return cast(Tensor, _HeadNormGelu.apply(x_NHD, weight_HD, bias_HD))  # type: ignore[no-untyped-call]


class _HeadNormGelu(Function):
    """Goes through the rows piece by piece; the backward pass computes again what the forward pass did not keep."""

    @staticmethod
    def forward(ctx: Any, x_NHD: Tensor, weight_HD: Tensor, bias_HD: Tensor) -> Tensor:
        ctx.save_for_backward(x_NHD, weight_HD, bias_HD)
        out_NHD = torch.empty_like(x_NHD)
        weight_HD, bias_HD = weight_HD.to(x_NHD.dtype), bias_HD.to(x_NHD.dtype)
        for piece in _pieces(x_NHD):
            normed, _, _ = torch.native_layer_norm(x_NHD[piece], x_NHD.shape[-1:], None, None, EPSILON)
            torch.ops.aten.gelu(torch.addcmul(bias_HD, normed, weight_HD), out=out_NHD[piece])
        return out_NHD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_NHD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x_NHD, weight_HD, bias_HD = ctx.saved_tensors
        dim = x_NHD.shape[-1:]
        of_x_NHD = torch.empty_like(x_NHD)
        of_weight_HD, of_bias_HD = torch.zeros_like(weight_HD), torch.zeros_like(bias_HD)
        weight_low, bias_low = weight_HD.to(x_NHD.dtype), bias_HD.to(x_NHD.dtype)
        for piece in _pieces(x_NHD):
            normed, mean, deviation = torch.native_layer_norm(x_NHD[piece], dim, None, None, EPSILON)
            incoming = torch.ops.aten.gelu_backward(gradient_NHD[piece], torch.addcmul(bias_low, normed, weight_low))
            of_bias_HD += incoming.sum(0)
            of_weight_HD += normed.mul_(incoming).sum(0)
            of_x_NHD[piece], _, _ = torch.ops.aten.native_layer_norm_backward(
                incoming.mul_(weight_low), x_NHD[piece], dim, mean, deviation, None, None, [True, False, False]
            )
        return of_x_NHD, of_weight_HD, of_bias_HD


def _pieces(x_NHD: Tensor) -> Iterator[slice]:
    size = max(1, PIECE // x_NHD[0].numel()) if x_NHD.is_cpu else len(x_NHD)
    for start in range(0, len(x_NHD), size):
        yield slice(start, start + size)
