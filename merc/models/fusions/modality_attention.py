"""Attention among the modalities of one utterance."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from merc.data.conversation import ConversationBatch
from merc.models.stages import Rows, head_width


class ModalityAttention(nn.Module):
    """Each modality of an utterance attends to all its modalities, with a residual and a layer norm.

    The self-attention block of Vaswani et al. (2017, arXiv:1706.03762) over modalities in place of positions.

    Args:
        modalities: their order.
        hidden_dim: D, a multiple of ``heads``.
        heads: attention heads.
        dropout: of the attention map.

    Raises:
        MercError: ``heads`` does not divide ``hidden_dim``.
    """

    def __init__(self, modalities: Sequence[str], hidden_dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        head_width(hidden_dim, heads)
        self.modalities = tuple(modalities)
        self.attention = nn.MultiheadAttention(hidden_dim, heads, dropout, batch_first=True)
        self.norm = nn.LayerNorm(hidden_dim)

    def forward(self, rows: Rows, batch: ConversationBatch) -> dict[str, Tensor]:
        """Modality → (N, D), to the same."""
        x_NMD = torch.stack([rows[modality] for modality in self.modalities], dim=1)
        attended_NMD, _ = self.attention(x_NMD, x_NMD, x_NMD, need_weights=False)
        return dict(zip(self.modalities, self.norm(x_NMD + attended_NMD).unbind(1), strict=True))
