"""A linear map behind GELU and dropout, the second half of a feed-forward network."""

from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from merc.kernels import drops, native
from merc.models.dropout import Dropout
from merc.models.linear import Engine, Linear, engine_of, is_half, linear, ready_to_multiply

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
        ours = engine_of(x_NI, weight_OI) is Engine.MERC
        return cast(Tensor, torch.ops.merc.gelu_linear(*operands, *settings, ours, is_half(x_NI, weight_OI)))
    hidden_NI = F.gelu(x_NI, approximate=approximate)
    if gain != 1:
        hidden_NI = gain * hidden_NI
    return linear(F.dropout(hidden_NI, dropout) if dropout else hidden_NI, weight_OI, bias_O)
