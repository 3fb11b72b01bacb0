"""Gradient modulation: its coefficients, whose gradients it touches, and what becomes of them in a run."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from merc.balancing import GradientModulation
from merc.balancing.gradients import modulation_coefficients, own_parameters
from merc.errors import MercError
from merc.models.emotion_model import EmotionModel
from merc.models.lightning_module import EmotionRecognition
from merc.resuming import EpochSeeds

Fit = Callable[..., tuple[EmotionRecognition, L.Trainer, GradientModulation]]
OGM = ("balancing=ogm_ge", "hyperparameters.warmup_epochs=0", "balancing.policy.noise=false")


@given(scores=st.lists(st.floats(0.01, 1), min_size=1, max_size=4), alpha=st.floats(0, 2))
def test_coefficients_equal_loops(scores: list[float], alpha: float) -> None:
    ours = modulation_coefficients(torch.tensor(scores, dtype=torch.float64), alpha)
    for m, score in enumerate(scores):
        others = [s for j, s in enumerate(scores) if j != m]
        ratio = score * len(others) / sum(others) if others else 0.0
        expected = 1 - math.tanh(alpha * ratio) if ratio > 1 else 1.0
        assert ours[m].item() == pytest.approx(expected, abs=1e-9) or ratio == pytest.approx(1, abs=1e-9)


def test_of_two_modalities_the_better_one_is_slowed_by_the_ratio_of_the_paper() -> None:
    coefficients = modulation_coefficients(torch.tensor([0.6, 0.3]), alpha=0.5)
    assert coefficients.tolist() == pytest.approx([1 - math.tanh(0.5 * 2), 1.0])


@pytest.mark.parametrize("overrides", [(), ("gate=sigmoid", "denoiser.text=recurrent", "graph.audio=gcn")], ids=str)
def test_every_parameter_before_fusion_has_one_owner(
    make_model: Callable[..., EmotionModel], overrides: tuple[str, ...]
) -> None:
    model = make_model(*overrides)
    owned = [p for modality in ("text", "audio", "visual") for p in own_parameters(model, modality)]
    stages = (model.projection, model.denoiser, model.graph, model.gate)
    assert len(owned) == len(set(owned))
    assert set(owned) == {p for stage in stages for p in stage.parameters()}
    text = set(own_parameters(model, "text"))
    assert all("text" in name.split(".") for name, parameter in model.named_parameters() if parameter in text)


def test_what_modalities_share_is_nobodys_own(make_model: Callable[..., EmotionModel]) -> None:
    model = make_model("graph=relational_gat", "graph.share_relations=true")
    shared = model.graph.branches.branches["text"].layers["inter_speaker"][0].heads.scores.relation_table
    assert not any(p is shared for modality in ("text", "audio", "visual") for p in own_parameters(model, modality))


def test_edges_between_modalities_are_nobodys_own(make_model: Callable[..., EmotionModel]) -> None:
    connected, apart = (make_model(f"graph/cross_modal={edges}", "gate=sigmoid") for edges in ("attention", "none"))
    for modality in ("text", "audio", "visual"):
        own, expected = (
            {name for name, p in model.named_parameters() if id(p) in {id(q) for q in own_parameters(model, modality)}}
            for model in (connected, apart)
        )
        assert own == expected
        assert len(own) > 1


class Recorder(L.Callback):
    """Collects gradients before each step, and the mean true-class probabilities of the batches since the last one."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Tensor]] = []
        self.scores: list[list[float]] = []
        self._batches: list[tuple[Any, Tensor]] = []

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        pl_module.model.register_forward_hook(self._keep)

    def _keep(self, model: EmotionModel, inputs: tuple[Any], prediction: Any) -> None:
        if model.training:
            self._batches.append((prediction, inputs[0].labels))

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        gradients = {n: p.grad.clone() for n, p in pl_module.model.named_parameters() if p.grad is not None}
        self.steps.append(gradients)
        probabilities: dict[str, list[float]] = {m: [] for m in ("text", "audio", "visual")}
        for prediction, labels in self._batches:
            for modality, logits in prediction.unimodal.items():
                rows = logits.detach().softmax(-1)
                probabilities[modality] += [row[label].item() for row, label in zip(rows, labels, strict=True)]
        self.scores.append([sum(values) / len(values) for values in probabilities.values()])
        self._batches.clear()


@pytest.mark.parametrize("accumulate", [1, 2])
def test_gradients_of_each_modality_are_scaled_by_its_coefficient(fit: Fit, accumulate: int) -> None:
    before, behind = Recorder(), Recorder()
    _, _, policy = fit(*OGM, epochs=1, before=before, spy=behind, accumulate_grad_batches=accumulate)
    assert len(before.steps) > 1
    slowed = 0
    for raw, modulated, scores in zip(before.steps, behind.steps, before.scores, strict=True):
        coefficients = modulation_coefficients(torch.tensor(scores), policy.alpha).tolist()
        for name, gradient in raw.items():
            owner = [m for m in range(3) if ("text", "audio", "visual")[m] in name.split(".")]
            own = owner and name.split(".")[0] in ("projection", "denoiser", "graph", "gate")
            factor = coefficients[owner[0]] if own else 1.0
            torch.testing.assert_close(modulated[name], factor * gradient, atol=1e-7, rtol=1e-4)
            slowed += factor < 1
    assert slowed


def test_noise_has_the_deviation_of_the_gradient_and_is_reproducible(fit: Fit) -> None:
    runs = []
    for _ in range(2):
        before, behind = Recorder(), Recorder()
        noisy = ("balancing.policy.noise=true", "balancing.policy.alpha=0.0", "hyperparameters.hidden_dim=32")
        fit(*OGM, *noisy, epochs=1, before=before, spy=behind)
        runs.append([behind.steps[0][name] - gradient for name, gradient in before.steps[0].items()])
        gradients = before.steps[0]
    for first, second, (name, gradient) in zip(*runs, gradients.items(), strict=True):
        assert torch.equal(first, second)
        own = name.split(".")[0] in ("projection", "denoiser", "graph", "gate")
        if not own:
            assert not first.any(), name
        elif gradient.numel() >= 1000:
            assert first.std().item() == pytest.approx(gradient.std().item(), rel=0.15), name


def test_no_strength_and_no_noise_is_no_balancing(fit: Fit) -> None:
    plain, _, _ = fit("balancing=none", epochs=1)
    modulated, _, _ = fit(*OGM, "balancing.policy.alpha=0.0", epochs=1)
    for name, value in plain.state_dict().items():
        assert torch.equal(value, modulated.state_dict()[name]), name


def test_nothing_is_modulated_during_warm_up(fit: Fit) -> None:
    before, behind = Recorder(), Recorder()
    _, _, policy = fit(*OGM, "hyperparameters.warmup_epochs=1", epochs=2, before=before, spy=behind)
    changed = [
        any(not torch.equal(raw[name], modulated[name]) for name in raw)
        for raw, modulated in zip(before.steps, behind.steps, strict=True)
    ]
    half = len(changed) // 2
    assert not any(changed[:half])
    assert any(changed[half:])
    assert any(policy.scores)


def test_state_is_logged_and_survives_a_checkpoint(fit: Fit, tmp_path: Path) -> None:
    _, trainer, policy = fit(*OGM, epochs=2)
    logged = {key.removeprefix("balancing/") for key in trainer.callback_metrics if key.startswith("balancing/")}
    assert logged == set(policy.summary()) == {f"{k}_{m}" for k in ("score", "coefficient") for m in policy.modalities}
    trainer.save_checkpoint(tmp_path / "two.ckpt", weights_only=False)
    _, _, resumed = fit(*OGM, epochs=2, ckpt_path=tmp_path / "two.ckpt")
    assert resumed.summary() == policy.summary()


def test_a_negative_strength_is_refused() -> None:
    with pytest.raises(MercError, match="alpha=-1"):
        GradientModulation(alpha=-1, noise=True, warmup_epochs=0)


def test_a_resumed_run_draws_the_same_noise(fit: Fit, tmp_path: Path) -> None:
    noisy = (*OGM, "balancing.policy.noise=true")
    whole, _, _ = fit(*noisy, epochs=3, before=EpochSeeds(1))
    _, trainer, _ = fit(*noisy, epochs=2, before=EpochSeeds(1))
    trainer.save_checkpoint(tmp_path / "two.ckpt", weights_only=False)
    resumed, _, _ = fit(*noisy, epochs=3, ckpt_path=tmp_path / "two.ckpt", before=EpochSeeds(1))
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
