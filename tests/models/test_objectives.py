"""Losses against torch's and against hand-written sums."""

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F

from merc.errors import MercError
from merc.models.objectives import FusedAndUnimodal
from merc.models.prediction import Prediction

COUNTS = (5, 3, 2)


def objective(weights: str | Sequence[float] = "none", unimodal: float = 0.1, detach: bool = False) -> FusedAndUnimodal:
    return FusedAndUnimodal(COUNTS, weights, unimodal, detach)


def prediction(kept: torch.Tensor | None = None) -> tuple[Prediction, torch.Tensor]:
    torch.manual_seed(0)
    logits = {name: torch.randn(6, 3, requires_grad=True) for name in ("fused", "text", "audio")}
    unimodal = {name: logits[name] for name in ("text", "audio")}
    return Prediction(logits["fused"], unimodal, kept), torch.tensor([0, 1, 2, 0, 1, 2])


@pytest.mark.parametrize("weights", ["none", "inverse_frequency", [1.0, 2.0, 3.0]])
def test_losses_equal_torch(weights: str | Sequence[float]) -> None:
    given, labels = prediction()
    class_weights = {"none": None, "inverse_frequency": torch.tensor([2.0, 10 / 3, 5.0])}
    expected_weights = class_weights[weights] if isinstance(weights, str) else torch.tensor(weights)
    losses = objective(weights)(given, labels)
    expected = {"fused": F.cross_entropy(given.fused, labels, expected_weights)}
    expected |= {m: F.cross_entropy(x, labels, expected_weights) for m, x in given.unimodal.items()}
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value)
    total = expected["fused"] + expected["text"] ** 2 / 10 + expected["audio"] ** 2 / 10
    torch.testing.assert_close(losses["total"], total)


def test_a_detached_weight_halves_the_unimodal_gradient_and_keeps_the_value() -> None:
    gradients, values = [], []
    for detach in (False, True):
        given, labels = prediction()
        total = objective(detach=detach)(given, labels)["total"]
        total.backward()
        values.append(total.item())
        gradients.append(given.unimodal["text"].grad)
    assert values[0] == values[1]
    torch.testing.assert_close(gradients[0], 2 * gradients[1])


def test_dropped_utterances_and_their_labels_do_not_count() -> None:
    kept = torch.tensor([True, False, True, True, False, True])
    given, labels = prediction(kept)
    part = Prediction(given.fused[kept], {m: x[kept] for m, x in given.unimodal.items()})
    ours = objective("inverse_frequency")(given, labels)
    expected = objective("inverse_frequency")(part, labels[kept])
    for name, value in expected.items():
        torch.testing.assert_close(ours[name], value)


def test_nothing_kept_is_no_loss_and_no_gradient() -> None:
    given, labels = prediction(torch.zeros(6, dtype=torch.bool))
    total = objective()(given, labels)["total"]
    total.backward()
    assert total.item() == 0
    assert not given.fused.grad.any()


@pytest.mark.parametrize("weights", ["inverse", [1.0, 2.0]])
def test_unknown_weights_are_refused(weights: str | Sequence[float]) -> None:
    with pytest.raises(MercError, match="class_weights"):
        objective(weights)


def test_published_weights_of_iemocap() -> None:
    counts = (504, 839, 1324, 933, 742, 1468)
    weights = FusedAndUnimodal(counts, "inverse_frequency", 0.1, False).weights
    published = torch.tensor([11.5278, 6.9249, 4.3882, 6.2272, 7.8302, 3.9578])
    torch.testing.assert_close(weights, published, atol=1e-4, rtol=0)
