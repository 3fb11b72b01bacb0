"""Training objectives: from a prediction and the labels to losses."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from merc.errors import MercError
from merc.models.prediction import Prediction


def _resolve_weights(kind: str | Sequence[float], class_counts: Sequence[int]) -> Tensor | None:
    """(C,) weights of the classes in the loss.

    Args:
        kind: ``none``; ``inverse_frequency``: N/n_c over the training split, never over test labels; or C numbers.
        class_counts: n_c, utterances of each class in the training split.

    Raises:
        MercError: ``kind`` is something else.
    """
    if kind == "none":
        return None
    counts = torch.tensor(class_counts, dtype=torch.float64)
    if kind == "inverse_frequency":
        # A class without training utterances never occurs in the training loss; 1 keeps its weight finite.
        return (counts.sum() / counts.clamp_min(1)).float()
    if isinstance(kind, str) or len(kind) != len(class_counts):
        raise MercError(
            f"objective.class_weights={kind} must be none, inverse_frequency or {len(class_counts)} numbers."
        )
    return torch.tensor(kind, dtype=torch.float32)


class FusedAndUnimodal(nn.Module):
    """L = L_fused + Σ_m α·L_m², the L being mean negative log-likelihoods (AMB-DSGDN Eq. 31-33).

    Args:
        class_counts: utterances of each class in the training split.
        class_weights: ``none``; ``inverse_frequency``: N/n_c over the training split; or one number per class.
        unimodal_weight: α, 1/10 in the paper; 0 leaves the modalities' own losses out.
        detach_weight: read α·L_m as a coefficient without gradient; False differentiates the square.
    """

    weights: Tensor | None

    def __init__(
        self,
        class_counts: Sequence[int],
        class_weights: str | Sequence[float],
        unimodal_weight: float,
        detach_weight: bool,
    ) -> None:
        super().__init__()
        self.unimodal_weight = unimodal_weight
        self.detach_weight = detach_weight
        self.register_buffer("weights", _resolve_weights(class_weights, class_counts))

    def forward(self, prediction: Prediction, labels_N: Tensor) -> dict[str, Tensor]:
        """Scalar losses: ``fused``, one per modality, and ``total``, the one to minimise."""
        losses = {m: self._likelihood(x, labels_N, prediction.kept) for m, x in prediction.unimodal.items()}
        fused = self._likelihood(prediction.fused, labels_N, prediction.kept)
        total = fused
        for loss in losses.values():
            coefficient = self.unimodal_weight * (loss.detach() if self.detach_weight else loss)
            total = total + coefficient * loss
        return {"fused": fused, **losses, "total": total}

    def _likelihood(self, logits_NC: Tensor, labels_N: Tensor, kept_N: Tensor | None) -> Tensor:
        """Class-weighted mean negative log-likelihood of the kept utterances; 0 when none is kept."""
        weight_N = torch.ones_like(logits_NC[:, 0]) if self.weights is None else self.weights[labels_N]
        if kept_N is not None:
            weight_N = weight_N * kept_N
        loss_N = F.cross_entropy(logits_NC, labels_N, reduction="none")
        return (weight_N * loss_N).sum() / weight_N.sum().clamp_min(torch.finfo(weight_N.dtype).tiny)
