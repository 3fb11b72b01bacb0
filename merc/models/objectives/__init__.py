"""Training objectives: from a prediction and the labels to losses."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from merc.errors import MercError
from merc.models.objectives.class_weights import ClassWeights, resolve_weights
from merc.models.prediction import Prediction


class FusedAndUnimodal(nn.Module):
    """L = L_fused + Σ_m α_m·L_m² or + Σ_m α_m·L_m, the L being means over utterances.

    The squares are AMB-DSGDN's (Eq. 31-33, α = 1/10); constant weights are those of Wang et al. (CVPR 2020,
    arXiv:1905.12681, Eq. 3). Each L is the class-weighted mean of −(1 − p)^γ·log p, p being the probability of the true
    class: cross-entropy with γ = 0, focal loss otherwise (Lin et al., ICCV 2017, arXiv:1708.02002, Eq. 4-5).

    Args:
        modalities: those of the data.
        class_counts: utterances of each of the C classes in the training split.
        label_names: the C classes, in id order.
        class_weights: see :func:`merc.models.objectives.class_weights.resolve_weights`.
        unimodal_weight: α, one for all modalities or modality → α; 0 leaves a modality's own loss out.
        unimodal: ``squared`` or ``linear`` in the modalities' own losses.
        detach_weight: read α·L_m of a square as a coefficient without gradient; False differentiates the square.
        focal_gamma: γ; 0 or more.

    Raises:
        MercError: a setting is none of these.
    """

    weights: Tensor | None
    unimodal_weights: Tensor  # (M,), in the order of the modalities

    def __init__(
        self,
        modalities: Sequence[str],
        class_counts: Sequence[int],
        label_names: Sequence[str],
        class_weights: ClassWeights,
        unimodal_weight: float | Mapping[str, float],
        unimodal: Literal["squared", "linear"],
        detach_weight: bool,
        focal_gamma: float,
    ) -> None:
        super().__init__()
        if unimodal not in ("squared", "linear"):
            raise MercError(f"objective.unimodal={unimodal} must be squared or linear.")
        if focal_gamma < 0:
            raise MercError(f"objective.focal_gamma={focal_gamma} must not be negative.")
        self.modalities = tuple(modalities)
        alphas = torch.tensor(_per_modality(unimodal_weight, modalities))
        self.register_buffer("unimodal_weights", alphas, persistent=False)
        self.unimodal = unimodal
        self.detach_weight = detach_weight
        self.focal_gamma = focal_gamma
        self.register_buffer("weights", resolve_weights(class_weights, class_counts, label_names))

    def forward(self, prediction: Prediction, labels_N: Tensor) -> dict[str, Tensor]:
        """Scalar losses: ``fused``, one per modality, and ``total``, the one to minimise."""
        names = tuple(prediction.unimodal)
        logits_KNC = torch.stack([prediction.fused, *(prediction.unimodal[name] for name in names)])
        losses_K = self._mean_losses(logits_KNC, labels_N, prediction.kept)
        total = losses_K[0]
        if names:
            total = total + (self._coefficients(names, losses_K[1:]) * losses_K[1:]).sum()
        return {**dict(zip(("fused", *names), losses_K.unbind(), strict=True)), "total": total}

    def _coefficients(self, names: tuple[str, ...], losses_M: Tensor) -> Tensor:
        weights_M = self.unimodal_weights
        if names != self.modalities:  # a classifier with heads for some of them, or in another order
            weights_M = weights_M[[self.modalities.index(name) for name in names]]
        if self.unimodal == "linear":
            return weights_M
        return weights_M * (losses_M.detach() if self.detach_weight else losses_M)

    def _mean_losses(self, logits_KNC: Tensor, labels_N: Tensor, kept_N: Tensor | None) -> Tensor:
        """(K,) class-weighted mean losses of the kept utterances, of K heads; 0 when none is kept."""
        shape = logits_KNC.shape[:2]
        loss_KN = F.cross_entropy(logits_KNC.flatten(0, 1), labels_N.repeat(shape[0]), reduction="none").view(shape)
        if self.focal_gamma:
            # A miss of exactly 0 has no gradient under γ < 1.
            miss_KN = -torch.expm1(-loss_KN)
            loss_KN = miss_KN.clamp_min(torch.finfo(miss_KN.dtype).tiny) ** self.focal_gamma * loss_KN
        weight_N = loss_KN.new_ones(shape[1]) if self.weights is None else self.weights[labels_N]
        if kept_N is not None:
            weight_N = weight_N * kept_N
        return (weight_N * loss_KN).sum(1) / weight_N.sum().clamp_min(torch.finfo(weight_N.dtype).tiny)


def _per_modality(weight: float | Mapping[str, float], modalities: Sequence[str]) -> list[float]:
    if not isinstance(weight, Mapping):
        return [float(weight)] * len(modalities)
    if missing := [m for m in modalities if m not in weight]:
        raise MercError(
            f"objective.unimodal_weight has no weight for {', '.join(missing)}: "
            "add +objective.unimodal_weight.NAME=…, or give one number for all modalities."
        )
    return [float(weight[m]) for m in modalities]
