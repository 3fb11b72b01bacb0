"""The Transformer encoder of AMB-DSGDN (Sec. 4.2)."""

import torch.nn.functional as F
from torch import Tensor, nn

from merc.data.conversation import ConversationBatch
from merc.errors import MercError
from merc.models.denoisers.positions import SinusoidalPositions


class DialogueAttention(nn.Module):
    """Multi-head self-attention among the utterances of each dialogue (AMB-DSGDN Eq. 4).

    Args:
        hidden_dim: D, a multiple of ``heads``.
        heads: attention heads.
        dropout: of the attention map.
    """

    def __init__(self, hidden_dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        if hidden_dim % heads:
            raise MercError(f"hidden_dim={hidden_dim} cannot be split into heads={heads} equal attention heads.")
        self.heads = heads
        self.dropout = dropout
        self.query_key_value = nn.Linear(hidden_dim, 3 * hidden_dim)
        self.output = nn.Linear(hidden_dim, hidden_dim)

    def forward(self, x_ND: Tensor, batch: ConversationBatch) -> Tensor:
        """(N, D) → (N, D)."""
        qkv_BLD = batch.pad(self.query_key_value(x_ND))
        query, key, value = qkv_BLD.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended_BHLD = F.scaled_dot_product_attention(
            query, key, value, attn_mask=batch.mask[:, None, None, :], dropout_p=self.dropout if self.training else 0.0
        )
        out_ND: Tensor = self.output(batch.unpad(attended_BHLD.transpose(1, 2).flatten(2)))
        return out_ND


class TransformerLayer(nn.Module):
    """Self-attention and a position-wise feed-forward network, each with a residual (AMB-DSGDN Eq. 4-5).

    Args:
        hidden_dim: D, also the width of the feed-forward network.
        heads: attention heads.
        dropout: behind attention and inside the feed-forward network.
        normalize_input: layer norm before attention. The method's first layer goes without, yet its published
            parameter counts include the unused norm; it is kept, frozen, so that counts and checkpoints agree.
    """

    def __init__(self, hidden_dim: int, heads: int, dropout: float, normalize_input: bool) -> None:
        super().__init__()
        self.normalize_input = normalize_input
        self.attention_norm = nn.LayerNorm(hidden_dim, eps=1e-6).requires_grad_(normalize_input)
        self.attention = DialogueAttention(hidden_dim, heads, dropout)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(hidden_dim, eps=1e-6),
            nn.Linear(hidden_dim, hidden_dim),
            nn.GELU(approximate="tanh"),
            nn.Dropout(dropout),
            nn.Linear(hidden_dim, hidden_dim),
            nn.Dropout(dropout),
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_ND: Tensor, batch: ConversationBatch) -> Tensor:
        """(N, D) → (N, D)."""
        normed_ND = self.attention_norm(x_ND) if self.normalize_input else x_ND
        x_ND = x_ND + self.dropout(self.attention(normed_ND, batch))
        out_ND: Tensor = x_ND + self.feed_forward(x_ND)
        return out_ND


class TransformerDenoiser(nn.Module):
    """Positions and speakers added to the rows, then Transformer layers (AMB-DSGDN Eq. 2-6).

    Args:
        hidden_dim: D.
        heads: attention heads.
        layers: Transformer layers.
        dropout: of the input, the attention maps and the feed-forward networks.
    """

    def __init__(self, hidden_dim: int, heads: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.positions = SinusoidalPositions(hidden_dim)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(TransformerLayer(hidden_dim, heads, dropout, i > 0) for i in range(layers))

    def forward(self, x_ND: Tensor, speaker_ND: Tensor, batch: ConversationBatch) -> Tensor:
        """(N, D) rows and (N, D) speaker vectors → (N, D)."""
        x_ND = self.dropout(x_ND + self.positions(batch.positions, max(batch.lengths)) + speaker_ND)
        for layer in self.layers:
            x_ND = layer(x_ND, batch)
        return x_ND
