"""The differential Transformer encoder of ReDiFu (arXiv:2603.25752)."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from merc.data.conversation import ConversationBatch
from merc.errors import MercError
from merc.models.attention import attend, attention_weights
from merc.models.denoisers.positions import SinusoidalPositions
from merc.models.dropout import Dropout
from merc.models.gelu_linear import GeluLinear
from merc.models.linear import Linear
from merc.models.precision import interpolate
from merc.models.stages import head_width


class RotaryFeatures(nn.Module):
    """Rotates the channel pairs of each row by angles that grow with its position.

    Su et al. (2021), applied to the rows themselves, not to queries and keys, as ReDiFu has it.

    Args:
        dim: width of the rows; even.
    """

    frequencies: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("frequencies", rotary_frequencies(dim), persistent=False)
        # Published parameter counts and checkpoints include these; nothing ever uses them.
        self.modality_scales = nn.Parameter(torch.ones(3), requires_grad=False)

    def forward(self, x_ND: Tensor, batch: ConversationBatch) -> Tensor:
        """(N, D) → (N, D)."""
        angles = batch.positions[:, None] * self.frequencies
        even, odd = x_ND[:, 0::2], x_ND[:, 1::2]
        cosine, sine = angles.cos(), angles.sin()
        return torch.stack([even * cosine - odd * sine, even * sine + odd * cosine], dim=-1).flatten(1)


def rotary_frequencies(dim: int) -> Tensor:
    """(dim/2,) radians per position: 10000^(−2i/dim)."""
    return 10000.0 ** (-torch.arange(0, dim, 2, dtype=torch.float32) / dim)


class AddedPositions(nn.Module):
    """Sine-cosine positions, added.

    Args:
        dim: width of the rows.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.positions = SinusoidalPositions(dim)

    def forward(self, x_ND: Tensor, batch: ConversationBatch) -> Tensor:
        """(N, D) → (N, D)."""
        out_ND: Tensor = x_ND + self.positions(batch.positions, batch.longest)
        return out_ND


POSITIONS = {"rotary": RotaryFeatures, "sinusoidal": AddedPositions}


class LocalDelta(nn.Module):
    """x + α · σ(Wx) ⊙ LN(depthwise convolution of x over neighbouring utterances).

    Args:
        dim: D.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(dim, dim, kernel_size=3, padding=1, groups=dim)
        self.norm = nn.LayerNorm(dim)
        self.gate = Linear(dim, dim)
        self.alpha = nn.Parameter(torch.ones(1))

    def forward(self, x_ND: Tensor, batch: ConversationBatch) -> Tensor:
        """(N, D) → (N, D)."""
        x_BDL = batch.pad(x_ND).transpose(1, 2)
        # Causal, the kernel's three rows end at the receiving one, instead of being centred on it.
        convolved_BDL = self.convolution(F.pad(x_BDL, (1, 0)))[..., :-1] if batch.causal else self.convolution(x_BDL)
        local_ND = self.norm(batch.unpad(convolved_BDL.transpose(1, 2)))
        return torch.addcmul(x_ND, self.alpha * self.gate(x_ND).sigmoid(), local_ND)


class ContextGate(nn.Module):
    """One number per utterance that mixes the local delta into the positioned row.

    Args:
        dim: D.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(2 * dim)
        self.score = nn.Sequential(Linear(2 * dim, dim), nn.Tanh(), nn.Linear(dim, 1))

    def forward(self, positioned_ND: Tensor, delta_ND: Tensor) -> Tensor:
        """Two (N, D) → (N, D)."""
        gate_N1 = self.score(self.norm(torch.cat([positioned_ND, delta_ND], dim=-1))).sigmoid()
        return interpolate(positioned_ND, delta_ND, gate_N1)


class ShiftedDifference(nn.Module):
    """Self-attention minus self-attention to the utterance before each key.

    A_1 = softmax(q kᵀ · s), A_2 = softmax(q (k shifted by one)ᵀ · s), output λ · dropout(A_1 − A_2) · v. Before the
    first key stands the dialogue's last one.

    Args:
        hidden_dim: D, a multiple of ``heads``.
        heads: attention heads.
        dropout: of the difference of the maps.
        head_scale: s = (D/heads)^(−1/2), the width of a head; False: D^(−1/2), as released.
        window: utterances before and after that an utterance attends to; None: its whole dialogue.
    """

    def __init__(
        self, hidden_dim: int, heads: int, dropout: float, head_scale: bool, window: int | None = None
    ) -> None:
        super().__init__()
        self.heads = heads
        self.width = head_width(hidden_dim, heads)
        self.scale = (self.width if head_scale else hidden_dim) ** -0.5
        self.query_key_value = Linear(hidden_dim, 3 * hidden_dim)
        self.output = Linear(hidden_dim, hidden_dim)
        self.weight = nn.Parameter(torch.tensor(0.5))
        self.dropout = Dropout(dropout)
        self.window = window

    def forward(self, x_ND: Tensor, batch: ConversationBatch) -> Tensor:
        """(N, D) → (N, D)."""
        mixed_NHV = attend(
            *self._heads(x_ND, batch), batch, self.dropout.rate, scale=self.scale, difference=True, window=self.window
        )
        out_ND: Tensor = self.output(self.weight * mixed_NHV.flatten(1))
        return out_ND

    def attention_maps(self, x_ND: Tensor, batch: ConversationBatch) -> Tensor:
        """(N, D) → (N, H, N): how much each row receives from each, A_1 − A_2; for inspection."""
        query_NMV, key_NMV, _ = self._heads(x_ND, batch)
        return attention_weights(query_NMV, key_NMV, batch, scale=self.scale, difference=True, window=self.window)

    def _heads(self, x_ND: Tensor, batch: ConversationBatch) -> tuple[Tensor, Tensor, Tensor]:
        """(N, D) → queries and keys of M = 2H maps, (N, M, V) each, and values (N, H, V)."""
        query, key, value = self.query_key_value(x_ND).unflatten(-1, (3, self.heads, self.width)).unbind(1)
        return query.repeat_interleave(2, dim=1), torch.stack([key, key[batch.previous]], dim=2).flatten(1, 2), value


class DifferentialDenoiser(nn.Module):
    """ReDiFu's encoder: positions and speakers, a local delta mixed in, differential attention, feed-forward.

    Args:
        hidden_dim: D.
        heads: attention heads.
        dropout: of the input, the attention difference and the feed-forward network.
        positions: ``rotary`` or ``sinusoidal``.
        gelu_gain: factor of the GELU in the feed-forward network.
        output_weight: weight of the encoded rows beside the positioned input.
        head_scale: see :class:`ShiftedDifference`.
        window: likewise.

    Raises:
        MercError: unknown positions, or ``heads`` does not divide ``hidden_dim``.
    """

    def __init__(
        self,
        hidden_dim: int,
        heads: int,
        dropout: float,
        positions: Literal["rotary", "sinusoidal"],
        gelu_gain: float,
        output_weight: float,
        head_scale: bool,
        window: int | None = None,
    ) -> None:
        super().__init__()
        if positions not in POSITIONS:
            raise MercError(f"denoiser positions={positions} must be {' or '.join(POSITIONS)}.")
        self.output_weight = output_weight
        self.positions = POSITIONS[positions](hidden_dim)
        self.delta = LocalDelta(hidden_dim)
        self.context_gate = ContextGate(hidden_dim)
        self.input_norm = nn.LayerNorm(hidden_dim, eps=1e-6)
        self.attention = ShiftedDifference(hidden_dim, heads, dropout, head_scale, window)
        self.attention_norm = nn.LayerNorm(hidden_dim, eps=1e-6)
        self.feed_forward_norm = nn.LayerNorm(hidden_dim, eps=1e-6)
        self.expand = Linear(hidden_dim, hidden_dim)
        self.contract = GeluLinear(hidden_dim, hidden_dim, dropout, approximate="tanh", gain=gelu_gain)
        self.output_norm = nn.LayerNorm(hidden_dim, eps=1e-6)
        self.dropout = Dropout(dropout)

    def forward(self, x_ND: Tensor, speaker_ND: Tensor, batch: ConversationBatch) -> Tensor:
        """(N, D) rows and (N, D) speaker vectors → (N, D)."""
        positioned_ND = self.dropout(self.positions(x_ND, batch) + speaker_ND)
        mixed_ND = self.context_gate(positioned_ND, self.delta(x_ND, batch))
        z_ND = self.input_norm(mixed_ND + positioned_ND)
        z_ND = self.attention_norm(z_ND + self.attention(z_ND, batch))
        fed_ND = self.dropout(self.contract(self.expand(self.feed_forward_norm(z_ND))))
        z_ND = self.output_norm(torch.add(fed_ND, z_ND, alpha=2))
        return torch.add(positioned_ND, z_ND, alpha=self.output_weight)
