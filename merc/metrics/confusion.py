"""Confusion matrices, counted without waiting for the device."""

import torch
from torch import Tensor


def confusion_matrix(predicted: Tensor, labels_N: Tensor, num_classes: int, counted_N: Tensor | None = None) -> Tensor:
    """Count who is taken for whom.

    Args:
        predicted: (..., N) int64 class ids below C, of any number of classifiers.
        labels_N: (N,) the true ones.
        num_classes: C.
        counted_N: (N,) bool, which utterances count; None: all.

    Returns:
        (..., C, C) int64, rows the labels and columns the predictions.
    """
    cells = labels_N * num_classes + predicted
    each = torch.ones_like(cells) if counted_N is None else counted_N.to(cells.dtype).expand_as(cells)
    counts = cells.new_zeros(*cells.shape[:-1], num_classes**2)
    # Unlike bincount, this need not know the largest cell.
    return counts.scatter_add_(-1, cells, each).unflatten(-1, (num_classes, num_classes))
