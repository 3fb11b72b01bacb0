"""Classifiers against sums written out."""

import pytest
import torch
from torch import nn

from merc.errors import MercError
from merc.models.classifiers import SingleHead, WeightedLogits

MODALITIES = ("text", "audio")


def rows() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {"audio": torch.randn(6, 4), "text": torch.randn(6, 4)}


@pytest.mark.parametrize(("activation", "slope"), [("relu", 0.0), ("leaky_relu", 0.01)])
def test_logits_are_the_weighted_sum_of_the_heads(activation: str, slope: float) -> None:
    classifier = WeightedLogits(MODALITIES, 4, 3, 0.5, {"text": 0.8, "audio": 0.1, "visual": 0.1}, activation).eval()
    given = rows()
    prediction = classifier(given)
    expected = {}
    for modality in MODALITIES:
        linear = classifier.heads.branches[modality][-1]
        active = torch.where(given[modality] > 0, given[modality], slope * given[modality])
        expected[modality] = active @ linear.weight.T + linear.bias
        torch.testing.assert_close(prediction.unimodal[modality], expected[modality])
    torch.testing.assert_close(prediction.fused, 0.8 * expected["text"] + 0.1 * expected["audio"])


def test_a_single_head_sees_the_modalities_side_by_side_in_their_order() -> None:
    classifier = SingleHead(MODALITIES, 4, 3, 0.5, "relu").eval()
    given = rows()
    linear = classifier.head[-1]
    assert isinstance(linear, nn.Linear)
    text, audio = linear.weight.split(4, dim=1)
    expected = given["text"].relu() @ text.T + given["audio"].relu() @ audio.T + linear.bias
    prediction = classifier(given)
    torch.testing.assert_close(prediction.fused, expected)
    assert prediction.unimodal == {}


def test_an_unknown_activation_is_refused() -> None:
    with pytest.raises(MercError, match="activation=tanh must be relu or leaky_relu"):
        SingleHead(MODALITIES, 4, 3, 0.5, "tanh")
