"""Fusions: modalities exchange information before they are classified."""

from merc.models.fusions.cross_attention import MutualAttention
from merc.models.fusions.diffusion import GuidedDiffusion
from merc.models.fusions.joint import ConcatFusion, GatedFusion, JointFusion, LowRankFusion
from merc.models.fusions.modality_attention import ModalityAttention

__all__ = [
    "ConcatFusion",
    "GatedFusion",
    "GuidedDiffusion",
    "JointFusion",
    "LowRankFusion",
    "ModalityAttention",
    "MutualAttention",
]
