"""Balancing: keeping the strongest modality from carrying the training alone.

Policies are Lightning callbacks. They drop modalities, through a mechanism that is a stage of the model, or they
modulate gradients.
"""

from merc.balancing.gradients import GradientModulation
from merc.balancing.mechanism import ModalityDropout
from merc.balancing.policy import AdaptiveBalancing, FixedBalancing, build_policy
from merc.balancing.rule import dropout_probabilities

__all__ = [
    "AdaptiveBalancing",
    "FixedBalancing",
    "GradientModulation",
    "ModalityDropout",
    "build_policy",
    "dropout_probabilities",
]
