"""``python -m merc.bench.probe``: a training run that says when its first step begins and how much memory it took.

Takes what ``python -m merc.train`` takes. Two lines of JSON on stdout, between other output: ``{"first_step": …}``, in
seconds of the system's monotonic clock, and at the end ``{"resident": …}``, the peak in bytes.
"""

import json
import time
from typing import Any

import lightning as L
from omegaconf import DictConfig

from merc import cli
from merc.bench.machine import peak_resident
from merc.train import train


class FirstStep(L.Callback):
    """Says when the first batch is about to be trained on."""

    said = False

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if not self.said:
            print(json.dumps({"first_step": time.monotonic()}), flush=True)
            self.said = True


def probe(cfg: DictConfig) -> None:
    """Train as ``cfg`` says."""
    train(cfg, [FirstStep()])
    print(json.dumps({"resident": peak_resident()}), flush=True)


if __name__ == "__main__":
    cli.run(probe, "train")
