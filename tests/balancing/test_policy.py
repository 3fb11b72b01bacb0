"""Balancing policies inside Lightning's Trainer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from sklearn.metrics import cohen_kappa_score, f1_score
from torch import Tensor

from merc.balancing import AdaptiveBalancing, dropout_probabilities
from merc.errors import MercError
from merc.models.lightning_module import EmotionRecognition

Fit = Callable[..., tuple[EmotionRecognition, L.Trainer, AdaptiveBalancing]]


class Spy(L.Callback):
    """Collects the classifier's outputs and labels before the mechanism, and the probabilities behind it."""

    def __init__(self) -> None:
        self.seen: list[tuple[dict[str, Tensor], Tensor, Tensor]] = []

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        outputs: list[dict[str, Tensor]] = []
        pl_module.model.classifier.register_forward_hook(lambda _m, _i, out: outputs.append(dict(out.unimodal)))
        pl_module.model.balancing.register_forward_hook(
            lambda module, inputs, _out: self.seen.append(
                (outputs[-1], inputs[1].labels, module.probabilities.clone())
                if outputs
                else ({}, inputs[1].labels, None)
            )
        )


@pytest.mark.parametrize(
    ("metric", "reference"),
    [
        ("balancing=adaptive_released", lambda y, p: f1_score(y, p, average="weighted")),
        (
            "balancing.policy.metric._target_=torchmetrics.classification.MulticlassCohenKappa",
            lambda y, p: cohen_kappa_score(y, p, labels=range(7)),
        ),
    ],
)
def test_probabilities_come_from_each_modality_on_the_same_batch(
    fit: Fit, metric: str, reference: Callable[[Any, Any], float]
) -> None:
    spy = Spy()
    _, _, policy = fit(metric, "hyperparameters.warmup_epochs=0", epochs=1, spy=spy)
    assert spy.seen
    for unimodal, labels, probabilities in spy.seen:
        scores = [reference(labels, unimodal[m].argmax(-1)) for m in ("text", "audio", "visual")]
        expected = dropout_probabilities(torch.tensor(scores).float(), **policy.rule)
        torch.testing.assert_close(probabilities, expected, atol=1e-4, rtol=1e-4)


def test_nothing_is_dropped_during_warm_up(fit: Fit) -> None:
    module, _, policy = fit("hyperparameters.warmup_epochs=2", "balancing.mechanism.execute_probability=1.0", epochs=2)
    assert policy.summary()["executed"] == 0
    module, _, policy = fit("hyperparameters.warmup_epochs=1", "balancing.mechanism.execute_probability=1.0", epochs=2)
    batches = policy.summary()["executed"]
    assert batches > 0
    assert module.model.balancing.executed == batches


def test_epoch_update_scores_the_whole_epoch_once(fit: Fit) -> None:
    calls = []
    spy = Spy()
    module, _, policy = fit("balancing.policy.update=epoch", "hyperparameters.warmup_epochs=1", epochs=1, spy=spy)
    calls = [probabilities for _, _, probabilities in spy.seen if probabilities is not None]
    assert all(not probabilities.any() for probabilities in calls)
    assert module.model.balancing.probabilities.any()
    assert policy.scores.any()


def test_state_is_logged_and_survives_a_checkpoint(fit: Fit, tmp_path: Path) -> None:
    _, trainer, policy = fit("hyperparameters.warmup_epochs=0", "balancing.mechanism.execute_probability=1.0", epochs=2)
    logged = {key.removeprefix("balancing/") for key in trainer.callback_metrics if key.startswith("balancing/")}
    assert logged == set(policy.summary())
    assert {"score_text", "q_audio", "theta", "executed"} <= logged
    trainer.save_checkpoint(tmp_path / "two.ckpt", weights_only=False)
    _, _, resumed = fit("hyperparameters.warmup_epochs=0", epochs=2, ckpt_path=tmp_path / "two.ckpt")
    assert resumed.summary() == policy.summary()


def test_fixed_balancing_keeps_its_probability(fit: Fit) -> None:
    module, _, _ = fit("balancing=fixed", epochs=1)
    assert module.model.balancing.probabilities.tolist() == pytest.approx([0.6] * 3)


def test_a_policy_with_another_mechanism_is_refused(fit: Fit) -> None:
    with pytest.raises(MercError, match=r"steers merc\.balancing\.ModalityDropout"):
        fit("balancing.mechanism._target_=torch.nn.Identity")


def test_unknown_update_is_refused(fit: Fit) -> None:
    with pytest.raises(MercError, match="batch or epoch"):
        fit("balancing.policy.update=minute")
