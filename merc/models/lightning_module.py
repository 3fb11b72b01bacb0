"""The training contract: what a step, an epoch and a checkpoint are. The mathematics is the model's."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, cast

import lightning as L
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torchmetrics import Metric

from merc.config import instantiate
from merc.data.conversation import ConversationBatch, CorpusInfo
from merc.errors import MercError
from merc.metrics import confusion_matrix, scores_from_confusion
from merc.models.build import build_model, build_objective, self_contained
from merc.models.prediction import Prediction

CHECKPOINT_KEY = "merc"
SCALARS = ("loss", "accuracy", "weighted_precision", "weighted_f1", "macro_f1")


class SplitScores(Metric):
    """Loss and confusion matrix of one split, accumulated on the device without waiting for it.

    The loss is the mean of those of the batches, weighted by utterances. With class weights, or the square of a
    modality's loss, that is not the loss of all utterances at once, and depends a little on the batches.

    Args:
        num_classes: C.
    """

    full_state_update = False
    loss: Tensor
    utterances: Tensor
    confusion: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.add_state("loss", default=torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("utterances", default=torch.zeros(()), dist_reduce_fx="sum")
        zeros = torch.zeros(num_classes, num_classes, dtype=torch.int64)
        self.add_state("confusion", default=zeros, dist_reduce_fx="sum")

    def update(self, loss: Tensor, predicted_N: Tensor, labels_N: Tensor) -> None:
        """Count a batch: its loss, (N,) predicted and (N,) true class ids."""
        self.loss += loss.float() * len(labels_N)
        self.utterances += len(labels_N)
        self.confusion += confusion_matrix(predicted_N, labels_N, len(self.confusion))

    def compute(self) -> tuple[Tensor, Tensor]:
        """The loss and the (C, C) confusion matrix of everything since the last reset."""
        return self.loss / self.utterances, self.confusion


class MeanLosses:
    """Means of the losses of batches, weighted by utterances, added up on the device without waiting for it."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._utterances: Tensor | float = 0.0

    def add(self, losses: Mapping[str, Tensor], utterances: Tensor | int) -> None:
        """Count a batch: name → loss, of S seeds (S,), and of how many utterances."""
        for name, loss in losses.items():
            self._sums[name] = self._sums.get(name, 0.0) + loss.detach().float() * utterances
        self._utterances = self._utterances + utterances

    def take(self) -> dict[str, Tensor]:
        """The names by which the means since the last call, of all processes, are logged → those."""
        if not self._sums:
            return {}
        names, sums = [_logged(name) for name in self._sums], torch.stack(list(self._sums.values()))
        totals = torch.cat([sums, torch.zeros_like(sums[:1]) + self._utterances])
        if distributed():  # so that no process goes on where another one sees that training diverged
            torch.distributed.all_reduce(totals)
        self._sums, self._utterances = {}, 0.0
        return dict(zip(names, totals[:-1] / totals[-1], strict=True))


def distributed() -> bool:
    """Whether several processes train together."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _logged(loss: str) -> str:
    return "train/loss" if loss == "total" else f"train/loss_{loss}"


class EmotionRecognition(L.LightningModule):
    """Trains and evaluates any :class:`merc.models.emotion_model.EmotionModel`.

    Args:
        config: the plain resolved configuration of the run.
        info: the corpus.

    Attributes:
        evaluation_splits: names of the validation data loaders, in their order; set before fitting.
        mean_losses: of the training steps of this epoch.
        scores: split → scores of the last evaluation, see :func:`merc.metrics.scores_from_confusion`, with ``loss``.
    """

    def __init__(self, config: Mapping[str, Any], info: CorpusInfo) -> None:
        super().__init__()
        self.config = self_contained(config)
        self.info = info
        self.model = build_model(config, info)
        self.objective = build_objective(self.config, info)
        self.evaluation_splits: tuple[str, ...] = ("validation", "test")
        self.split_scores = nn.ModuleDict({name: SplitScores(len(info.label_names)) for name in self.evaluation_splits})
        self.scores: dict[str, dict[str, Any]] = {}
        self.mean_losses = MeanLosses()

    def forward(self, batch: ConversationBatch) -> Prediction:
        """Class scores of every utterance of the batch."""
        return cast(Prediction, self.model(batch))

    def training_step(self, batch: ConversationBatch, batch_idx: int) -> Tensor:
        """The loss of one batch."""
        losses = self.objective(self(batch), batch.labels)
        self.mean_losses.add(losses, batch.rows)
        return cast(Tensor, losses["total"])

    def on_train_epoch_end(self) -> None:
        """Log the mean losses; logging those of every step would take longer than adding them up."""
        self.log_dict(self.mean_losses.take())

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """A step behind which gradients take no memory any more: the next forward pass can have it."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        optimizer.zero_grad()

    def validation_step(self, batch: ConversationBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Count one batch of an evaluated split."""
        prediction = self(batch)
        loss = self.objective(prediction, batch.labels)["total"]
        self.count(dataloader_idx, loss, prediction.fused.argmax(-1), batch.labels)

    def count(self, dataloader_idx: int, loss: Tensor, predicted_N: Tensor, labels_N: Tensor) -> None:
        """Count a batch of an evaluated split: its loss, (N,) predicted and (N,) true class ids."""
        self._split(self.evaluation_splits[dataloader_idx]).update(loss, predicted_N, labels_N)

    def _split(self, name: str) -> SplitScores:
        return cast(SplitScores, self.split_scores[name])

    def on_validation_epoch_end(self) -> None:
        """Scores of every evaluated split."""
        self.scores = {name: self.take_scores(name) for name in self.evaluation_splits}
        for split, scores in self.scores.items():
            self.log_dict({f"{split}/{name}": scores[name] for name in SCALARS})

    def take_scores(self, name: str) -> dict[str, Any]:
        """Scores over all that was counted of an evaluated split since the last call, never means over batches."""
        split = self._split(name)
        loss, confusion_CC = split.compute()
        split.reset()
        return {"loss": loss.item(), **scores_from_confusion(confusion_CC, self.info.label_names)}

    def predict_step(self, batch: ConversationBatch, batch_idx: int = 0, dataloader_idx: int = 0) -> Prediction:
        """Class scores of every utterance of the batch."""
        return cast(Prediction, self(batch))

    def configure_optimizers(self) -> Any:
        """The optimiser and, if any, the scheduler stepped once per epoch."""
        return build_optimizers(self.config, self.parameters())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store, as plain containers, what rebuilds the model."""
        checkpoint[CHECKPOINT_KEY] = {"config": self.config, "info": self.info.to_dict()}

    @classmethod
    def from_checkpoint(cls, path: Path, plugins: Sequence[str] = ()) -> Self:
        """Rebuild a trained module from its checkpoint alone; nothing in the file is executed.

        Args:
            path: the checkpoint.
            plugins: packages of the user's from which its parts may come. What the file itself trusts does not count.

        Raises:
            MercError: the file is missing, damaged or not a checkpoint of this version of merc, or names a part outside
                the trusted packages.
        """
        checkpoint = load_checkpoint(path)
        if CHECKPOINT_KEY not in checkpoint:
            raise MercError(f"{path} is not a checkpoint of merc: it does not say which model it belongs to.")
        stored = checkpoint[CHECKPOINT_KEY]
        try:
            info = CorpusInfo.from_dict(stored["info"])
        except KeyError as error:
            raise MercError(
                f"{path} is of another version of merc: it lacks {error}. Train the model again."
            ) from error
        module = cls({**stored["config"], "plugins": list(plugins)}, info)
        module.load_state_dict(checkpoint["state_dict"])
        return module.eval()


def build_optimizers(config: Mapping[str, Any], parameters: Iterable[nn.Parameter]) -> Any:
    """The optimiser of those parameters that are trained, and a scheduler if the configuration has one.

    Raises:
        MercError: they cannot be built with their settings, or the scheduler follows a score.
    """
    plugins = config["plugins"]
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    optimizer = instantiate(config["optimizer"], plugins, params=trainable)
    if config["scheduler"]["_target_"] is None:
        return optimizer
    scheduler = instantiate(config["scheduler"], plugins, optimizer=optimizer)
    if isinstance(scheduler, ReduceLROnPlateau):
        raise MercError(
            "ReduceLROnPlateau follows a score of the run, which a scheduler does not get here. Choose one that "
            "follows the epochs, such as scheduler=cosine."
        )
    return [optimizer], [scheduler]


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint with ``weights_only``: tensors and plain containers, nothing is executed.

    Raises:
        MercError: the file is missing, damaged, or holds anything else.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise MercError(f"There is no checkpoint at {path}.") from error
    except Exception as error:
        raise MercError(
            f"{path} cannot be read as a checkpoint of tensors and plain values; nothing in it was executed. "
            f"({type(error).__name__})"
        ) from error
    if not isinstance(checkpoint, dict):
        raise MercError(f"{path} holds a {type(checkpoint).__name__}, not a checkpoint.")
    return checkpoint
