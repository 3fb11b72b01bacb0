"""Classification scores of a whole split, from its confusion matrix."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor


def scores_from_confusion(confusion_CC: Tensor, label_names: Sequence[str]) -> dict[str, Any]:
    """The scores of the field, as fractions in [0, 1].

    ``weighted_precision`` is what the literature often prints as "wa-ACC". A class that is never predicted has
    precision 0, one that never occurs recall 0, as scikit-learn has it with ``zero_division=0`` and all C labels.

    Args:
        confusion_CC: (C, C) counts, rows the labels and columns the predictions.
        label_names: C names.

    Returns:
        ``accuracy``, ``weighted_precision``, ``weighted_f1``, ``macro_f1``; ``per_class``: name → precision, recall,
        f1, support; ``confusion_matrix`` as lists.
    """
    counts = confusion_CC.double().cpu()
    correct, support, predicted = counts.diagonal(), counts.sum(1), counts.sum(0)
    precision = correct / predicted.clamp_min(1)
    recall = correct / support.clamp_min(1)
    f1 = 2 * correct / (support + predicted).clamp_min(1)
    total = support.sum().clamp_min(1)
    per_class = zip(label_names, precision.tolist(), recall.tolist(), f1.tolist(), support.tolist(), strict=True)
    return {
        "accuracy": (correct.sum() / total).item(),
        "weighted_precision": ((support * precision).sum() / total).item(),
        "weighted_f1": ((support * f1).sum() / total).item(),
        "macro_f1": f1.mean().item(),
        "per_class": {
            name: {"precision": p, "recall": r, "f1": f, "support": int(n)} for name, p, r, f, n in per_class
        },
        "confusion_matrix": counts.long().tolist(),
    }
