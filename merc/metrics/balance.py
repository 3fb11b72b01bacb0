"""The modality score of the AMB-DSGDN paper, as a torchmetrics class."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.classification import multiclass_confusion_matrix


class PrecisionRecallProduct(Metric):
    """p = Σ_c w_c · precision_c · recall_c / Σ_c w_c with w_c = N/n_c (AMB-DSGDN Eq. 19).

    Classes without a label have no weight; the precision of a class that is never predicted is 0.

    Args:
        num_classes: C.
        kwargs: of :class:`torchmetrics.Metric`.
    """

    higher_is_better = True
    full_state_update = False
    confusion: Tensor

    def __init__(self, num_classes: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_classes = num_classes
        zeros = torch.zeros(num_classes, num_classes, dtype=torch.int64)
        self.add_state("confusion", default=zeros, dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Count (N,) predicted and (N,) true class ids."""
        self.confusion += multiclass_confusion_matrix(preds, target, self.num_classes)

    def compute(self) -> Tensor:
        """Scalar score in [0, 1]."""
        correct, support, predicted = self.confusion.diagonal(), self.confusion.sum(1), self.confusion.sum(0)
        weight = torch.where(support > 0, 1 / support, 0.0)
        product = (correct / predicted.clamp_min(1)) * (correct / support.clamp_min(1))
        return (weight * product).sum() / weight.sum()
