"""Classifiers: from the rows of all modalities to class scores."""

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from merc.errors import MercError
from merc.models.prediction import Prediction
from merc.models.stages import PerModality, Rows


ACTIVATIONS = {"relu": nn.ReLU, "leaky_relu": nn.LeakyReLU}


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
        MercError: a modality has no weight.
    """

    def __init__(
        self,
        modalities: Sequence[str],
        hidden_dim: int,
        num_classes: int,
        dropout: float,
        weights: Mapping[str, float] | None,
        activation: str = "relu",
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise MercError(f"classifier.activation={activation} must be {' or '.join(ACTIVATIONS)}.")
        if weights is not None and (missing := [m for m in modalities if m not in weights]):
            raise MercError(f"classifier.weights has no weight for {', '.join(missing)}: add classifier.weights.NAME=…")
        self.weights = {m: 1.0 if weights is None else weights[m] for m in modalities}
        self.heads = PerModality(
            {
                m: nn.Sequential(ACTIVATIONS[activation](), nn.Dropout(dropout), nn.Linear(hidden_dim, num_classes))
                for m in modalities
            }
        )

    def forward(self, rows: Rows) -> Prediction:
        """Modality → (N, D), to (N, C) logits."""
        unimodal = self.heads(rows)
        weighted = [self.weights[modality] * logits_NC for modality, logits_NC in unimodal.items()]
        return Prediction(fused=torch.stack(weighted).sum(0), unimodal=unimodal)
