"""Scores of predictions, named exactly."""

from merc.metrics.balance import ConfusionScore, PrecisionRecallProduct, WeightedF1
from merc.metrics.confusion import confusion_matrix
from merc.metrics.scores import scores_from_confusion

__all__ = ["ConfusionScore", "PrecisionRecallProduct", "WeightedF1", "confusion_matrix", "scores_from_confusion"]
