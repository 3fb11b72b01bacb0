"""Where the time of training steps goes, for ``debug=profiler``."""

from typing import Any, cast

import lightning as L
from rich.table import Table
from torch import Tensor
from torch.profiler import profile, record_function, supported_activities
from torch.utils.hooks import RemovableHandle

from merc.files import atomic_file, write_text
from merc.models.lightning_module import EmotionRecognition
from merc.reporting.run_folder import RunFolder
from merc.reporting.tables import show

BACKWARD = "backward"
WARM_UP = 2
"""Steps before those that are profiled: the first ones allocate what the others use again."""


class StepProfile(L.Callback):
    """Profiles some training steps of the first epoch, stage by stage and operator by operator.

    Writes ``profile.txt`` (the operators by their own time) and ``trace.json`` (for chrome://tracing or
    https://ui.perfetto.dev) to the run folder, and prints the stages.

    Args:
        folder: the run's.
        steps: how many; the epoch may have fewer.
    """

    def __init__(self, folder: RunFolder, steps: int) -> None:
        self.folder = folder
        self.steps = steps
        self._profile: profile | None = None
        self._hooks: list[RemovableHandle] = []
        self._open: dict[str, record_function] = {}

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Start behind the warm-up."""
        warm_up = min(WARM_UP, int(trainer.num_training_batches) - 1)
        if trainer.current_epoch == 0 and batch_idx == warm_up:
            self._label(cast(EmotionRecognition, pl_module))
            self._profile = profile(activities=supported_activities(), profile_memory=True)
            self._profile.start()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop when there are enough steps, or no more."""
        last = min(WARM_UP + self.steps, int(trainer.num_training_batches)) - 1
        if self._profile is not None and batch_idx >= last:
            self._stop()

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        """Mark the backward pass."""
        if self._profile is not None:
            self._enter(BACKWARD)

    def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Its end."""
        if self._profile is not None:
            self._exit(BACKWARD)

    def _label(self, module: EmotionRecognition) -> None:
        """Mark the stages of the model in the profile."""
        for name, stage in [*module.model.named_children(), ("objective", module.objective)]:
            self._hooks += [
                stage.register_forward_pre_hook(lambda *_, name=name: self._enter(f"forward: {name}")),
                stage.register_forward_hook(lambda *_, name=name: self._exit(f"forward: {name}")),
            ]

    def _enter(self, name: str) -> None:
        self._open[name] = record_function(name)
        self._open[name].__enter__()

    def _exit(self, name: str) -> None:
        self._open.pop(name).__exit__(None, None, None)

    def _stop(self) -> None:
        finished, self._profile = self._profile, None
        assert finished is not None
        finished.stop()
        for hook in self._hooks:
            hook.remove()
        operators = finished.key_averages()
        write_text(self.folder.profile, operators.table(sort_by="self_cpu_time_total", row_limit=60))
        with atomic_file(self.folder.trace) as path:
            finished.export_chrome_trace(str(path))
        show(self._stages(operators))

    def _stages(self, operators: Any) -> Table:
        profiled = next(event.count for event in operators if event.key == BACKWARD)
        table = Table(title=f"{profiled} training steps", caption=f"Operators: {self.folder.profile}")
        table.add_column("stage")
        table.add_column("ms a step", justify="right")
        for event in sorted(operators, key=lambda event: -event.cpu_time_total):
            if event.key == BACKWARD or event.key.startswith(("forward: ", "Optimizer.step")):
                table.add_row(event.key, f"{event.cpu_time_total / 1e3 / profiled:.1f}")
        return table
