"""On-the-fly gradient modulation with generalisation enhancement, OGM-GE (Peng et al., CVPR 2022, arXiv:2203.15332)."""

from collections.abc import Mapping
from typing import Any, ClassVar, cast

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from merc.balancing.policy import BalancingPolicy
from merc.data.conversation import ConversationBatch
from merc.errors import MercError
from merc.models.emotion_model import EmotionModel
from merc.models.graphs import SpeakerGraphs
from merc.models.lightning_module import EmotionRecognition
from merc.models.prediction import Prediction


def modulation_coefficients(scores_M: Tensor, alpha: float) -> Tensor:
    """Factor of each modality's gradients: 1 − tanh(α·ρ_m) for a modality ahead of the others, ρ_m > 1, else 1.

    ρ_m is the modality's score over the mean score of the others. With two modalities that is the paper's ratio; the
    paper does not treat more.

    Args:
        scores_M: (M,) s_m, mean probability of the true class.
        alpha: α.

    Returns:
        (M,) factors in (0, 1]; 1 for a modality without others.
    """
    # Without others their mean is 0/0, and a ratio that is no number is not above 1.
    ratio_M = scores_M / ((scores_M.sum() - scores_M) / (len(scores_M) - 1))
    return torch.where(ratio_M > 1, 1 - torch.tanh(alpha * ratio_M), 1.0)


def own_parameters(model: EmotionModel, modality: str) -> list[nn.Parameter]:
    """The parameters of a modality's own projection, denoiser, graph layers and gate, but for those it shares.

    Edges between modalities are nobody's own: what they make of the rows of one modality goes to the others.
    """
    stages = (model.projection, model.denoiser, cast(SpeakerGraphs, model.graph).branches, model.gate)
    owned = [(owner, p) for stage in stages for owner, branch in stage.branches.items() for p in branch.parameters()]
    others = {parameter for owner, parameter in owned if owner != modality}
    return list(dict.fromkeys(p for owner, p in owned if owner == modality and p not in others))


class GradientModulation(BalancingPolicy):
    """Slows the modalities that do better alone by shrinking the gradients of their own parameters.

    Before each step of the optimiser the gradients of a modality's own parameters are multiplied by its coefficient,
    from the probabilities that the modality's own head gave to the true classes of the step's utterances. With
    ``noise``, each gradient also gets Gaussian noise of its own standard deviation (before modulation), which restores
    the noise of stochastic gradient descent that smaller gradients lack.

    Args:
        alpha: α, strength; 0 leaves the gradients as they are.
        noise: add the noise (GE).
        warmup_epochs: epochs without modulation.

    Raises:
        MercError: a negative α.
    """

    needs_unimodal_heads: ClassVar[bool] = True
    trains_alone: ClassVar[bool] = True

    def __init__(self, alpha: float, noise: bool, warmup_epochs: int) -> None:
        super().__init__(warmup_epochs)
        if alpha < 0:
            raise MercError(f"balancing.policy.alpha={alpha} must not be negative.")
        self.alpha = alpha
        self.noise = noise
        self.modalities: tuple[str, ...]
        self.scores: Tensor
        self.coefficients: Tensor
        self.parameters: dict[str, list[nn.Parameter]]
        self._sums: Tensor
        self._hook: RemovableHandle

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Find each modality's own parameters and listen to the model's predictions."""
        module = cast(EmotionRecognition, pl_module)
        self.modalities = module.info.modalities
        self.parameters = {modality: own_parameters(module.model, modality) for modality in self.modalities}
        self.scores = torch.zeros(len(self.modalities))
        self.coefficients = torch.ones(len(self.modalities))
        self._sums = torch.zeros(len(self.modalities) + 1)
        self._hook = module.model.register_forward_hook(self._observe)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Stop listening."""
        self._hook.remove()

    @torch.no_grad()
    def _observe(self, model: nn.Module, inputs: tuple[ConversationBatch], prediction: Prediction) -> None:
        """Add up true-class probabilities and utterances until the next step, however many batches it takes."""
        if not (model.training and self.active):
            return
        labels_N = inputs[0].labels
        right = [
            prediction.unimodal[modality].float().softmax(-1).gather(1, labels_N[:, None]).sum()
            for modality in self.modalities
        ]
        self._sums = self._sums.to(labels_N.device) + torch.stack([*right, right[0].new_full((), len(labels_N))])

    @torch.no_grad()
    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Modulate the gradients of the step."""
        if not self.active:
            return
        # Gradients are the same on all devices of a distributed run, and so must be what happens to them here.
        sums = trainer.strategy.reduce(self._sums, reduce_op="sum")
        self._sums = torch.zeros_like(self._sums)
        self.scores = sums[:-1] / sums[-1]
        self.coefficients = modulation_coefficients(self.scores, self.alpha)
        generator = torch.Generator(sums.device).manual_seed(self._step_seed(trainer, pl_module))
        for modality, coefficient in zip(self.modalities, self.coefficients, strict=True):
            for gradient in (p.grad for p in self.parameters[modality] if p.grad is not None):
                self._modulate(gradient, coefficient, generator)

    def _step_seed(self, trainer: L.Trainer, pl_module: L.LightningModule) -> int:
        key = (cast(EmotionRecognition, pl_module).config["seed"], trainer.global_step)
        return int(np.random.SeedSequence(key).generate_state(1)[0])

    def _modulate(self, gradient: Tensor, coefficient: Tensor, generator: torch.Generator) -> None:
        noise = torch.empty_like(gradient).normal_(generator=generator) if self.noise else 0.0
        deviation = gradient.std(correction=0)
        gradient.mul_(coefficient).add_(deviation * noise)

    def summary(self) -> dict[str, float]:
        """Scores (mean probability of the true class) and coefficients of the last step."""
        return {
            **{f"score_{modality}": s for modality, s in zip(self.modalities, self.scores.tolist(), strict=True)},
            **{f"coefficient_{m}": k for m, k in zip(self.modalities, self.coefficients.tolist(), strict=True)},
        }

    def state_dict(self) -> dict[str, Any]:
        """Scores and coefficients, for the checkpoint."""
        return {"scores": self.scores.cpu(), "coefficients": self.coefficients.cpu()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on where the checkpoint was written."""
        self.scores = state_dict["scores"]
        self.coefficients = state_dict["coefficients"]
