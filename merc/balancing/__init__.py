"""Balancing: keeping the strongest modality from carrying the training alone.

The mechanism is a stage of the model; the policy that steers it is a Lightning callback.
"""

from merc.balancing.mechanism import ModalityDropout
from merc.balancing.policy import AdaptiveBalancing, FixedBalancing, build_policy
from merc.balancing.rule import dropout_probabilities

__all__ = ["AdaptiveBalancing", "FixedBalancing", "ModalityDropout", "build_policy", "dropout_probabilities"]
