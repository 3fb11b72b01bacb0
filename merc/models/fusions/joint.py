"""Fusions that make one vector of all modalities of an utterance; they go with a single-head classifier."""

from collections.abc import Sequence
from functools import reduce
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from merc.data.conversation import ConversationBatch
from merc.errors import MercError
from merc.models.linear import Linear
from merc.models.stages import FUSED, Rows


class JointFusion(nn.Module):
    """What the fusions to one vector share: their rows go on under the one name ``fused``.

    Subclasses implement :meth:`fuse`.

    Args:
        modalities: their order.
    """

    joint: ClassVar[bool] = True

    def __init__(self, modalities: Sequence[str]) -> None:
        super().__init__()
        self.modalities = tuple(modalities)

    def forward(self, rows: Rows, batch: ConversationBatch) -> dict[str, Tensor]:
        """Modality → (N, D), to ``{"fused": (N, D)}``."""
        return {FUSED: self.fuse([rows[modality] for modality in self.modalities])}

    def fuse(self, rows: Sequence[Tensor]) -> Tensor:
        """One (N, D) tensor per modality, in order → (N, D)."""
        raise NotImplementedError


class ConcatFusion(JointFusion):
    """ReLU(W [x_1; …; x_M] + b): early fusion, the baseline of multimodal learning (Ngiam et al., ICML 2011).

    Args:
        modalities: their order.
        hidden_dim: D.
    """

    def __init__(self, modalities: Sequence[str], hidden_dim: int) -> None:
        super().__init__(modalities)
        self.linear = Linear(len(self.modalities) * hidden_dim, hidden_dim)

    def fuse(self, rows: Sequence[Tensor]) -> Tensor:
        """One (N, D) tensor per modality, in order → (N, D)."""
        return self.linear(torch.cat(list(rows), dim=-1)).relu()


class GatedFusion(JointFusion):
    """Gated multimodal unit: Σ_m z_m ⊙ tanh(W_m x_m), the gates z seeing all modalities.

    Arevalo et al. (ICLR workshop 2017, arXiv:1702.01992).

    Args:
        modalities: their order.
        hidden_dim: D.
        gate: ``sigmoid``: a gate for each modality (the paper's unit for any number of modalities); ``softmax``: the
            gates of a channel add up to 1 (with two modalities the paper's bimodal unit, z and 1 − z).

    Raises:
        MercError: an unknown gate.
    """

    def __init__(self, modalities: Sequence[str], hidden_dim: int, gate: Literal["sigmoid", "softmax"]) -> None:
        super().__init__(modalities)
        if gate not in ("sigmoid", "softmax"):
            raise MercError(f"fusion.module.gate={gate} must be sigmoid or softmax.")
        number = len(self.modalities)
        self.gate = gate
        self.encoders = nn.ModuleList(Linear(hidden_dim, hidden_dim, bias=False) for _ in range(number))
        self.gates = Linear(number * hidden_dim, number * hidden_dim, bias=False)

    def fuse(self, rows: Sequence[Tensor]) -> Tensor:
        """One (N, D) tensor per modality, in order → (N, D)."""
        encoded_NMD = torch.stack([encode(x_ND) for encode, x_ND in zip(self.encoders, rows, strict=True)], 1).tanh()
        logits_NMD = self.gates(torch.cat(list(rows), dim=-1)).view_as(encoded_NMD)
        gates_NMD = logits_NMD.sigmoid() if self.gate == "sigmoid" else logits_NMD.softmax(1)
        return (gates_NMD * encoded_NMD).sum(1)


class LowRankFusion(JointFusion):
    """Low-rank tensor fusion: Σ_r Π_m w_m^(r) [x_m; 1] + b, products by channel.

    The outer product of all modalities through a weight tensor of the given rank, without making either. Liu et al.
    (ACL 2018, arXiv:1806.00064).

    Args:
        modalities: their order.
        hidden_dim: D.
        rank: R of the weight tensor; 1 or more.

    Raises:
        MercError: no rank at all.
    """

    def __init__(self, modalities: Sequence[str], hidden_dim: int, rank: int) -> None:
        super().__init__(modalities)
        if rank < 1:
            raise MercError(f"fusion.module.rank={rank} must be 1 or more.")
        self.rank = rank
        # The bias of each factor is its weight of the appended 1.
        self.factors = nn.ModuleList(Linear(hidden_dim, rank * hidden_dim) for _ in self.modalities)
        self.bias = nn.Parameter(torch.zeros(hidden_dim))

    def fuse(self, rows: Sequence[Tensor]) -> Tensor:
        """One (N, D) tensor per modality, in order → (N, D)."""
        factors = [factor(x_ND).unflatten(-1, (self.rank, -1)) for factor, x_ND in zip(self.factors, rows, strict=True)]
        # Not torch.prod, whose gradient asks the device whether a factor is 0.
        return reduce(torch.mul, factors).sum(1) + self.bias
