"""Graph attention, with and without relations: the additive attention of DiffRGCN without the difference."""

from torch import Tensor

from merc.models.graphs.neighbourhood import RelationGraph
from merc.models.graphs.relational import GraphAttention, GraphBlock, HeadNorm, RelationalScores


class RelationalAttention(GraphAttention):
    """Graph attention heads (Veličković et al., 2018), with a score per relation or without.

    Args:
        in_dim: width of the input rows.
        out_dim: D, width of a head's rows.
        heads: H.
        dropout: of the attention map.
        relational: whether the relation of an edge counts.
    """

    def __init__(self, in_dim: int, out_dim: int, heads: int, dropout: float, relational: bool) -> None:
        scores = RelationalScores(heads, out_dim, tables=int(relational), split=False)
        super().__init__(in_dim, out_dim, heads, scores, dropout)
        self.norm = HeadNorm(heads, out_dim)

    def forward(self, x_NI: Tensor, graph: RelationGraph, rate: float = 0.0) -> Tensor:
        """(N, in_dim) → (N, H·D), with dropout at the rate given."""
        return self.norm(self.aggregate(x_NI, graph), dropout=rate)


class RelationalGAT(GraphBlock):
    """Graph attention in the block of DiffRGCN: ReDiFu's relational one, or the plain one of AMB-DSGDN's Table 8.

    Args:
        hidden_dim: D.
        heads: attention heads of the first layer.
        dropout: of the input, the attention and between the layers.
        relational: whether the relation of an edge counts.
    """

    def __init__(self, hidden_dim: int, heads: int, dropout: float, relational: bool) -> None:
        super().__init__(
            heads=RelationalAttention(hidden_dim, hidden_dim, heads, dropout, relational),
            output=RelationalAttention(heads * hidden_dim, hidden_dim, 1, dropout, relational),
            hidden_dim=hidden_dim,
            dropout=dropout,
        )
