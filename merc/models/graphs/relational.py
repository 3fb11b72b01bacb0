"""What the relational graph layers have in common: additive scores per relation, and the block around the layers."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from merc.models.graphs.neighbourhood import Relation, RelationGraph

RELATION_DIM = 10
GAIN = 1.414


def xavier(*shape: int, fan: int) -> Tensor:
    """Values drawn Xavier-uniform with gain 1.414, ``fan`` being fan-in plus fan-out."""
    bound = GAIN * math.sqrt(6.0 / fan)
    return torch.empty(*shape).uniform_(-bound, bound)


class RelationalScores(nn.Module):
    """Additive attention maps over a relation graph (AMB-DSGDN Eq. 10-12).

    score_ij = LeakyReLU(⟨a_left, z_i⟩ + ⟨a_right, z_j⟩ + ⟨a_rel, R[relation_ij]⟩), softmax over the sources j. The last
    term is one number per relation: no relation vector per edge is ever made.

    Args:
        maps: M, maps computed side by side, each with its own vectors.
        dim: width of the rows that each map scores.
        tables: number of relation tables R (6 × 10); map i reads table i·tables/M. 0: relations do not matter.
        split: draw a_left, a_right and a_rel as separate layers; False: as one layer on all three inputs.
    """

    def __init__(self, maps: int, dim: int, tables: int, split: bool) -> None:
        super().__init__()
        self.parts = (dim, dim, RELATION_DIM) if tables else (dim, dim)
        drawn = self.parts if split else (sum(self.parts),)
        self.vector = nn.Parameter(torch.cat([xavier(maps, part, fan=part + 1) for part in drawn], dim=1))
        self.relation_table = nn.Parameter(torch.randn(tables, len(Relation), RELATION_DIM)) if tables else None

    def forward(self, z_NMD: Tensor, graph: RelationGraph) -> Tensor:
        """(N, M, D) rows of each map → (M, G, S, K) attention; 0 where there is no edge."""
        hood = graph.neighbourhood
        left_MD, right_MD, *relation = self.vector.split(self.parts, dim=1)
        left = hood.blocks((z_NMD * left_MD).sum(-1)).permute(2, 0, 1)[..., None]
        right = hood.windows((z_NMD * right_MD).sum(-1)).permute(2, 0, 1)[:, :, None, :]
        scores = left + right
        if self.relation_table is not None:
            scores = scores + self._relation_scores(self.relation_table, relation[0], graph)
        scores = F.leaky_relu(scores, 0.2).masked_fill(~graph.connected, torch.finfo(scores.dtype).min)
        attention = scores.softmax(-1)
        # Only where a row has no edge at all does the softmax leave anything there.
        return attention * graph.connected if graph.has_isolated_rows else attention

    @staticmethod
    def _relation_scores(tables: Tensor, vectors_MR: Tensor, graph: RelationGraph) -> Tensor:
        """(M, G, S, K): the score of each candidate's relation."""
        of_maps = tables.repeat_interleave(len(vectors_MR) // len(tables), 0)
        per_relation_M6 = (of_maps @ vectors_MR[..., None]).squeeze(-1)
        return (graph.one_hot.flatten(0, 2) @ per_relation_M6.T).T.unflatten(1, graph.relations.shape)


def aggregate(attention: Tensor, values_NHD: Tensor, graph: RelationGraph) -> Tensor:
    """Sum of the sources' values: (H, G, S, K) attention and (N, H, D) values → (N, H, D).

    A row of padding has no edge; a softmax over none is uniform, so it receives the mean of its dialogue's rows.
    """
    hood = graph.neighbourhood
    heads = [
        hood.unblock(torch.bmm(attention_GSK, hood.windows(values_ND)))
        for attention_GSK, values_ND in zip(attention, values_NHD.unbind(1), strict=True)
    ]
    sums_NHD = torch.stack(heads, dim=1)
    batch = graph.batch
    if batch.present is None:
        return sums_NHD
    means_NHD = batch.pad(values_NHD).mean(1)[batch.dialogues]
    return torch.where(batch.present[:, None, None], sums_NHD, means_NHD)


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

    def forward(self, x_NHD: Tensor) -> Tensor:
        """(N, H, D) → (N, H, D)."""
        return F.layer_norm(x_NHD, x_NHD.shape[-1:], eps=1e-5) * self.weight + self.bias


class GraphBlock(nn.Module):
    """Attention heads, an output layer, a linear map, a residual and a layer norm (AMB-DSGDN Sec. 4.5).

    Args:
        heads: layer called with (N, D) rows and a graph, returning (N, H, D).
        output: layer called with (N, H·D) rows and a graph, returning (N, 1, D).
        hidden_dim: D.
        dropout: of the input and between the two layers.
        activations: applied in order behind the output layer.
    """

    def __init__(
        self,
        heads: nn.Module,
        output: nn.Module,
        hidden_dim: int,
        dropout: float,
        activations: Sequence[nn.Module] = (),
    ) -> None:
        super().__init__()
        self.heads = heads
        self.output = output
        self.activation = nn.Sequential(*activations)
        self.linear = nn.Linear(hidden_dim, hidden_dim)
        self.norm = nn.LayerNorm(hidden_dim, eps=1e-5)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_ND: Tensor, graph: RelationGraph) -> Tensor:
        """(N, D) → (N, D)."""
        heads_NHD = self.heads(self.dropout(x_ND), graph)
        output_ND = self.output(self.dropout(heads_NHD.flatten(1)), graph).squeeze(1)
        out_ND: Tensor = self.norm(self.linear(self.activation(output_ND)) + x_ND)
        return out_ND
