"""From scores to dropout probabilities (AMB-DSGDN Eq. 20-24)."""

import torch
from torch import Tensor

EPSILON = 1e-5


def dropout_probabilities(
    scores: Tensor, base_probability: float, scale: float, rectify: bool, positive_only: bool, skip_below: float
) -> Tensor:
    """How often each modality is dropped: the more, the further it is ahead of the others.

    r_mj = p_m / (p_j + ε) − 1 for j ≠ m; r̄_m = Σ_j softmax(ReLU(r_m))_j · r_mj / |r_m|; q_m = clip(q_base (1 + λ r̄_m)).

    Args:
        scores: (..., M) p_m, the score of each modality on its own.
        base_probability: q_base.
        scale: λ.
        rectify: average ReLU(r_mj) in place of r_mj (the released rule), so that r̄_m is never negative.
        positive_only: q_m = 0 unless r̄_m > 0 (the released rule; the paper's has no such filter).
        skip_below: modalities j that score lower are left out of the ratios (1e-5 as released, 0 in the paper).

    Returns:
        (..., M) q in [0, 1]; 0 for a modality with nothing to be compared to.
    """
    ratio = scores[..., :, None] / (scores[..., None, :] + EPSILON) - 1
    counted = ~torch.eye(scores.shape[-1], dtype=torch.bool, device=scores.device)
    counted = counted & (scores >= skip_below)[..., None, :]
    number = counted.sum(-1)
    weight = ratio.relu().masked_fill(~counted, -torch.inf).softmax(-1).masked_fill(~counted, 0.0)
    average = (weight * (ratio.relu() if rectify else ratio)).sum(-1) / number.clamp_min(1)
    q = (base_probability * (1 + scale * average)).clamp(0, 1)
    droppable = (number > 0) & (average > 0) if positive_only else number > 0
    return q.masked_fill(~droppable, 0.0)
