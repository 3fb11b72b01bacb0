"""Text-guided cross-modal diffusion: ReDiFu's fusion as its abstract describes it (arXiv:2603.25752)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from merc.data.conversation import ConversationBatch
from merc.errors import MercError, nearest
from merc.models.attention import attend
from merc.models.dropout import Dropout
from merc.models.linear import Linear
from merc.models.stages import Rows, head_width


class Affinity(nn.Module):
    """The affinity of the utterances of a dialogue within one modality, applied to rows.

    A = softmax(Q Kᵀ / √d_head) of that modality; the product with the rows is formed at once, never A itself.

    Args:
        hidden_dim: D, a multiple of ``heads``.
        heads: attention heads.
        dropout: of the affinity.
    """

    def __init__(self, hidden_dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.width = head_width(hidden_dim, heads)
        self.dropout = Dropout(dropout)
        self.query_key = Linear(hidden_dim, 2 * hidden_dim)

    def forward(self, x_ND: Tensor, values_NCD: Tensor, batch: ConversationBatch) -> Tensor:
        """A(x) · values: (N, D) and C rows for each of them, (N, C, D) → (N, C, D)."""
        query, key = self.query_key(x_ND).unflatten(-1, (2, self.heads, self.width)).unbind(1)
        value = values_NCD.unflatten(-1, (self.heads, self.width)).transpose(1, 2)
        diffused = attend(query, key, value.flatten(2), batch, self.dropout.rate, scale=self.width**-0.5)
        return diffused.unflatten(-1, (-1, self.width)).transpose(1, 2).flatten(2)


class GuidedDiffusion(nn.Module):
    """Diffuses the other modalities into the guiding one, along both modalities' affinities, adaptively gated.

    g ← g + Σ_m σ(W_m [g; d_m]) ⊙ d_m with d_m = A_g (A_m V_m x_m): the row of an utterance reaches those that m finds
    alike, and from there those that the guide finds alike. A_m models the dependencies within m, A_g A_m is the
    cross-affinity of MutualFormer (Wang et al., 2024, arXiv:2112.01177). A_g, and what dropout leaves of it, is
    the same for all m. The other modalities pass unchanged.

    Args:
        modalities: their order.
        hidden_dim: D, a multiple of ``heads``.
        heads: attention heads of the affinities.
        dropout: of the affinities and of what is diffused.
        guide: the modality that receives.

    Raises:
        MercError: the data does not have the guide.
    """

    def __init__(
        self, modalities: Sequence[str], hidden_dim: int, heads: int, dropout: float, guide: str = "text"
    ) -> None:
        super().__init__()
        if guide not in modalities:
            raise MercError(
                f"fusion.module.guide={guide} is no modality of the data ({', '.join(modalities)})."
                f"{nearest(guide, modalities)} Guided diffusion needs its guide: name another, or choose fusion=none."
            )
        self.guide = guide
        others = [m for m in modalities if m != guide]
        # Without others there is nothing to diffuse, and the guide's affinity would never be used.
        self.affinities = nn.ModuleDict({m: Affinity(hidden_dim, heads, dropout) for m in modalities if others})
        self.values = nn.ModuleDict({m: Linear(hidden_dim, hidden_dim) for m in others})
        self.gates = nn.ModuleDict({m: Linear(2 * hidden_dim, hidden_dim) for m in others})
        self.dropout = Dropout(dropout)

    def forward(self, rows: Rows, batch: ConversationBatch) -> dict[str, Tensor]:
        """Modality → (N, D), to the same."""
        if not self.values:
            return dict(rows)
        received_ND = guide_ND = rows[self.guide]
        within = [self.affinities[m](rows[m], value(rows[m])[:, None], batch) for m, value in self.values.items()]
        diffused_NCD = self.affinities[self.guide](guide_ND, torch.cat(within, dim=1), batch)
        for gate, diffused_ND in zip(self.gates.values(), diffused_NCD.unbind(1), strict=True):
            gate_ND = gate(torch.cat([guide_ND, diffused_ND], dim=-1)).sigmoid()
            received_ND = torch.addcmul(received_ND, gate_ND, self.dropout(diffused_ND))
        return {**rows, self.guide: received_ND}
