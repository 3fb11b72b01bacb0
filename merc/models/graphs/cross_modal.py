"""Edges between modalities: an utterance's modalities exchange information, and with neighbouring utterances'."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from merc.data.conversation import ConversationBatch
from merc.models.dropout import Dropout
from merc.models.gelu_linear import GeluLinear
from merc.models.graphs.banded import SLOPE, ends, mix
from merc.models.graphs.neighbourhood import Neighbourhood, window_mask
from merc.models.graphs.relational import xavier
from merc.models.linear import Linear
from merc.models.stages import Rows
from merc.models.sum_norm import SumNorm

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
        future: utterances after; none of a causal batch.
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
        self.norms = nn.ModuleDict({m: SumNorm(hidden_dim) for m in self.modalities})
        self.dropout = Dropout(dropout)

    def forward(self, rows: Rows, batch: ConversationBatch) -> dict[str, Tensor]:
        """Modality → (N, D), to the same."""
        if not self.modalities:
            return dict(rows)
        hood = Neighbourhood.of(batch, self.past, self.future)
        z_NMD = torch.stack([projection(rows[m]) for m, projection in self.projections.items()], dim=1)
        ends_NM2 = ends(z_NMD, torch.stack([self.receiver, self.source], dim=1))
        attention = self.dropout(self._attention(ends_NM2, window_mask(batch, hood), hood))
        received = zip(self.modalities, _receive(attention, z_NMD, hood).unbind(1), strict=True)
        mixed = {m: self.norms[m](rows[m], self.outputs[m](x_ND)) for m, x_ND in received}
        return {**rows, **mixed}

    def _attention(self, ends_NM2: Tensor, inside: Tensor, hood: Neighbourhood) -> Tensor:
        """(G, S, M, K, M): what each modality of a row receives from each modality of its candidates."""
        left_GSM, right_GKM = hood.blocks(ends_NM2[..., 0]), hood.windows(ends_NM2[..., 1])
        way_SK = hood.distance(inside.device).sign() + 1
        of_way = self.direction[:, :, way_SK].permute(2, 0, 3, 1)
        scores = F.leaky_relu(left_GSM[..., None, None] + right_GKM[:, None, None] + of_way, SLOPE)
        others_MM = ~torch.eye(len(self.modalities), dtype=torch.bool, device=inside.device)
        absent = ~(inside[:, :, None, :, None] & others_MM[:, None])
        scores = scores.masked_fill(absent, torch.finfo(scores.dtype).min)
        # A row of padding has no edges; a softmax over none is uniform.
        return scores.flatten(3).softmax(-1).view_as(scores).masked_fill(absent, 0)


def _receive(attention: Tensor, z_NMD: Tensor, hood: Neighbourhood) -> Tensor:
    """Sum of the sources' rows: (G, S, M, K, M) attention and (N, M, D) rows → (N, M, D).

    It is a sum over a band whose rows are the modalities of one utterance after those of the other.
    """
    count = z_NMD.shape[1]
    beyond = count - 1  # the first modality of an utterance receives from the last one of the furthest, and vice versa
    past, future = (count * reach + beyond for reach in (hood.past, hood.future))
    every = Neighbourhood(count * hood.rows, past, future, count * hood.size)
    band = F.pad(attention.flatten(1, 2).flatten(2), (beyond, beyond))
    return mix(band[:, :, None], z_NMD.flatten(0, 1), every).view_as(z_NMD)
