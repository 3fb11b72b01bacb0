"""Differential relational graph attention, DiffRGCN (AMB-DSGDN Sec. 4.5)."""

import torch
from torch import Tensor, nn

from merc.errors import MercError
from merc.models.dropout import dropout
from merc.models.graphs.neighbourhood import RelationGraph
from merc.models.graphs.relational import GraphAttention, GraphBlock, HeadNorm, RelationalScores
from merc.models.lambdas import initial_lambda, lambdas


class DifferentialAttention(GraphAttention):
    """Heads whose attention is the difference of two maps, one per half of the channels (AMB-DSGDN Alg. 1, Eq. 9-17).

    Args:
        in_dim: width of the input rows.
        out_dim: D, width of a head's rows; even.
        heads: H.
        dropout: of the attention difference.
        depth: layer depth in λ_init.
        normalize: layer norm, factor 1 − λ_init and GELU behind the aggregation, as released; Eq. 17 has none.
    """

    def __init__(self, in_dim: int, out_dim: int, heads: int, dropout: float, depth: int, normalize: bool) -> None:
        if out_dim % 2:
            raise MercError(f"Differential attention needs an even hidden_dim, not {out_dim}.")
        scores = RelationalScores(2 * heads, out_dim // 2, tables=heads, split=True)
        super().__init__(in_dim, out_dim, heads, scores, dropout)
        self.lambda_init = initial_lambda(depth)
        # Standard deviation 0.1: with the paper's variance of 0.1, λ would start anywhere in ±10.
        self.lambda_left = nn.Parameter(0.1 * torch.randn(heads, 2, out_dim // 2))
        self.lambda_right = nn.Parameter(0.1 * torch.randn(heads, 2, out_dim // 2))
        self.norm = HeadNorm(heads, out_dim) if normalize else None

    def coefficients(self) -> Tensor:
        """(H,) λ_full, the share of the negative map that is taken away (Eq. 13-14)."""
        return lambdas(self.lambda_left, self.lambda_right, self.lambda_init)

    def forward(self, x_NI: Tensor, graph: RelationGraph, rate: float = 0.0) -> Tensor:
        """(N, in_dim) → (N, H·D), with dropout at the rate given."""
        out_NF = self.aggregate(x_NI, graph)
        if self.norm is None:
            return dropout(out_NF, rate) if rate else out_NF
        return self.norm(out_NF, 1 - self.lambda_init, rate)


class DiffRGCN(GraphBlock):
    """The differential relational graph convolution of one modality and subgraph (AMB-DSGDN Sec. 4.5).

    Args:
        hidden_dim: D.
        heads: attention heads of the first layer.
        dropout: of the input, the attention and between the layers.
        output_depth: layer depth of the output layer in λ_init; the heads have depth 1.
        normalize: see :class:`DifferentialAttention`; the output layer is followed by a second GELU then.
    """

    def __init__(self, hidden_dim: int, heads: int, dropout: float, output_depth: int, normalize: bool) -> None:
        super().__init__(
            heads=DifferentialAttention(hidden_dim, hidden_dim, heads, dropout, 1, normalize),
            output=DifferentialAttention(heads * hidden_dim, hidden_dim, 1, dropout, output_depth, normalize),
            hidden_dim=hidden_dim,
            dropout=dropout,
            gelu=normalize,
        )
