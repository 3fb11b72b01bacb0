"""What a seed of a stack has of its own beside its module, and how it meets the trainer that all seeds share."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import lightning as L
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import Logger

from merc.reporting.recorder import DivergenceError, Recorder
from merc.resuming import AtomicCheckpoints
from merc.stacking.module import Member, StackedRecognition


@dataclass
class Seed:
    """One seed of a stack.

    Attributes:
        module: its parameters, a part of the stack.
        callbacks: those of a single run that are a seed's own: balancing, if any, and in the end the recorder.
        logger: beside the run folder's own files, if any.
        error: why it ended before the others.
    """

    module: Member
    callbacks: Sequence[L.Callback]
    logger: Logger | None = None
    error: DivergenceError | None = field(default=None, init=False)

    @property
    def recorder(self) -> Recorder:
        return cast(Recorder, self.callbacks[-1])


class SeedTrainer:
    """The trainer of a stack as one seed knows it: with its metrics and logger, and writing its checkpoints.

    Args:
        trainer: that of the stack, which has everything else.
        index: of the seed.
        logger: its own.
    """

    def __init__(self, trainer: L.Trainer, index: int, logger: Logger | None) -> None:
        self.trainer = trainer
        self.stack = cast(StackedRecognition, trainer.lightning_module)
        self.index = index
        self.loggers = [] if logger is None else [logger]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.trainer, name)

    @property
    def callback_metrics(self) -> dict[str, float]:
        return self.stack.seeds[self.index].logged

    def save_checkpoint(self, path: Path, weights_only: bool) -> None:
        """Write what the seed would have written alone."""
        self.stack.current = self.index
        self.trainer.save_checkpoint(path, weights_only)


class SeedCallbacks(Checkpoint):
    """Calls the callbacks of every seed. A seed whose training diverges ends alone.

    Args:
        seeds: in the order of the stack.
        checkpoints: of the trainer.
    """

    def __init__(self, seeds: Sequence[Seed], checkpoints: AtomicCheckpoints) -> None:
        self.seeds = seeds
        self.checkpoints = checkpoints

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._call("setup", trainer, stage)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._call("teardown", trainer, stage)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._call("on_train_epoch_start", trainer)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._call("on_validation_start", trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._call("on_validation_end", trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # All seeds or none, so that they go on together after a kill.
        alive = [seed for seed in self.seeds if seed.error is None]
        selected = any(seed.recorder.will_select(seed.module) for seed in alive)
        self.checkpoints.due(trainer.current_epoch, required=selected)
        self._call("on_train_epoch_end", trainer)
        for seed in self.seeds:
            if seed.logger is not None and seed.error is None:
                metrics = {**seed.module.logged, "epoch": float(trainer.current_epoch)}
                seed.logger.log_metrics(metrics, step=trainer.global_step - 1)  # the last one, as Lightning has it
        errors = [seed.error for seed in self.seeds if seed.error is not None]
        if len(errors) == len(self.seeds):
            raise errors[0]

    def _call(self, hook: str, trainer: L.Trainer, *arguments: Any) -> None:
        for index, seed in enumerate(self.seeds):
            if seed.error is not None:
                continue
            try:
                for callback in seed.callbacks:
                    getattr(callback, hook)(SeedTrainer(trainer, index, seed.logger), seed.module, *arguments)
            except DivergenceError as error:
                seed.error = error
