"""The callback that keeps the history of a run and writes it and the checkpoints."""

import math
import time
from collections.abc import Mapping
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint

from merc.errors import MercError
from merc.files import write_text
from merc.reporting.history import Epoch, per_class_values, selected_epoch, split_values, to_csv
from merc.reporting.run_folder import RunFolder
from merc.resuming import AtomicCheckpoints


class DivergenceError(MercError):
    """A loss is no longer a number."""


class Recorder(Checkpoint):
    """Keeps every epoch's numbers and writes metrics.csv, status.json and the checkpoints.

    The history travels inside ``last.ckpt``, so that a resumed run writes what an uninterrupted one would have. That
    file is written after epochs that are selected, the last one, and those for which it is due
    (:meth:`AtomicCheckpoints.due`). Being a :class:`Checkpoint`, it is called behind the callbacks that log.

    Args:
        folder: where to write.
        checkpoints: of the trainer.
        seeds_at_once: how many seeds the process trains together, whose times those of this run are.

    Raises:
        DivergenceError: the loss of training, or of an evaluated split, is no longer a number.
        MercError: a file cannot be written, or the settings of the trainer leave no whole epoch to be recorded.
    """

    def __init__(self, folder: RunFolder, checkpoints: AtomicCheckpoints, seeds_at_once: int = 1) -> None:
        self.folder = folder
        self.checkpoints = checkpoints
        self.seeds_at_once = seeds_at_once
        self.history: list[Epoch] = []
        self._earlier_seconds = folder.read_status().get("seconds", 0.0)
        self._created = time.monotonic()
        self._started = 0.0
        self._evaluation_started = 0.0
        self._evaluation_seconds = 0.0
        self._learning_rate = 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history = state_dict["history"]

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        _refuse_part_of_an_epoch(trainer)
        self._started = time.perf_counter()
        # Taken here, since schedulers step before the epoch ends.
        self._learning_rate = float(trainer.optimizers[0].param_groups[0]["lr"])

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._evaluation_started = time.perf_counter()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._evaluation_seconds = time.perf_counter() - self._evaluation_started

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        scores: dict[str, dict[str, Any]] = dict(pl_module.scores)  # type: ignore[arg-type]  # of EmotionRecognition
        epoch = trainer.current_epoch + 1
        logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
        # Weights of which the last step made NaN show in evaluation alone.
        evaluated = {split: split_scores["loss"] for split, split_scores in scores.items()}
        _refuse_divergence(epoch, {"training": logged["train/loss"], **evaluated})
        values = {
            "train/loss": logged["train/loss"],
            "learning_rate": self._learning_rate,
            **logged,
            **split_values(scores),  # exact: what Lightning logs passes through single precision
            "seconds": time.perf_counter() - self._started,
        }
        costs = {"evaluation_seconds": self._evaluation_seconds, "seeds_at_once": self.seeds_at_once}
        self.history.append({"epoch": epoch, "values": values, "scores": scores, **costs})
        for logger in trainer.loggers:
            for split, split_scores in scores.items():
                logger.log_metrics(per_class_values(split_scores, split), step=trainer.global_step)
        self._write(trainer)

    def will_select(self, pl_module: L.LightningModule) -> bool:
        """Whether validation chooses the epoch that ends, before it is in the history."""
        epoch: Epoch = {"scores": pl_module.scores}
        return selected_epoch([*self.history, epoch]) is epoch

    def _write(self, trainer: L.Trainer) -> None:
        selected = selected_epoch(self.history) is self.history[-1]
        due = self.checkpoints.due(trainer.current_epoch, required=selected or _is_last_epoch(trainer))
        selected, due = trainer.strategy.broadcast((selected, due))
        # The complete checkpoint comes behind the selected one: a run killed in between repeats this epoch.
        if selected:
            trainer.save_checkpoint(self.folder.selected, weights_only=True)
        if due:
            trainer.save_checkpoint(self.folder.last, weights_only=False)
        if trainer.is_global_zero:
            self.write_history(trainer)

    def write_history(self, trainer: L.Trainer) -> None:
        """Write metrics.csv and how far the run is."""
        if not self.history:
            raise MercError(
                "Nothing was trained. Look at trainer.limit_train_batches, trainer.max_steps and trainer.max_time."
            )
        write_text(self.folder.history, to_csv(self.history))
        # The time too, since a process that is killed does not get to add it.
        seconds = round(self._earlier_seconds + time.monotonic() - self._created, 3)
        self.folder.update_status(epoch=self.history[-1]["epoch"], epochs=trainer.max_epochs, seconds=seconds)


def _is_last_epoch(trainer: L.Trainer) -> bool:
    """Whether the training ends behind this epoch."""
    steps = trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps
    return trainer.should_stop or steps or trainer.current_epoch + 1 == trainer.max_epochs


def _refuse_part_of_an_epoch(trainer: L.Trainer) -> None:
    """Refuse ``max_steps`` that end before the last batch of an epoch, where Lightning does not evaluate."""
    steps = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
    assert trainer.max_epochs is not None
    if 0 < trainer.max_steps < steps * trainer.max_epochs and trainer.max_steps % steps:
        raise MercError(
            f"trainer.max_steps={trainer.max_steps} ends inside an epoch, which has {steps} steps, and only whole "
            f"epochs are evaluated. Choose a multiple of {steps}, or trainer.max_epochs=…."
        )


def _refuse_divergence(epoch: int, losses: Mapping[str, float]) -> None:
    for part, loss in losses.items():
        if not math.isfinite(loss):
            raise DivergenceError(
                f"The {part} loss is {loss} after epoch {epoch}: training diverged. Lower the learning "
                "rate (hyperparameters.learning_rate or optimizer.lr), or set trainer.gradient_clip_val=1."
            )
