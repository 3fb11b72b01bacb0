"""Layer norm of a residual, as one operation."""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from merc.kernels import drops, native
from merc.models.dropout import add_dropped, gradients_of_sum
from merc.models.head_norm import EPSILON
from merc.models.precision import at_least_single


class SumNorm(nn.Module):
    """Layer norm of x + dropout(y), with the parameters of ``nn.LayerNorm``.

    Args:
        dim: D.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x_ND: Tensor, y_ND: Tensor, dropout: float = 0.0) -> Tensor:
        """Two (N, D) → (N, D), in the higher precision of both; ``dropout`` is that of y."""
        if not native(x_ND, y_ND, self.weight, self.bias):
            sums_ND = add_dropped(x_ND, y_ND, dropout)
            return F.layer_norm(sums_ND, self.weight.shape, self.weight, self.bias, EPSILON)
        affine = (at_least_single(self.weight), at_least_single(self.bias))
        return cast(Tensor, _SumNorm.apply(x_ND, y_ND, *affine, EPSILON, drops(dropout)))  # type: ignore[no-untyped-call]


class _SumNorm(Function):
    @staticmethod
    def forward(
        ctx: Any, x_ND: Tensor, y_ND: Tensor, weight_D: Tensor, bias_D: Tensor, epsilon: float, mask: tuple[int, int]
    ) -> Tensor:
        ctx.mask, ctx.dtypes = mask, (x_ND.dtype, y_ND.dtype)
        out_ND, sums_ND, moments_N2 = torch.ops.merc.sum_norm(x_ND, y_ND, weight_D, bias_D, epsilon, *mask)
        ctx.save_for_backward(sums_ND, moments_N2, weight_D)
        return cast(Tensor, out_ND)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_ND: Tensor) -> tuple[Tensor | None, ...]:
        of_sums_ND, *of_affine = torch.ops.merc.sum_norm_backward(gradient_ND, *ctx.saved_tensors)
        of_x_and_y = gradients_of_sum(of_sums_ND, ctx.needs_input_grad[:2], ctx.dtypes, ctx.mask)
        return *of_x_and_y, *of_affine, None, None
