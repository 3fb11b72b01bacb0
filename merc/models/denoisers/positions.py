"""Sine-cosine positions."""

import math

import torch
from torch import Tensor, nn


def sinusoids(length: int, dim: int) -> Tensor:
    """(length, dim) table: sine on even channels, cosine on odd ones, base 10000 (AMB-DSGDN Eq. 2)."""
    positions_L1 = torch.arange(length, dtype=torch.float32)[:, None]
    frequencies = torch.exp(torch.arange(0, dim, 2, dtype=torch.float32) * (-math.log(10000.0) / dim))
    angles = positions_L1 * frequencies
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :dim]


class SinusoidalPositions(nn.Module):
    """Positions of utterances in their dialogue, of any length.

    Args:
        dim: width of the vectors.
    """

    table: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.register_buffer("table", sinusoids(128, dim), persistent=False)

    def forward(self, positions_N: Tensor, longest: int) -> Tensor:
        """(N,) positions in dialogues of at most ``longest`` utterances → (N, D)."""
        if longest > self.table.shape[0]:
            self.table = sinusoids(2 * longest, self.dim).to(self.table)
        return self.table.index_select(0, positions_N)
