"""What makes a resumed run end exactly as an uninterrupted one."""

import io
import random
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.plugins import TorchCheckpointIO
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from merc.files import atomic_file

WAITING_SHARE = 0.1
"""Of the time of a training, what it may wait for checkpoints of epochs that could do without."""

UNNOTICED_SECONDS = 0.02
"""Waiting that nobody notices."""


def seed_everything(*key: int) -> None:
    """Seed Python's, NumPy's and PyTorch's generators with one function of the numbers in ``key``."""
    seed = int(np.random.SeedSequence(key).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


class EpochSeeds(L.Callback):
    """Seeds all generators at the start of each epoch from the run's seed (or several), the epoch and the rank.

    So an epoch draws the same numbers whatever was drawn before it. Nothing else of the generators need be saved.

    Args:
        seeds: the run's seed; of runs that are trained at once those of all.
    """

    def __init__(self, *seeds: int) -> None:
        self.seeds = seeds

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        # Not on_train_epoch_start: Lightning makes the loader's iterator, which draws a number, before that hook in
        # the first epoch of a process and behind it in the others.
        if batch_idx == 0:
            seed_everything(*self.seeds, trainer.current_epoch, trainer.global_rank)


class AtomicCheckpoints(TorchCheckpointIO):
    """Checkpoint files that are whole or absent, whenever the process or the disk gives out.

    They are written in the order in which they are saved, one at a time and beside the training. What the training goes
    on to change is copied to the host at once, but for what :class:`UntouchedWhileWritten` protects. What goes wrong
    is raised at the next call.

    Attributes:
        protected: addresses of tensors that do not change before :meth:`wait` returned.
    """

    def __init__(self) -> None:
        self.protected: frozenset[int] = frozenset()
        self._writer = ThreadPoolExecutor(max_workers=1)
        self._last: Future[None] | None = None
        self._epoch = -1
        self._due = False
        self._since = time.perf_counter()
        self._waited = 0.0

    def due(self, epoch: int, required: bool = False) -> bool:
        """Whether the training goes on from this epoch after a kill: all that is trained here gets the same answer.

        An epoch has no checkpoint if the training has waited for the last one for a tenth of the time since, as on a
        GPU that has done the next epoch before the last one is on the disk.

        Args:
            epoch: any number of this epoch.
            required: it must have one.
        """
        if epoch != self._epoch:
            now = time.perf_counter()
            waited_little = self._waited <= max(UNNOTICED_SECONDS, WAITING_SHARE * (now - self._since))
            self._epoch, self._due = epoch, required or waited_little
            if self._due:
                self._since, self._waited = now, 0.0
        return self._due or required

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Save a checkpoint; an earlier one of that name stays until the new one is complete.

        Raises:
            MercError: the disk is full, or the folder cannot be written.
        """
        self.wait()
        with self._waiting():
            snapshot = apply_to_collection(checkpoint, Tensor, self._unchanging)
        self._last = self._writer.submit(_write, snapshot, Path(path))

    def _unchanging(self, tensor: Tensor) -> Tensor:
        if tensor.data_ptr() in self.protected:
            return tensor.detach()
        # The writer leaves a GPU alone: CUDA refuses to record a graph while another thread copies from there.
        return tensor.detach().to("cpu", copy=True)

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self._waited += time.perf_counter() - started

    def wait(self) -> None:
        """Return when everything is on the disk.

        Raises:
            MercError: see :meth:`save_checkpoint`.
        """
        last, self._last = self._last, None
        if last is not None:
            with self._waiting():
                last.result()

    def teardown(self) -> None:
        """The end of a training: :meth:`wait`."""
        self.wait()


class UntouchedWhileWritten(L.Callback):
    """Lets no step change the parameters, and what the optimizer keeps of them, before they are written.

    So they need not be copied, and the forward and backward pass of the next step leave time for writing. Models on a
    GPU, whose steps are shorter than that and whose memory is another, are copied all the same.

    Args:
        checkpoints: of the same trainer.
    """

    def __init__(self, checkpoints: AtomicCheckpoints) -> None:
        self.checkpoints = checkpoints

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._protect(trainer, pl_module)  # Lightning does not announce checkpoints of weights alone

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self._protect(trainer, pl_module)

    def _protect(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if pl_module.device.type == "cpu":
            states = (state for optimizer in trainer.optimizers for state in optimizer.state.values())
            moments = [x for state in states for x in state.values() if isinstance(x, Tensor)]
            self.checkpoints.protected = frozenset(x.data_ptr() for x in [*pl_module.parameters(), *moments])

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        if self.checkpoints.protected:
            self.checkpoints.wait()


def _write(checkpoint: dict[str, Any], path: Path) -> None:
    with atomic_file(path) as temporary, _Watched(temporary) as file:
        try:
            torch.save(checkpoint, file)
        except Exception as error:
            # torch.save reports a full disk in several ways, depending on where it strikes.
            raise (file.failure or error) from error


class _Watched(io.FileIO):
    """A file that remembers why it could not be written."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "w")
        self.failure: OSError | None = None

    def write(self, content: Any) -> int:
        try:
            view = memoryview(content).cast("B")
            done = 0
            while done < len(view):
                done += super().write(view[done:]) or 0
            return done
        except OSError as error:
            self.failure = error
            raise
