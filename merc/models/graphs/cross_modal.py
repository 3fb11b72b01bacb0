"""Edges between modalities: an utterance's modalities exchange information, and with neighbouring utterances'."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from merc.data.conversation import ConversationBatch
from merc.models.dropout import Dropout
from merc.models.gelu_linear import GeluLinear
from merc.models.graphs.neighbourhood import Neighbourhood, window_mask
from merc.models.graphs.relational import xavier
from merc.models.linear import Linear
from merc.models.stages import Rows

DIRECTIONS = 3  # past, same utterance, future


class CrossModalGraph(nn.Module):
    """Additive attention over the other modalities of the same and the neighbouring utterances (ReDiFu, abstract).

    x_m ← LN(x_m + W dropout(GELU(Σ_{o ≠ m, j} α_{ij}^{mo} z_j^o))), the attention being a softmax over all other
    modalities o and utterances j of LeakyReLU(⟨a_m, z_i^m⟩ + ⟨b_o, z_j^o⟩ + r_{mo}^{direction of j from i}).

    Args:
        modalities: their order; with a single one there are no edges, and its rows pass unchanged.
        hidden_dim: D.
        dropout: of the attention and behind it.
        past: utterances before that an utterance receives from.
        future: utterances after.
    """

    def __init__(self, modalities: Sequence[str], hidden_dim: int, dropout: float, past: int, future: int) -> None:
        super().__init__()
        self.modalities = tuple(modalities) if len(modalities) > 1 else ()
        self.past = past
        self.future = future
        count = len(self.modalities)
        self.projections = nn.ModuleDict({m: Linear(hidden_dim, hidden_dim, bias=False) for m in self.modalities})
        self.receiver = nn.Parameter(xavier(count, hidden_dim, fan=hidden_dim + 1))
        self.source = nn.Parameter(xavier(count, hidden_dim, fan=hidden_dim + 1))
        self.direction = nn.Parameter(torch.zeros(count, count, DIRECTIONS))
        self.outputs = nn.ModuleDict({m: GeluLinear(hidden_dim, hidden_dim, dropout) for m in self.modalities})
        self.norms = nn.ModuleDict({m: nn.LayerNorm(hidden_dim) for m in self.modalities})
        self.dropout = Dropout(dropout)

    def forward(self, rows: Rows, batch: ConversationBatch) -> dict[str, Tensor]:
        """Modality → (N, D), to the same."""
        if not self.modalities:
            return dict(rows)
        hood = Neighbourhood.of(batch, self.past, self.future)
        inside = window_mask(batch, hood)
        z = {m: projection(rows[m]) for m, projection in self.projections.items()}
        values = {m: hood.windows(z_ND) for m, z_ND in z.items()}
        right = {m: hood.windows(z[m] @ self.source[i, :, None]) for i, m in enumerate(self.modalities)}
        direction = (hood.distance(batch.device).sign() + 1).expand_as(inside)
        updated = dict(rows)
        for i, m in enumerate(self.modalities):
            others = [(j, o) for j, o in enumerate(self.modalities) if o != m]
            left = hood.blocks(z[m] @ self.receiver[i])[:, :, None]
            scores = torch.cat(
                [left + right[o].transpose(1, 2) + self.direction[i, j][direction] for j, o in others],
                dim=-1,
            )
            absent = ~inside.repeat(1, 1, len(others))
            attention = F.leaky_relu(scores, 0.2).masked_fill(absent, torch.finfo(scores.dtype).min).softmax(-1)
            received = hood.unblock(self.dropout(attention) @ torch.cat([values[o] for _, o in others], dim=1))
            updated[m] = self.norms[m](rows[m] + self.outputs[m](received))
        return updated
