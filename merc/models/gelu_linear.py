"""A linear map behind GELU and dropout, the second half of a feed-forward network."""

from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from merc.kernels import drops, native
from merc.models.dropout import Dropout
from merc.models.linear import Linear, linear, product, ready_to_multiply

Approximation = Literal["none", "tanh"]


class GeluLinear(Linear):
    """W dropout(gain · GELU(x)) + b.

    Args:
        in_features: I, the widest rows of a model.
        out_features: O.
        dropout: probability with which an entry is dropped in training.
        approximate: of GELU, see ``nn.GELU``.
        gain: factor of GELU.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        dropout: float = 0.0,
        approximate: Approximation = "none",
        gain: float = 1.0,
    ) -> None:
        super().__init__(in_features, out_features)
        self.dropout = Dropout(dropout)
        self.approximate: Approximation = approximate
        self.gain = gain

    def forward(self, x_NI: Tensor) -> Tensor:
        """(N, I) → (N, O)."""
        return gelu_linear(x_NI, self.weight, self.bias, self.dropout.rate, self.approximate, self.gain)


def gelu_linear(
    x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor, dropout: float, approximate: Approximation, gain: float
) -> Tensor:
    """What :class:`GeluLinear` does: (N, I) → (N, O)."""
    x_NI, weight_OI, bias_O = operands = ready_to_multiply(x_NI, weight_OI, bias_O)
    if native(*operands):
        settings = (gain, approximate == "tanh", *drops(dropout))
        return cast(Tensor, _GeluLinear.apply(*operands, settings))  # type: ignore[no-untyped-call]
    hidden_NI = F.gelu(x_NI, approximate=approximate)
    if gain != 1:
        hidden_NI = gain * hidden_NI
    return linear(F.dropout(hidden_NI, dropout) if dropout else hidden_NI, weight_OI, bias_O)


class _GeluLinear(Function):
    """Keeps its input only: what enters the product is computed again."""

    @staticmethod
    def forward(ctx: Any, x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor, settings: tuple[Any, ...]) -> Tensor:
        ctx.settings = settings
        ctx.save_for_backward(x_NI, weight_OI)
        return linear(torch.ops.merc.gelu(x_NI, *settings), weight_OI, bias_O)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_out_NO: Tensor) -> tuple[Tensor | None, ...]:
        x_NI, weight_OI = ctx.saved_tensors
        of_x, of_weight, of_bias, _ = ctx.needs_input_grad
        # What is computed again for the weight is gone before there is a gradient of the input.
        of_weight_OI = None
        if of_weight:
            of_weight_OI = product(of_out_NO.T, torch.ops.merc.gelu(x_NI, *ctx.settings), weight_OI.dtype)
        of_x_NI = None
        if of_x:
            of_x_NI = product(of_out_NO, weight_OI, x_NI.dtype).contiguous()
            torch.ops.merc.gelu_backward(of_x_NI, x_NI, *ctx.settings)
        return of_x_NI, of_weight_OI, torch.ops.merc.column_sums(of_out_NO) if of_bias else None, None
