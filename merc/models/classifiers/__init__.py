"""Classifiers: from the rows of all modalities, or of their fusion, to class scores."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from torch import nn

from merc.errors import MercError
from merc.models.dropout import Dropout
from merc.models.linear import Linear
from merc.models.prediction import Prediction
from merc.models.stages import PerModality, Rows

ACTIVATIONS = {"relu": nn.ReLU, "leaky_relu": nn.LeakyReLU}

Activation = Literal["relu", "leaky_relu"]


def head(width: int, num_classes: int, dropout: float, activation: Activation) -> nn.Sequential:
    """Activation, dropout, linear map: (N, width) → (N, C) (AMB-DSGDN Eq. 28).

    Raises:
        MercError: an unknown activation.
    """
    if activation not in ACTIVATIONS:
        raise MercError(f"classifier.activation={activation} must be {' or '.join(ACTIVATIONS)}.")
    return nn.Sequential(ACTIVATIONS[activation](), Dropout(dropout), Linear(width, num_classes))


class WeightedLogits(nn.Module):
    """A head per modality; the fused logits are their weighted sum (AMB-DSGDN Eq. 28-29).

    Args:
        modalities: their order.
        hidden_dim: D.
        num_classes: C.
        dropout: of the heads.
        weights: modality → factor of its logits in the sum; None: all 1. Modalities that the data lacks are skipped.
        activation: of the heads: ``relu``, or ``leaky_relu`` with slope 0.01.

    Raises:
        MercError: a modality has no weight, or the activation is unknown.
    """

    unimodal_heads: ClassVar[bool] = True

    def __init__(
        self,
        modalities: Sequence[str],
        hidden_dim: int,
        num_classes: int,
        dropout: float,
        weights: Mapping[str, float] | None,
        activation: Activation = "relu",
    ) -> None:
        super().__init__()
        if weights is not None and (missing := [m for m in modalities if m not in weights]):
            raise MercError(f"classifier.weights has no weight for {', '.join(missing)}: add classifier.weights.NAME=…")
        if weights is not None and not any(weights[m] for m in modalities):
            raise MercError(
                f"classifier.weights are 0 for all modalities of the data ({', '.join(modalities)}): nothing would be "
                "classified. Add classifier.weights.NAME=1 for one of them, or choose classifier=summed_logits."
            )
        self.weights = {m: 1.0 if weights is None else weights[m] for m in modalities}
        self.heads = PerModality({m: head(hidden_dim, num_classes, dropout, activation) for m in modalities})

    def forward(self, rows: Rows) -> Prediction:
        """Modality → (N, D), to (N, C) logits."""
        unimodal = self.heads(rows)
        weighted = [x_NC if self.weights[m] == 1 else self.weights[m] * x_NC for m, x_NC in unimodal.items()]
        return Prediction(fused=torch.stack(weighted).sum(0), unimodal=unimodal)


class SingleHead(nn.Module):
    """One head on the fused rows, or on the concatenated rows of all modalities; none for a modality alone.

    Args:
        modalities: of the rows, in order; ``("fused",)`` behind a fusion to one vector.
        hidden_dim: D.
        num_classes: C.
        dropout: of the head.
        activation: ``relu``, or ``leaky_relu`` with slope 0.01.

    Raises:
        MercError: an unknown activation.
    """

    unimodal_heads: ClassVar[bool] = False

    def __init__(
        self, modalities: Sequence[str], hidden_dim: int, num_classes: int, dropout: float, activation: Activation
    ) -> None:
        super().__init__()
        self.modalities = tuple(modalities)
        self.head = head(len(self.modalities) * hidden_dim, num_classes, dropout, activation)

    def forward(self, rows: Rows) -> Prediction:
        """Name → (N, D), to (N, C) logits; ``unimodal`` is empty."""
        concatenated = torch.cat([rows[modality] for modality in self.modalities], dim=-1)
        return Prediction(fused=self.head(concatenated), unimodal={})
