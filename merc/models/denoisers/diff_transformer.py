"""The Differential Transformer as a denoiser (Ye et al., ICLR 2025, arXiv:2410.05258)."""

import torch
from torch import Tensor, nn

from merc.data.conversation import ConversationBatch
from merc.errors import MercError
from merc.models.attention import attend, attention_weights
from merc.models.denoisers.transformer import PositionedLayers, TransformerLayer
from merc.models.difference_norm import difference_norm
from merc.models.dropout import Dropout
from merc.models.lambdas import initial_lambda, lambdas
from merc.models.linear import Linear
from merc.models.precision import at_least_single

EPSILON = 1e-5


class DiffAttention(nn.Module):
    """Heads whose attention is the difference of two maps with projections of their own, among a dialogue's utterances.

    (softmax(Q₁K₁ᵀ/√d) − λ·softmax(Q₂K₂ᵀ/√d))·V, λ = exp(λ_q1·λ_k1) − exp(λ_q2·λ_k2) + λ_init, one λ for all heads; each
    head's rows are normed and scaled by 1 − λ_init (arXiv:2410.05258, Eq. 1-3). Q and K have half the width of V.

    Args:
        hidden_dim: D, a multiple of 2·``heads``.
        heads: H.
        dropout: of both maps.
        depth: l of the layer, from 1, in λ_init = 0.8 − 0.6·exp(−0.3·(l − 1)).
        window: utterances before and after that an utterance attends to; None: its whole dialogue.

    Raises:
        MercError: 2·``heads`` does not divide ``hidden_dim``.
    """

    def __init__(self, hidden_dim: int, heads: int, dropout: float, depth: int, window: int | None = None) -> None:
        super().__init__()
        if hidden_dim % (2 * heads):
            raise MercError(
                f"hidden_dim={hidden_dim} cannot be split into heads={heads} heads of two attention maps each: "
                f"make it a multiple of {2 * heads}."
            )
        self.heads = heads
        self.dropout = Dropout(dropout)
        self.window = window
        self.lambda_init = initial_lambda(depth - 1)
        self.query_key_value = Linear(hidden_dim, 3 * hidden_dim)
        width = hidden_dim // (2 * heads)
        self.scale = width**-0.5
        self.lambda_query = nn.Parameter(0.1 * torch.randn(2, width))
        self.lambda_key = nn.Parameter(0.1 * torch.randn(2, width))
        self.norm = nn.RMSNorm(2 * width, eps=EPSILON)  # its weight: `difference_norm` norms
        self.output = Linear(hidden_dim, hidden_dim)

    def coefficient(self) -> Tensor:
        """Scalar λ, the share of the second map that is taken away."""
        return lambdas(self.lambda_query, self.lambda_key, self.lambda_init)

    def forward(self, x_ND: Tensor, batch: ConversationBatch) -> Tensor:
        """(N, D) → (N, D)."""
        query_NMQ, key_NMQ, value_NHV = self._heads(x_ND)
        # Both maps of every head in one call: maps of all heads, then the other maps of all heads.
        value_NMV = value_NHV.repeat(1, 2, 1)
        attended_NMV = attend(
            query_NMQ, key_NMQ, value_NMV, batch, self.dropout.rate, scale=self.scale, window=self.window
        )
        heads_ND = difference_norm(
            attended_NMV, self.coefficient(), self.norm.weight, EPSILON, scale=1 - self.lambda_init
        )
        out_ND: Tensor = self.output(heads_ND)
        return out_ND

    def attention_maps(self, x_ND: Tensor, batch: ConversationBatch) -> Tensor:
        """(N, D) → (N, H, N): how much each row receives from each, the difference of two maps; for inspection."""
        query_NMQ, key_NMQ, _ = self._heads(x_ND)
        maps_NMN = attention_weights(query_NMQ, key_NMQ, batch, scale=self.scale, window=self.window)
        first_NHN, second_NHN = at_least_single(maps_NMN).chunk(2, dim=1)
        return first_NHN - self.coefficient() * second_NHN

    def _heads(self, x_ND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(N, D) → queries and keys of M = 2H maps, (N, M, Q) each, and values (N, H, V)."""
        query_ND, key_ND, value_ND = self.query_key_value(x_ND).chunk(3, dim=-1)
        query_NMQ, key_NMQ = (x.unflatten(-1, (2 * self.heads, -1)) for x in (query_ND, key_ND))
        return query_NMQ, key_NMQ, value_ND.unflatten(-1, (self.heads, -1))


class DiffTransformerDenoiser(PositionedLayers):
    """Positions and speakers added to the rows, then Transformer layers with differential attention.

    All but the attention is the Transformer denoiser's, with every layer's input normed.

    Args:
        hidden_dim: D.
        heads: attention heads.
        layers: Transformer layers.
        dropout: of the input, the attention maps and the feed-forward networks.
        window: utterances before and after that an utterance attends to; None: its whole dialogue.

    Raises:
        MercError: 2·``heads`` does not divide ``hidden_dim``.
    """

    def __init__(self, hidden_dim: int, heads: int, layers: int, dropout: float, window: int | None = None) -> None:
        blocks = [
            TransformerLayer(DiffAttention(hidden_dim, heads, dropout, depth, window), hidden_dim, dropout, True)
            for depth in range(1, layers + 1)
        ]
        super().__init__(hidden_dim, dropout, blocks)
