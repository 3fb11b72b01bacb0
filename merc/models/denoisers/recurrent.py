"""A recurrent denoiser: gated recurrent units along each dialogue."""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from merc.data.conversation import ConversationBatch
from merc.models.dropout import Dropout
from merc.models.linear import Linear


class RecurrentDenoiser(nn.Module):
    """A GRU along each dialogue, projected back and added to the rows.

    Contextual recurrence of Poria et al. (ACL 2017, "Context-Dependent Sentiment Analysis in User-Generated Videos"),
    with the units of Cho et al. (2014, arXiv:1406.1078).

    Args:
        hidden_dim: D, also the width of the states in each direction.
        layers: of the GRU.
        dropout: of the input, between the layers and of the states.
        bidirectional: read each dialogue in both directions; False: no row depends on a later utterance.

    Attributes:
        trains_alone: torch's recurrent units have no rule for :func:`torch.func.vmap`.
    """

    trains_alone: ClassVar[bool] = True

    def __init__(self, hidden_dim: int, layers: int, dropout: float, bidirectional: bool) -> None:
        super().__init__()
        self.dropout = Dropout(dropout)
        self.gru = nn.GRU(
            hidden_dim,
            hidden_dim,
            layers,
            batch_first=True,
            dropout=dropout if layers > 1 else 0.0,  # torch warns of dropout between the layers of a single one
            bidirectional=bidirectional,
        )
        self.output = Linear(hidden_dim * (2 if bidirectional else 1), hidden_dim)

    def forward(self, x_ND: Tensor, speaker_ND: Tensor, batch: ConversationBatch) -> Tensor:
        """(N, D) rows and (N, D) speaker vectors → (N, D)."""
        x_ND = self.dropout(x_ND + speaker_ND)
        lengths = torch.tensor(batch.lengths)  # on the host, where torch wants them
        packed = pack_padded_sequence(batch.pad(x_ND), lengths, batch_first=True, enforce_sorted=False)
        states_BLS, _ = pad_packed_sequence(self.gru(packed)[0], batch_first=True)
        out_ND: Tensor = x_ND + self.output(self.dropout(batch.unpad(states_BLS)))
        return out_ND
