"""Layer norm and GELU of wide rows as one operation that keeps little."""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from merc.models.plain import plain_form

EPSILON = 1e-5


def head_norm_gelu(x_NHD: Tensor, weight_HD: Tensor, bias_HD: Tensor) -> Tensor:
    """GELU(w_h · (x − mean)/sd + b_h) over the last dimension, weight and bias of each head: (N, H, D) → (N, H, D)."""
    if plain_form():
        return F.gelu(_affine(F.layer_norm(x_NHD, x_NHD.shape[-1:], eps=EPSILON), weight_HD, bias_HD))
    return cast(Tensor, _HeadNormGelu.apply(x_NHD, weight_HD, bias_HD))  # type: ignore[no-untyped-call]


class _HeadNormGelu(Function):
    """Keeps the normed rows alone; everything else is computed again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, x_NHD: Tensor, weight_HD: Tensor, bias_HD: Tensor) -> Tensor:
        normed_NHD, _, scale_NH1 = torch.native_layer_norm(x_NHD, x_NHD.shape[-1:], None, None, EPSILON)
        ctx.save_for_backward(normed_NHD, scale_NH1, weight_HD, bias_HD)
        return F.gelu(_affine(normed_NHD, weight_HD, bias_HD))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_NHD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        normed_NHD, scale_NH1, weight_HD, bias_HD = ctx.saved_tensors
        incoming_NHD = torch.ops.aten.gelu_backward(gradient_NHD, _affine(normed_NHD, weight_HD, bias_HD))
        of_bias_HD = incoming_NHD.sum(0).to(bias_HD.dtype)
        of_weight_HD = (normed_NHD * incoming_NHD).sum(0).to(weight_HD.dtype)
        # Rows that are normed have mean 0 and deviation 1; the scale of the original ones comes in behind.
        of_x_NHD, _, _ = torch.ops.aten.native_layer_norm_backward(
            incoming_NHD.mul_(weight_HD.to(incoming_NHD.dtype)),
            normed_NHD,
            normed_NHD.shape[-1:],
            torch.zeros_like(scale_NH1),
            torch.ones_like(scale_NH1),
            None,
            None,
            [True, False, False],
        )
        return of_x_NHD.mul_(scale_NH1.to(of_x_NHD.dtype)), of_weight_HD, of_bias_HD


def _affine(normed_NHD: Tensor, weight_HD: Tensor, bias_HD: Tensor) -> Tensor:
    return torch.addcmul(bias_HD.to(normed_NHD.dtype), normed_NHD, weight_HD.to(normed_NHD.dtype))
