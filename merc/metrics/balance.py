"""How well a modality does alone, for the balancing policies: torchmetrics classes that never wait for the device."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from merc.metrics.confusion import confusion_matrix


class ConfusionScore(Metric, ABC):
    """A score that follows from the confusion matrix.

    Args:
        num_classes: C.
        kwargs: of :class:`torchmetrics.Metric`.
    """

    higher_is_better = True
    full_state_update = False
    confusion: Tensor

    def __init__(self, num_classes: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        zeros = torch.zeros(num_classes, num_classes, dtype=torch.int64)
        self.add_state("confusion", default=zeros, dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Count (N,) predicted and (N,) true class ids."""
        self.confusion += confusion_matrix(preds, target, len(self.confusion))

    def compute(self) -> Tensor:
        """Scalar score in [0, 1]."""
        return self.of(self.confusion)

    def of(self, confusion: Tensor) -> Tensor:
        """The scores (...) that follow from confusion matrices (..., C, C)."""
        return self.score(confusion.diagonal(dim1=-2, dim2=-1), confusion.sum(-1), confusion.sum(-2))

    @abstractmethod
    def score(self, correct_C: Tensor, support_C: Tensor, predicted_C: Tensor) -> Tensor:
        """The score (...) from counts (..., C) of any number of classifiers, sums going over the last dimension only.

        Args:
            correct_C: rightly predicted utterances of each class.
            support_C: those labelled so.
            predicted_C: those predicted so.
        """


class PrecisionRecallProduct(ConfusionScore):
    """p = Σ_c w_c · precision_c · recall_c / Σ_c w_c with w_c = N/n_c (AMB-DSGDN Eq. 19).

    Classes without a label have no weight; the precision of a class that is never predicted is 0.
    """

    def score(self, correct_C: Tensor, support_C: Tensor, predicted_C: Tensor) -> Tensor:
        """The score of the AMB-DSGDN paper."""
        weight_C = torch.where(support_C > 0, 1 / support_C, 0.0)
        product_C = (correct_C / predicted_C.clamp_min(1)) * (correct_C / support_C.clamp_min(1))
        return (weight_C * product_C).sum(-1) / weight_C.sum(-1)


class WeightedF1(ConfusionScore):
    """Weighted F1: the mean of the classes' F1 = 2·correct/(labelled + predicted), weighted by their utterances."""

    def score(self, correct_C: Tensor, support_C: Tensor, predicted_C: Tensor) -> Tensor:
        """The score of the released code."""
        f1_C = 2 * correct_C / (support_C + predicted_C).clamp_min(1)
        return (support_C * f1_C / support_C.sum(-1, keepdim=True)).sum(-1)
