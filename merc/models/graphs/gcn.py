"""Graph convolution without attention: the paper's replacement for DiffRGCN in Table 5."""

import torch
from torch import Tensor, nn

from merc.models.dropout import Dropout
from merc.models.graphs.banded import receive
from merc.models.graphs.neighbourhood import RelationGraph
from merc.models.linear import Linear
from merc.models.sum_norm import SumNorm


class GCN(nn.Module):
    """LN(x + dropout(ReLU(D^(-1/2) A D^(-1/2) x W + b))) (Kipf and Welling, 2017), with a residual connection.

    Args:
        hidden_dim: D.
        dropout: of the input and the output.
    """

    def __init__(self, hidden_dim: int, dropout: float) -> None:
        super().__init__()
        self.linear = Linear(hidden_dim, hidden_dim)
        self.norm = SumNorm(hidden_dim)
        self.dropout = Dropout(dropout)

    def forward(self, x_ND: Tensor, graph: RelationGraph) -> Tensor:
        """(N, D) → (N, D)."""
        hood = graph.neighbourhood
        degree_N = hood.unblock(graph.connected.sum(-1))
        scale_N = degree_N.clamp_min(1).rsqrt()
        adjacency = graph.connected * hood.blocks(scale_N)[:, :, None] * hood.windows(scale_N)[:, None, :]
        mixed_ND = receive(adjacency[:, :, None], self.linear(self.dropout(x_ND)), graph).squeeze(1)
        out_ND: Tensor = self.norm(x_ND, torch.relu(mixed_ND), self.dropout.rate)
        return out_ND
