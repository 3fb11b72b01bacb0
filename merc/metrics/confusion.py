"""Confusion matrices, counted without waiting for the device."""

import torch
from torch import Tensor


def confusion_matrix(predicted_N: Tensor, labels_N: Tensor, num_classes: int) -> Tensor:
    """(C, C) int64 counts, rows the labels and columns the predictions, of (N,) int64 class ids below C."""
    cells_N = labels_N * num_classes + predicted_N
    counts = torch.zeros(num_classes**2, dtype=torch.int64, device=labels_N.device)
    # Unlike bincount, this need not know the largest cell.
    return counts.scatter_add_(0, cells_N, torch.ones_like(cells_N)).view(num_classes, num_classes)
