"""What makes a resumed run end exactly as an uninterrupted one."""

import random
from io import BytesIO
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.plugins import TorchCheckpointIO

from merc.files import atomic_file


def seed_everything(*key: int) -> None:
    """Seed Python's, NumPy's and PyTorch's generators with one function of the numbers in ``key``."""
    seed = int(np.random.SeedSequence(key).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


class EpochSeeds(L.Callback):
    """Seeds all generators at the start of each epoch from the run's seed, the epoch and the rank.

    So an epoch draws the same numbers whatever was drawn before it. Nothing else of the generators need be saved.

    Args:
        seed: the run's seed.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        # Not on_train_epoch_start: Lightning makes the loader's iterator, which draws a number, before that hook in
        # the first epoch of a process and behind it in the others.
        if batch_idx == 0:
            seed_everything(self.seed, trainer.current_epoch, trainer.global_rank)


class AtomicCheckpoints(TorchCheckpointIO):
    """Checkpoint files that are whole or absent, whenever the process or the disk gives out."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write a checkpoint; an earlier one of that name stays until the new one is complete.

        Raises:
            MercError: the disk is full, or the folder cannot be written.
        """
        # By way of memory: torch.save itself reports a full disk in several ways, depending on where it strikes.
        content = BytesIO()
        torch.save(checkpoint, content)
        with atomic_file(Path(path)) as temporary:
            temporary.write_bytes(content.getbuffer())
