"""The epochs of a run as plain numbers: the rows of metrics.csv and the three epochs of metrics.json."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

REPORTED = ("accuracy", "weighted_precision", "weighted_f1", "macro_f1", "per_class")

Epoch = dict[str, Any]
"""One epoch: ``epoch`` from 1, ``values`` (column → float), ``scores`` (split → scores of that split),
``evaluation_seconds``, the part of the epoch that evaluation took, and ``seeds_at_once``, how many seeds shared it."""


def best_epoch(history: Sequence[Epoch], split: str) -> Epoch:
    """The epoch with the highest weighted F1 on a split, the earliest of equals."""
    return max(history, key=lambda epoch: epoch["scores"][split]["weighted_f1"])


def selected_epoch(history: Sequence[Epoch]) -> Epoch | None:
    """The epoch that the validation split chooses; None when there is no validation split."""
    return best_epoch(history, "validation") if "validation" in history[-1]["scores"] else None


def summarize(history: Sequence[Epoch]) -> dict[str, Any]:
    """The content of metrics.json.

    Args:
        history: every epoch, in order.

    Returns:
        The test scores at the epoch that validation chose (``selected``, absent without a validation split), at the
        last epoch and at the epoch with the best test score (``test_best``, optimistic: chosen by looking).
    """
    selected = selected_epoch(history)
    headline = {"selected": _test_scores(selected) | _validation_score(selected)} if selected else {}
    return headline | {"last": _test_scores(history[-1]), "test_best": _test_scores(best_epoch(history, "test"))}


def _test_scores(epoch: Epoch) -> dict[str, Any]:
    return {"epoch": epoch["epoch"]} | {name: epoch["scores"]["test"][name] for name in REPORTED}


def _validation_score(epoch: Epoch) -> dict[str, float]:
    return {"validation_weighted_f1": epoch["scores"]["validation"]["weighted_f1"]}


def to_csv(history: Sequence[Epoch]) -> str:
    """One row per epoch, a column for every value of any epoch; what an epoch lacks is left empty."""
    columns = list(dict.fromkeys(name for epoch in history for name in epoch["values"]))
    text = io.StringIO()
    writer = csv.DictWriter(text, ["epoch", *columns], lineterminator="\n")
    writer.writeheader()
    writer.writerows({"epoch": epoch["epoch"]} | epoch["values"] for epoch in history)
    return text.getvalue()


def split_values(scores: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """The scores of whole splits as flat columns: ``test/weighted_f1`` and so on."""
    return {
        f"{split}/{name}": value
        for split, split_scores in scores.items()
        for name, value in split_scores.items()
        if isinstance(value, float)
    }


def per_class_values(scores: Mapping[str, Any], split: str) -> dict[str, float]:
    """The scores of every class as flat columns: ``test/f1/sadness`` and so on."""
    return {
        f"{split}/{measure}/{label}": float(class_scores[measure])
        for label, class_scores in scores["per_class"].items()
        for measure in ("precision", "recall", "f1")
    }
