"""Layer norm of a residual, as one operation."""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from merc.kernels import drops, native
from merc.models.dropout import add_dropped
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
        return cast(Tensor, torch.ops.merc.sum_norm(x_ND, y_ND, *affine, EPSILON, *drops(dropout)))
