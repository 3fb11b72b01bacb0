"""What processes that train together have in common."""

import json
import math
from pathlib import Path

import pytest
import torch

from merc.models.lightning_module import MeanLosses

EPOCHS = [[[(2.0, 3), (4.0, 1)], [(1.0, 4)]], [[(2.0, 3), (4.0, 1)], [(1.0, 4), (math.nan, 2)]]]
"""Of each process in each epoch: the losses of its batches, and of how many utterances they are."""


def write_means(rank: int, folder: Path) -> None:
    rendezvous = f"file://{folder}/rendezvous"
    torch.distributed.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=2)
    means, epochs = MeanLosses(), []
    for batches in EPOCHS:
        for loss, utterances in batches[rank]:
            means.add({"total": torch.tensor(loss), "text": torch.tensor(2 * loss)}, utterances)
        epochs.append({name: mean.item() for name, mean in means.take().items()})
    (folder / f"{rank}.json").write_text(json.dumps(epochs))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_all_processes_see_the_losses_of_all(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(write_means, (tmp_path,), nprocs=2)
    expected = [{"train/loss": mean, "train/loss_text": 2 * mean} for mean in (14 / 8, math.nan)]
    for rank in range(2):
        seen = json.loads((tmp_path / f"{rank}.json").read_text())
        assert seen == [pytest.approx(means, nan_ok=True) for means in expected]
