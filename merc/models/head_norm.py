"""Layer norm, GELU and dropout of wide rows as one operation that keeps little."""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from merc.kernels import drops, native
from merc.models.precision import at_least_single

EPSILON = 1e-5


def head_norm_gelu(
    x_NHD: Tensor, weight_HD: Tensor, bias_HD: Tensor, dropout: float = 0.0, scale: float = 1.0
) -> Tensor:
    """Dropout of GELU(scale · (w_h · (x − mean)/sd + b_h)), over the last dimension: (N, H, D) → (N, H, D).

    Args:
        x_NHD: rows of H heads.
        weight_HD: w of each head.
        bias_HD: b of each head.
        dropout: probability with which an entry is dropped.
        scale: of the norm.
    """
    if native(x_NHD, weight_HD, bias_HD):
        affine = (at_least_single(weight_HD), at_least_single(bias_HD))
        return cast(Tensor, _HeadNormGelu.apply(x_NHD, *affine, scale, dropout))  # type: ignore[no-untyped-call]
    weight_HD, bias_HD = scale * weight_HD, scale * bias_HD
    normed_NHD = F.layer_norm(x_NHD, x_NHD.shape[-1:], eps=EPSILON)
    out_NHD = F.gelu(torch.addcmul(bias_HD.to(normed_NHD.dtype), normed_NHD, weight_HD.to(normed_NHD.dtype)))
    return F.dropout(out_NHD, dropout) if dropout else out_NHD


class _HeadNormGelu(Function):
    @staticmethod
    def forward(ctx: Any, x_NHD: Tensor, weight_HD: Tensor, bias_HD: Tensor, scale: float, dropout: float) -> Tensor:
        ctx.rest = scale, *drops(dropout)
        inputs = (x_NHD, weight_HD, bias_HD)
        out_NHD, moments_NH2 = torch.ops.merc.head_norm_gelu(*inputs, scale, EPSILON, *ctx.rest[1:])
        ctx.save_for_backward(x_NHD, moments_NH2, weight_HD, bias_HD)
        return out_NHD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_NHD: Tensor) -> tuple[Tensor | None, ...]:
        return *torch.ops.merc.head_norm_gelu_backward(gradient_NHD, *ctx.saved_tensors, *ctx.rest), None, None
