"""Scores of predictions, named exactly."""

from merc.metrics.balance import PrecisionRecallProduct
from merc.metrics.scores import scores_from_confusion

__all__ = ["PrecisionRecallProduct", "scores_from_confusion"]
