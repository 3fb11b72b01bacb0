"""The Transformer encoder of AMB-DSGDN (Sec. 4.2)."""

from collections.abc import Iterable

from torch import Tensor, nn

from merc.data.conversation import ConversationBatch
from merc.models.attention import attend, attention_weights
from merc.models.denoisers.positions import SinusoidalPositions
from merc.models.dropout import Dropout, add_dropped
from merc.models.gelu_linear import GeluLinear
from merc.models.linear import Linear
from merc.models.stages import head_width


class DialogueAttention(nn.Module):
    """Multi-head self-attention among the utterances of each dialogue (AMB-DSGDN Eq. 4).

    Args:
        hidden_dim: D, a multiple of ``heads``.
        heads: attention heads.
        dropout: of the attention map.
        window: utterances before and after that an utterance attends to; None: its whole dialogue.
    """

    def __init__(self, hidden_dim: int, heads: int, dropout: float, window: int | None = None) -> None:
        super().__init__()
        self.head_width = head_width(hidden_dim, heads)
        self.scale = self.head_width**-0.5
        self.dropout = Dropout(dropout)
        self.window = window
        self.query_key_value = Linear(hidden_dim, 3 * hidden_dim)
        self.output = Linear(hidden_dim, hidden_dim)

    def forward(self, x_ND: Tensor, batch: ConversationBatch) -> Tensor:
        """(N, D) → (N, D)."""
        attended_NHV = attend(*self._heads(x_ND), batch, self.dropout.rate, scale=self.scale, window=self.window)
        out_ND: Tensor = self.output(attended_NHV.flatten(1))
        return out_ND

    def attention_maps(self, x_ND: Tensor, batch: ConversationBatch) -> Tensor:
        """(N, D) → (N, H, N): how much each row receives from each; for inspection."""
        query_NHV, key_NHV, _ = self._heads(x_ND)
        return attention_weights(query_NHV, key_NHV, batch, scale=self.scale, window=self.window)

    def _heads(self, x_ND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(N, D) → queries, keys and values, (N, H, V) each."""
        query, key, value = self.query_key_value(x_ND).unflatten(-1, (3, -1, self.head_width)).unbind(1)
        return query, key, value


class TransformerLayer(nn.Module):
    """Self-attention and a position-wise feed-forward network, each with a residual (AMB-DSGDN Eq. 4-5).

    Args:
        attention: called with (N, D) rows and the batch, returns (N, D).
        hidden_dim: D, also the width of the feed-forward network.
        dropout: behind attention, inside the feed-forward network and behind it.
        normalize_input: layer norm before attention. The method's first layer goes without, yet its published
            parameter counts include the unused norm; it is kept, frozen, so that counts and checkpoints agree.
    """

    def __init__(self, attention: nn.Module, hidden_dim: int, dropout: float, normalize_input: bool) -> None:
        super().__init__()
        self.normalize_input = normalize_input
        self.attention_norm = nn.LayerNorm(hidden_dim, eps=1e-6).requires_grad_(normalize_input)
        self.attention = attention
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(hidden_dim, eps=1e-6),
            Linear(hidden_dim, hidden_dim),
            GeluLinear(hidden_dim, hidden_dim, dropout, approximate="tanh"),
        )
        self.dropout = Dropout(dropout)

    def forward(self, x_ND: Tensor, batch: ConversationBatch) -> Tensor:
        """(N, D) → (N, D)."""
        normed_ND = self.attention_norm(x_ND) if self.normalize_input else x_ND
        x_ND = add_dropped(x_ND, self.attention(normed_ND, batch), self.dropout.rate)
        return add_dropped(x_ND, self.feed_forward(x_ND), self.dropout.rate)


class PositionedLayers(nn.Module):
    """Positions and speakers added to the rows, then layers (AMB-DSGDN Eq. 2-3).

    Args:
        hidden_dim: D.
        dropout: of the input.
        layers: called with (N, D) rows and the batch, return (N, D).
    """

    def __init__(self, hidden_dim: int, dropout: float, layers: Iterable[nn.Module]) -> None:
        super().__init__()
        self.positions = SinusoidalPositions(hidden_dim)
        self.dropout = Dropout(dropout)
        self.layers = nn.ModuleList(layers)

    def forward(self, x_ND: Tensor, speaker_ND: Tensor, batch: ConversationBatch) -> Tensor:
        """(N, D) rows and (N, D) speaker vectors → (N, D)."""
        x_ND = self.dropout(x_ND + self.positions(batch.positions, batch.longest) + speaker_ND)
        for layer in self.layers:
            x_ND = layer(x_ND, batch)
        return x_ND


class TransformerDenoiser(PositionedLayers):
    """Positions and speakers added to the rows, then Transformer layers (AMB-DSGDN Eq. 2-6).

    Args:
        hidden_dim: D.
        heads: attention heads.
        layers: Transformer layers.
        dropout: of the input, the attention maps and the feed-forward networks.
        window: utterances before and after that an utterance attends to; None: its whole dialogue.

    Raises:
        MercError: ``heads`` does not divide ``hidden_dim``.
    """

    def __init__(self, hidden_dim: int, heads: int, layers: int, dropout: float, window: int | None = None) -> None:
        blocks = [
            TransformerLayer(DialogueAttention(hidden_dim, heads, dropout, window), hidden_dim, dropout, i > 0)
            for i in range(layers)
        ]
        super().__init__(hidden_dim, dropout, blocks)
