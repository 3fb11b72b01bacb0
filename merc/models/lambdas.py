"""λ of differential attention, by which the second of two maps is taken away (Ye et al., arXiv:2410.05258)."""

import math
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from merc.kernels import native
from merc.models.precision import at_least_single


def initial_lambda(depth: int) -> float:
    """λ_init = 0.8 − 0.6·exp(−0.3·depth), the first layer having depth 1 (AMB-DSGDN Eq. 14) or 0 (arXiv:2410.05258)."""
    return 0.8 - 0.6 * math.exp(-0.3 * depth)


def lambdas(left: Tensor, right: Tensor, initial: float) -> Tensor:
    """exp⟨l₁, r₁⟩ − exp⟨l₂, r₂⟩ + λ_init (AMB-DSGDN Eq. 13-14, arXiv:2410.05258 Eq. 2): (..., 2, C) vectors → (...)."""
    if native(left, right):
        return cast(Tensor, _Lambdas.apply(at_least_single(left), at_least_single(right), initial))  # type: ignore[no-untyped-call]
    first, second = (at_least_single(left) * right).sum(-1).exp().unbind(-1)
    return first - second + initial


class _Lambdas(Function):
    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor, initial: float) -> Tensor:
        ctx.save_for_backward(left, right)
        return cast(Tensor, torch.ops.merc.lambdas(left, right, initial))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_out: Tensor) -> tuple[Tensor | None, ...]:
        return *torch.ops.merc.lambdas_backward(of_out, *ctx.saved_tensors), None
