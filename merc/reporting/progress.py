"""Progress of a training run: a bar with the remaining time on a terminal, a line per epoch elsewhere."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column


class TrainingProgress(Checkpoint):
    """Shows the epoch, the loss, the current weighted F1 of every evaluated split and the time that remains.

    Being a :class:`Checkpoint`, it is called behind what logs.
    """

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        self.bar = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(bar_width=8),
            TimeRemainingColumn(table_column=Column(min_width=7)),
            TextColumn("left", table_column=Column(min_width=4)),
            TextColumn("{task.fields[scores]}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.task: TaskID | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        batches = int(trainer.num_training_batches)
        self.bar.start()
        self.task = self.bar.add_task("", total=batches * (trainer.max_epochs or 0), epoch=_epoch(trainer), scores="")
        self.bar.update(self.task, completed=batches * trainer.current_epoch)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.task is not None:
            self.bar.update(self.task, advance=1, epoch=_epoch(trainer))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.task is None:
            return
        values = {name: float(value) for name, value in trainer.callback_metrics.items()}
        shown = [
            f"{name.split('/')[0]} {100 * value:.2f}" for name, value in values.items() if name.endswith("/weighted_f1")
        ]
        scores = f"loss {values['train/loss']:.2f}  weighted F1 {' '.join(shown)}"
        self.bar.update(self.task, scores=scores)
        if not self.console.is_terminal:
            self.console.print(f"epoch {_epoch(trainer)}  {scores}", soft_wrap=True, highlight=False)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.bar.stop()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self.bar.stop()


def _epoch(trainer: L.Trainer) -> str:
    return f"{trainer.current_epoch + 1}/{trainer.max_epochs}"
