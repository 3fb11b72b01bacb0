"""The difference of what two attention maps give to each head, normed, as one operation that keeps little."""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from merc.kernels import native
from merc.models.precision import at_least_single


def difference_norm(x_NMV: Tensor, coefficient: Tensor, weight_V: Tensor, epsilon: float, scale: float) -> Tensor:
    """scale · w ⊙ z/√(mean of z² + ε) with z = x₁ − λ x₂ of each head (arXiv:2410.05258, Eq. 3).

    Args:
        x_NMV: rows of M = 2H maps: the first of all heads before the second of all heads.
        coefficient: scalar λ.
        weight_V: w, the same for all heads.
        epsilon: ε.
        scale: of the norm.

    Returns:
        (N, H·V).
    """
    if native(x_NMV, coefficient, weight_V):
        settings = (at_least_single(coefficient), at_least_single(weight_V), epsilon, scale)
        return cast(Tensor, torch.ops.merc.difference_norm(x_NMV, *settings))
    first_NHV, second_NHV = at_least_single(x_NMV).chunk(2, dim=1)
    normed_NHV = F.rms_norm(first_NHV - coefficient * second_NHV, weight_V.shape, weight_V, epsilon)
    return (scale * normed_NHV).flatten(1).to(x_NMV.dtype)
