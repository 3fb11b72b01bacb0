"""Balancing policies: what keeps the strongest modality from carrying the training alone, epoch by epoch."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, cast

import lightning as L
import torch
from torch import Tensor
from torchmetrics import Metric

from merc.balancing.mechanism import ModalityDropout
from merc.balancing.rule import dropout_probabilities
from merc.config import instantiate
from merc.data.conversation import ConversationBatch
from merc.errors import MercError
from merc.metrics import ConfusionScore, confusion_matrix
from merc.models.emotion_model import EmotionModel
from merc.models.lightning_module import EmotionRecognition, distributed
from merc.models.stages import Rows


def build_policy(config: Mapping[str, Any]) -> L.Callback | None:
    """The balancing callback of a plain resolved configuration; None for ``balancing=none``."""
    node = config["balancing"]["policy"]
    return None if node is None else cast(L.Callback, instantiate(node, config["plugins"]))


class BalancingPolicy(L.Callback):
    """What every policy does: start after warm-up and log its state. Subclasses also carry it over in checkpoints.

    Args:
        warmup_epochs: epochs in which it does nothing.

    Attributes:
        needs_unimodal_heads: it compares the modalities by their own predictions.
        steers_dropout: it acts through the model's ``balancing`` stage.
        trains_alone: it needs more of a run than that stage, the hooks of epochs and a log, and so not several seeds at
            once (merc/stacking/).
        active: the warm-up is over.
    """

    needs_unimodal_heads: ClassVar[bool] = False
    steers_dropout: ClassVar[bool] = False
    trains_alone: ClassVar[bool] = False

    def __init__(self, warmup_epochs: int) -> None:
        self.warmup_epochs = warmup_epochs
        self.active = False

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Act from the first epoch behind the warm-up on."""
        self.active = trainer.current_epoch >= self.warmup_epochs

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the state under ``balancing/``."""
        pl_module.log_dict({f"balancing/{key}": value for key, value in self.summary().items()})

    def summary(self) -> dict[str, float]:
        """The state in numbers, by name."""
        raise NotImplementedError


class DropoutPolicy(BalancingPolicy):
    """A policy that decides how often each modality is dropped (:class:`merc.balancing.ModalityDropout`).

    Args:
        warmup_epochs: epochs in which nothing is dropped.
    """

    steers_dropout: ClassVar[bool] = True

    def __init__(self, warmup_epochs: int) -> None:
        super().__init__(warmup_epochs)
        self.mechanism: ModalityDropout

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Find the mechanism in the model."""
        mechanism = cast(EmotionRecognition, pl_module).model.balancing
        if not isinstance(mechanism, ModalityDropout):
            raise MercError(
                f"{type(self).__name__} steers merc.balancing.ModalityDropout, which balancing.mechanism is not."
            )
        self.mechanism = mechanism

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Drop from the first epoch behind the warm-up on."""
        super().on_train_epoch_start(trainer, pl_module)
        self.mechanism.active = self.active

    def summary(self) -> dict[str, float]:
        """q per modality, θ and the number of batches in which dropout was executed so far."""
        probabilities = self.mechanism.probabilities.tolist()
        return {
            **{f"q_{modality}": q for modality, q in zip(self.mechanism.modalities, probabilities, strict=True)},
            "theta": self.mechanism.theta.item(),
            "executed": float(self.mechanism.executed),
        }

    def state_dict(self) -> dict[str, Any]:
        """Probabilities and counters, for the checkpoint."""
        return {"probabilities": self.mechanism.probabilities.cpu(), "executed": self.mechanism.executed.cpu()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where the checkpoint was written."""
        self.mechanism.probabilities.copy_(state_dict["probabilities"])
        self.mechanism.executed.copy_(state_dict["executed"])


class FixedBalancing(DropoutPolicy):
    """The same probability for every modality, throughout.

    Args:
        probability: with which a dialogue loses a modality.
        warmup_epochs: epochs in which nothing is dropped.
    """

    def __init__(self, probability: float, warmup_epochs: int) -> None:
        super().__init__(warmup_epochs)
        self.probability = probability

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Set the probabilities once."""
        super().setup(trainer, pl_module, stage)
        self.mechanism.probabilities.fill_(self.probability)


class AdaptiveBalancing(DropoutPolicy):
    """Drops the modalities that do better alone more often (AMB-DSGDN Sec. 4.6).

    Before the mechanism acts, each modality's own head classifies the batch, in training mode as released; its score
    p_m is the configured metric of those predictions.

    Args:
        base_probability: q_base.
        scale: λ of Eq. 24.
        warmup_epochs: epochs in which nothing is dropped.
        update: ``batch``: probabilities from the batch they are applied to; ``epoch``: from the whole epoch before.
        rectify: see :func:`merc.balancing.dropout_probabilities`.
        positive_only: likewise.
        skip_below: likewise.
        metric: configuration node of a torchmetrics class; it is given ``num_classes``.
    """

    needs_unimodal_heads: ClassVar[bool] = True

    def __init__(
        self,
        base_probability: float,
        scale: float,
        warmup_epochs: int,
        update: Literal["batch", "epoch"],
        rectify: bool,
        positive_only: bool,
        skip_below: float,
        metric: Mapping[str, Any],
    ) -> None:
        super().__init__(warmup_epochs)
        if update not in ("batch", "epoch"):
            raise MercError(f"balancing.policy.update={update} must be batch or epoch.")
        self.rule: dict[str, Any] = {
            "base_probability": base_probability,
            "scale": scale,
            "rectify": rectify,
            "positive_only": positive_only,
            "skip_below": skip_below,
        }
        self.update = update
        self.metric = metric
        self.metrics: list[Metric]
        self._score: ConfusionScore | None

    @property
    def scores(self) -> Tensor:
        """(M,) p_m as last computed; 0 before."""
        return self.mechanism.scores

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Make a metric per modality and listen to what enters the mechanism."""
        super().setup(trainer, pl_module, stage)
        module = cast(EmotionRecognition, pl_module)
        classes = len(module.info.label_names)
        modalities = self.mechanism.modalities
        self.metrics = [instantiate(self.metric, module.config["plugins"], num_classes=classes) for _ in modalities]
        self._score = self._counted_score()
        self.mechanism.acts_alone = self._score is None
        self._hook = self.mechanism.register_forward_pre_hook(lambda _, inputs: self._observe(module.model, *inputs))

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Stop listening."""
        self._hook.remove()

    def _counted_score(self) -> ConfusionScore | None:
        """The metric, if scores follow from what one batch counts on one device."""
        metric = self.metrics[0]
        return metric if self.update == "batch" and isinstance(metric, ConfusionScore) and not distributed() else None

    @torch.no_grad()
    def _observe(self, model: EmotionModel, rows: Rows, batch: ConversationBatch) -> None:
        if self.update == "batch" and not self.mechanism.active:
            return
        unimodal = model.classify(rows, batch).unimodal
        predicted_MN = torch.stack([unimodal[modality].argmax(-1) for modality in self.mechanism.modalities])
        if self._score is not None:
            classes = len(self._score.confusion)
            self._rescore(self._score.of(confusion_matrix(predicted_MN, batch.labels, classes, batch.counted)))
            return
        for metric, predicted_N in zip(self.metrics, predicted_MN, strict=True):
            metric.to(batch.device).update(predicted_N[batch.utterances], batch.labels[batch.utterances])
        if self.update == "batch":
            self._rescore(self._taken())

    def _taken(self) -> Tensor:
        """(M,) what the metrics have counted, which start again."""
        scores_M = torch.stack([metric.compute() for metric in self.metrics])
        for metric in self.metrics:
            metric.reset()
        return scores_M

    def _rescore(self, scores_M: Tensor) -> None:
        assert scores_M.shape == self.mechanism.scores.shape, "a score of each modality"
        self.mechanism.scores.copy_(scores_M)
        self.mechanism.probabilities.copy_(dropout_probabilities(scores_M.float(), **self.rule))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Recompute once per epoch when so configured; log the state."""
        if self.update == "epoch":
            self._rescore(self._taken())
        super().on_train_epoch_end(trainer, pl_module)

    def summary(self) -> dict[str, float]:
        """Scores, q and θ as last computed, and the number of executed batches."""
        scores = dict(zip(self.mechanism.modalities, self.scores.tolist(), strict=True))
        return {**{f"score_{modality}": p for modality, p in scores.items()}, **super().summary()}

    def state_dict(self) -> dict[str, Any]:
        """Scores, probabilities and counters, for the checkpoint."""
        return {"scores": self.scores.cpu(), **super().state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where the checkpoint was written."""
        self.mechanism.scores.copy_(state_dict["scores"])
        super().load_state_dict(state_dict)
