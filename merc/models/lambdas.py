"""λ of differential attention, by which the second of two maps is taken away (Ye et al., arXiv:2410.05258)."""

import math
from typing import cast

import torch
from torch import Tensor

from merc.kernels import native
from merc.models.precision import at_least_single


def initial_lambda(depth: int) -> float:
    """λ_init = 0.8 − 0.6·exp(−0.3·depth), the first layer having depth 1 (AMB-DSGDN Eq. 14) or 0 (arXiv:2410.05258)."""
    return 0.8 - 0.6 * math.exp(-0.3 * depth)


def lambdas(left: Tensor, right: Tensor, initial: float) -> Tensor:
    """exp⟨l₁, r₁⟩ − exp⟨l₂, r₂⟩ + λ_init (AMB-DSGDN Eq. 13-14, arXiv:2410.05258 Eq. 2): (..., 2, C) vectors → (...)."""
    if native(left, right):
        return cast(Tensor, torch.ops.merc.lambdas(at_least_single(left), at_least_single(right), initial))
    first, second = (at_least_single(left) * right).sum(-1).exp().unbind(-1)
    return first - second + initial
