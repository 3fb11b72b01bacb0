"""Scores against scikit-learn."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk
from torchmetrics.classification import MulticlassF1Score

from merc.metrics import PrecisionRecallProduct, WeightedF1, confusion_matrix, scores_from_confusion

NAMES = ("a", "b", "c", "d")
PAIRS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=60)


@settings(max_examples=80, deadline=None)
@given(pairs=PAIRS)
def test_equal_to_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    labels, predictions = np.array(pairs).T
    options = {"labels": range(4), "zero_division": 0}
    ours = scores_from_confusion(torch.from_numpy(sk.confusion_matrix(labels, predictions, labels=range(4))), NAMES)
    weighted = sk.precision_recall_fscore_support(labels, predictions, average="weighted", **options)
    assert ours["accuracy"] == pytest.approx(sk.accuracy_score(labels, predictions))
    assert ours["weighted_precision"] == pytest.approx(weighted[0])
    assert ours["weighted_f1"] == pytest.approx(weighted[2])
    assert ours["macro_f1"] == pytest.approx(sk.f1_score(labels, predictions, average="macro", **options))
    per_class = sk.precision_recall_fscore_support(labels, predictions, **options)
    for i, name in enumerate(NAMES):
        values = [ours["per_class"][name][key] for key in ("precision", "recall", "f1", "support")]
        assert values == pytest.approx([column[i] for column in per_class])


def test_constant_neutral_predictor_of_meld() -> None:
    confusion = torch.zeros(7, 7, dtype=torch.int64)
    confusion[:, 0] = torch.tensor([1256, 281, 50, 208, 402, 68, 345])
    scores = scores_from_confusion(confusion, [str(i) for i in range(7)])
    assert scores["accuracy"] == pytest.approx(0.4812, abs=5e-5)
    assert scores["weighted_precision"] == pytest.approx(0.2316, abs=5e-5)
    assert scores["weighted_f1"] == pytest.approx(0.3127, abs=5e-5)


@settings(max_examples=60, deadline=None)
@given(pairs=PAIRS)
def test_precision_recall_product_equals_eq_19(pairs: list[tuple[int, int]]) -> None:
    labels, predictions = np.array(pairs).T
    numerator = denominator = 0.0
    for c in set(labels.tolist()):
        correct = sum(1 for label, prediction in pairs if label == prediction == c)
        predicted, occurring = (predictions == c).sum(), (labels == c).sum()
        weight = len(pairs) / occurring
        numerator += weight * (correct / predicted if predicted else 0.0) * (correct / occurring)
        denominator += weight
    metric = PrecisionRecallProduct(num_classes=4)
    for start in range(0, len(pairs), 7):  # fed in pieces
        metric.update(torch.from_numpy(predictions[start : start + 7]), torch.from_numpy(labels[start : start + 7]))
    assert metric.compute().item() == pytest.approx(numerator / denominator, abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(pairs=PAIRS)
def test_confusion_matrix_equals_that_of_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    labels, predictions = np.array(pairs).T
    ours = confusion_matrix(torch.from_numpy(predictions), torch.from_numpy(labels), 4)
    assert ours.tolist() == sk.confusion_matrix(labels, predictions, labels=range(4)).tolist()


@settings(max_examples=100, deadline=None)
@given(pairs=PAIRS)
def test_weighted_f1_is_that_of_torchmetrics_to_the_last_bit(pairs: list[tuple[int, int]]) -> None:
    labels, predictions = torch.tensor(pairs).T
    ours, theirs = WeightedF1(num_classes=4), MulticlassF1Score(num_classes=4, average="weighted")
    for start in range(0, len(pairs), 7):  # fed in pieces
        for metric in (ours, theirs):
            metric.update(predictions[start : start + 7], labels[start : start + 7])
    assert torch.equal(ours.compute(), theirs.compute())
