"""ReDiFu's fusion: each modality attends to the utterances of the others (arXiv:2603.25752)."""

from collections.abc import Sequence
from functools import reduce
from itertools import pairwise

import torch
from torch import Tensor, nn

from merc.data.conversation import ConversationBatch
from merc.models.attention import attend
from merc.models.dropout import Dropout, add_dropped
from merc.models.gelu_linear import GeluLinear
from merc.models.linear import Linear, linear
from merc.models.precision import interpolate
from merc.models.stages import Rows, head_width


class CrossAttention(nn.Module):
    """Multi-head attention from one modality to another, among the rows of a dialogue.

    Args:
        hidden_dim: D, a multiple of ``heads``.
        heads: attention heads.
        dropout: of the attention map and the output.
    """

    def __init__(self, hidden_dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.width = head_width(hidden_dim, heads)
        self.query_key_value = Linear(hidden_dim, 3 * hidden_dim, bias=False)
        self.output = Linear(hidden_dim, hidden_dim)
        self.dropout = Dropout(dropout)

    def forward(self, x_ND: Tensor, other_ND: Tensor, batch: ConversationBatch) -> Tensor:
        """Queries from (N, D) rows, keys and values from (N, D) rows of the other modality → (N, D)."""
        query_weight, key_value_weight = self.query_key_value.weight.split([x_ND.shape[1], 2 * x_ND.shape[1]])
        query = linear(x_ND, query_weight).unflatten(-1, (self.heads, self.width))
        key, value = linear(other_ND, key_value_weight).unflatten(-1, (2, self.heads, self.width)).unbind(1)
        attended_NHV = attend(query, key, value, batch, self.dropout.rate, scale=self.width**-0.5, to_padding=True)
        out_ND: Tensor = self.dropout(self.output(attended_NHV.flatten(1)))
        return out_ND


class ModalityFusion(nn.Module):
    """What one modality takes from the others: attention, a gate, a deep feed-forward network.

    Args:
        hidden_dim: D.
        heads: attention heads.
        dropout: of the attention and the feed-forward network.
    """

    def __init__(self, hidden_dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = CrossAttention(hidden_dim, heads, dropout)
        self.gate = Linear(2 * hidden_dim, hidden_dim)
        widths = [4 * hidden_dim, 4 * hidden_dim, 4 * hidden_dim, hidden_dim]
        further = [GeluLinear(inputs, outputs, dropout) for inputs, outputs in pairwise(widths)]
        self.feed_forward = nn.Sequential(Linear(hidden_dim, widths[0]), *further)
        self.dropout = Dropout(dropout)

    def forward(self, x_ND: Tensor, normed_ND: Tensor, others: Sequence[Tensor], batch: ConversationBatch) -> Tensor:
        """(N, D) rows, the same normed, and the normed rows of the other modalities → (N, D)."""
        taken_ND = reduce(torch.add, [self.attention(normed_ND, other_ND, batch) for other_ND in others])
        # W [x; taken] + b, in two products: the rows are never side by side.
        of_x, of_taken = self.gate.weight.split(x_ND.shape[1], dim=1)
        gate_ND = (linear(x_ND, of_x) + linear(taken_ND, of_taken, self.gate.bias)).sigmoid()
        return add_dropped(x_ND, self.feed_forward(interpolate(taken_ND, x_ND, gate_ND)), self.dropout.rate)


class MutualAttention(nn.Module):
    """Every modality attends to every other one, with weights of its own (ReDiFu as released).

    Args:
        modalities: their order; with a single one there is nothing to attend to, and its rows pass unchanged.
        hidden_dim: D.
        heads: attention heads.
        dropout: of the attention and the feed-forward networks.
        output_residual: add the rows before fusion once more to those behind it.
    """

    def __init__(
        self, modalities: Sequence[str], hidden_dim: int, heads: int, dropout: float, output_residual: bool
    ) -> None:
        super().__init__()
        names = modalities if len(modalities) > 1 else ()
        self.output_residual = output_residual
        self.norms = nn.ModuleDict({m: nn.LayerNorm(hidden_dim) for m in names})
        self.fusions = nn.ModuleDict({m: ModalityFusion(hidden_dim, heads, dropout) for m in names})

    def forward(self, rows: Rows, batch: ConversationBatch) -> dict[str, Tensor]:
        """Modality → (N, D), to the same."""
        if not self.fusions:
            return dict(rows)
        normed = {m: norm(rows[m]) for m, norm in self.norms.items()}
        fused = {
            m: fusion(rows[m], normed[m], [x for other, x in normed.items() if other != m], batch)
            for m, fusion in self.fusions.items()
        }
        return {m: x_ND + rows[m] for m, x_ND in fused.items()} if self.output_residual else fused
