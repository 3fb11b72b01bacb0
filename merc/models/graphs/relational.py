"""What the relational graph layers have in common: additive attention, and the block around the layers."""

import math

import torch
from torch import Tensor, nn

from merc.models.dropout import Dropout
from merc.models.gelu_linear import GeluLinear
from merc.models.graphs.additive import Scores, attend_neighbours
from merc.models.graphs.banded import attention_band, ends, receive
from merc.models.graphs.neighbourhood import Relation, RelationGraph
from merc.models.head_norm import head_norm_gelu
from merc.models.linear import Linear, ready_to_multiply
from merc.models.sum_norm import SumNorm

RELATION_DIM = 10
GAIN = 1.414


def xavier(*shape: int, fan: int) -> Tensor:
    """Values drawn Xavier-uniform with gain 1.414, ``fan`` being fan-in plus fan-out."""
    bound = GAIN * math.sqrt(6.0 / fan)
    return torch.empty(*shape).uniform_(-bound, bound)


class RelationalScores(nn.Module):
    """What enters the additive scores of a relation graph (AMB-DSGDN Eq. 10-12).

    score_ij = LeakyReLU(⟨a_left, z_i⟩ + ⟨a_right, z_j⟩ + ⟨a_rel, R[relation_ij]⟩). The first two terms are numbers per
    row, the last is one number per relation: no vector per edge is ever made.

    Args:
        maps: M, maps computed side by side, each with its own vectors.
        dim: width of the rows that each map scores.
        tables: number of relation tables R (6 × 10); map i reads table i·tables/M. 0: relations do not matter.
        split: draw a_left, a_right and a_rel as separate layers; False: as one layer on all three inputs.
    """

    def __init__(self, maps: int, dim: int, tables: int, split: bool) -> None:
        super().__init__()
        parts = (dim, dim, RELATION_DIM) if tables else (dim, dim)
        drawn = parts if split else (sum(parts),)
        self.vector = nn.Parameter(torch.cat([xavier(maps, part, fan=part + 1) for part in drawn], dim=1))
        self.relation_table = nn.Parameter(torch.randn(tables, len(Relation), RELATION_DIM)) if tables else None

    def forward(self) -> Scores:
        """The vectors of all maps and the tables of relations."""
        return Scores(self.vector, self.relation_table)


class GraphAttention(nn.Module):
    """Attention heads over a relation graph, with additive scores (AMB-DSGDN Eq. 9-17).

    Args:
        in_dim: I, width of the input rows.
        out_dim: D, width of a head's rows.
        heads: H.
        scores: of H maps, or of 2·H that see half of a head's channels each and are subtracted.
        dropout: of the attention.
    """

    def __init__(self, in_dim: int, out_dim: int, heads: int, scores: RelationalScores, dropout: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(xavier(heads, in_dim, out_dim, fan=in_dim + out_dim))
        self.scores = scores
        self.dropout = Dropout(dropout)

    def coefficients(self) -> Tensor | None:
        """(H,) share of each head's second map that is taken away; None: there is one map."""
        return None

    def aggregate(self, x_NI: Tensor, graph: RelationGraph) -> Tensor:
        """(N, I) → (N, H·D): every head's sum of W x_j over the sources j, weighted by its attention."""
        x_NI, weight_HID = ready_to_multiply(x_NI, self.weight)
        return attend_neighbours(x_NI, weight_HID, self.scores(), self.coefficients(), graph, self.dropout.rate)

    def attention_maps(self, x_NI: Tensor, graph: RelationGraph) -> Tensor:
        """(N, I) → (N, H, N): how much each row receives from each; for inspection."""
        scores = self.scores()
        ends_NM2 = ends(torch.einsum("ni,hid->nhd", x_NI, self.weight), scores.of_ends)
        attention = attention_band(ends_NM2, scores.relations(), self.coefficients(), graph, dropout=0.0)
        # What each receives where row j's value is unit vector j.
        return receive(attention, torch.eye(len(x_NI), device=x_NI.device), graph)


class HeadNorm(nn.Module):
    """Layer norm with a weight and a bias of its own for each head.

    Args:
        heads: H.
        dim: width of a head's rows.
    """

    def __init__(self, heads: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(heads, dim))
        self.bias = nn.Parameter(torch.zeros(heads, dim))

    def forward(self, x_NF: Tensor, scale: float = 1.0, dropout: float = 0.0) -> Tensor:
        """Dropout of GELU(scale · norm): (N, H·D) → (N, H·D)."""
        return head_norm_gelu(x_NF, self.weight, self.bias, dropout, scale)


class GraphBlock(nn.Module):
    """Attention heads, an output layer, a linear map, a residual and a layer norm (AMB-DSGDN Sec. 4.5).

    Args:
        heads: layer called with (N, D) rows, a graph and the ``rate`` of dropout of what it returns, (N, H·D).
        output: layer called with these rows and a graph, returning (N, D).
        hidden_dim: D.
        dropout: of the input and between the two layers.
        gelu: GELU behind the output layer.
    """

    def __init__(
        self,
        heads: nn.Module,
        output: nn.Module,
        hidden_dim: int,
        dropout: float,
        gelu: bool = False,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.output = output
        self.linear = GeluLinear(hidden_dim, hidden_dim) if gelu else Linear(hidden_dim, hidden_dim)
        self.norm = SumNorm(hidden_dim)
        self.dropout = Dropout(dropout)

    def forward(self, x_ND: Tensor, graph: RelationGraph) -> Tensor:
        """(N, D) → (N, D)."""
        heads_NF = self.heads(self.dropout(x_ND), graph, rate=self.dropout.rate)
        output_ND = self.output(heads_NF, graph)
        out_ND: Tensor = self.norm(x_ND, self.linear(output_ND))
        return out_ND
