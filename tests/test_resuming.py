"""Checkpoints that are written beside the training: whole, in order, of the moment they were asked for."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from merc import resuming
from merc.errors import MercError
from merc.resuming import AtomicCheckpoints, UntouchedWhileWritten


@pytest.fixture
def checkpoints() -> Iterator[AtomicCheckpoints]:
    io = AtomicCheckpoints()
    yield io
    io.wait()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """The writer waits until this is set."""
    opened = threading.Event()
    write: Callable[..., None] = resuming._write

    def held(checkpoint: dict[str, Any], path: Path) -> None:
        assert opened.wait(30)
        write(checkpoint, path)

    monkeypatch.setattr(resuming, "_write", held)
    return opened


def load(path: Path) -> Any:
    return torch.load(path, weights_only=True)


def test_a_checkpoint_holds_what_was_there_when_it_was_asked_for(
    checkpoints: AtomicCheckpoints, gate: threading.Event, tmp_path: Path
) -> None:
    weights = torch.zeros(3)
    checkpoints.save_checkpoint({"epoch": 1, "state": {"weights": [weights]}}, tmp_path / "last.ckpt")
    weights += 1  # the next step of the training
    assert not (tmp_path / "last.ckpt").exists()
    gate.set()
    checkpoints.wait()
    written = load(tmp_path / "last.ckpt")
    assert written["epoch"] == 1
    assert written["state"]["weights"][0].tolist() == [0, 0, 0]


def test_checkpoints_are_written_in_order(checkpoints: AtomicCheckpoints, tmp_path: Path) -> None:
    for epoch in range(5):
        checkpoints.save_checkpoint({"epoch": epoch}, tmp_path / "last.ckpt")
        checkpoints.save_checkpoint({"epoch": epoch}, tmp_path / f"{epoch}.ckpt")
    checkpoints.teardown()
    assert load(tmp_path / "last.ckpt") == {"epoch": 4}
    assert sorted(path.name for path in tmp_path.iterdir()) == [*(f"{i}.ckpt" for i in range(5)), "last.ckpt"]


def test_the_second_checkpoint_waits_for_the_first(
    checkpoints: AtomicCheckpoints, gate: threading.Event, tmp_path: Path
) -> None:
    checkpoints.save_checkpoint({"epoch": 0}, tmp_path / "0.ckpt")
    second = threading.Thread(target=checkpoints.save_checkpoint, args=({"epoch": 1}, tmp_path / "1.ckpt"))
    second.start()
    second.join(0.1)
    assert second.is_alive()
    gate.set()
    second.join(30)
    assert (tmp_path / "0.ckpt").exists()


@pytest.mark.parametrize("then", ["wait", "teardown", "save_checkpoint"])
def test_what_goes_wrong_is_raised_at_the_next_call_and_only_there(
    checkpoints: AtomicCheckpoints, tmp_path: Path, then: str
) -> None:
    (tmp_path / "file").write_text("x")
    checkpoints.save_checkpoint({"epoch": 0}, tmp_path / "file" / "last.ckpt")
    with pytest.raises(MercError, match=r"Cannot write .*last\.ckpt"):
        getattr(checkpoints, then)(*([{"epoch": 1}, tmp_path / "next.ckpt"] if then == "save_checkpoint" else []))
    checkpoints.wait()
    checkpoints.save_checkpoint({"epoch": 2}, tmp_path / "next.ckpt")
    checkpoints.wait()
    assert load(tmp_path / "next.ckpt") == {"epoch": 2}


def test_checkpoints_are_due_while_the_training_need_not_wait_long(
    checkpoints: AtomicCheckpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints._since = now = 100.0
    monkeypatch.setattr("merc.resuming.time.perf_counter", lambda: now)
    assert checkpoints.due(0)
    checkpoints._waited = 1.0  # for what was saved then
    now += 5
    assert not checkpoints.due(1)
    now += 10
    assert not checkpoints.due(1), "the answer of an epoch is the same for all"
    assert checkpoints.due(1, required=True)
    assert checkpoints.due(2), "less than a tenth of the time since"
    assert checkpoints.due(3), "nobody has waited since"
    checkpoints._waited = 1.0
    assert checkpoints.due(4, required=True)
    assert checkpoints.due(4), "the same for all"
    assert checkpoints.due(5), "what was required counts as the last one"


class Line(L.LightningModule):
    """Two parameters, and a buffer that every forward pass changes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.register_buffer("seen", torch.zeros(()))

    def training_step(self, batch: Tensor, _: int) -> Tensor:
        self.seen += 1
        loss: Tensor = self.layer(batch).square().mean()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.1)


class SaveEachEpoch(L.Callback):
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.expected: list[Any] = []

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        trainer.save_checkpoint(self.folder / f"weights_{trainer.current_epoch}.ckpt", weights_only=True)
        trainer.save_checkpoint(self.folder / f"{trainer.current_epoch}.ckpt")
        moments = [x.clone() for state in trainer.optimizers[0].state.values() for x in state.values()]
        self.expected.append(({k: x.clone() for k, x in pl_module.state_dict().items()}, moments))


def test_a_slow_disk_gets_the_state_of_the_epoch_without_a_copy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    written: list[dict[str, Any]] = []
    write: Callable[..., None] = resuming._write

    def slowly(checkpoint: dict[str, Any], path: Path) -> None:
        time.sleep(0.2)
        written.append(checkpoint)
        write(checkpoint, path)

    monkeypatch.setattr(resuming, "_write", slowly)
    checkpoints, saving, module = AtomicCheckpoints(), SaveEachEpoch(tmp_path), Line()
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=3,
        callbacks=[saving, UntouchedWhileWritten(checkpoints)],
        plugins=[checkpoints],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(torch.ones(4, 1), batch_size=2))
    for epoch, (weights, moments) in enumerate(saving.expected):
        saved = load(tmp_path / f"{epoch}.ckpt")
        assert all(torch.equal(saved["state_dict"][name], x) for name, x in weights.items())
        states = saved["optimizer_states"][0]["state"].values()
        assert all(torch.equal(x, y) for x, y in zip((x for s in states for x in s.values()), moments, strict=True))
    for checkpoint in written:
        assert checkpoint["state_dict"]["layer.weight"].data_ptr() == module.layer.weight.data_ptr()


def test_nothing_waits_for_what_was_copied(
    checkpoints: AtomicCheckpoints, gate: threading.Event, tmp_path: Path
) -> None:
    checkpoints.save_checkpoint({"epoch": 0}, tmp_path / "last.ckpt")
    UntouchedWhileWritten(checkpoints).on_before_optimizer_step(
        L.Trainer(logger=False), Line(), torch.optim.Adam([torch.ones(1)])
    )
    assert not (tmp_path / "last.ckpt").exists()
    gate.set()


def test_waiting_for_nothing_returns(checkpoints: AtomicCheckpoints) -> None:
    checkpoints.wait()
    checkpoints.wait()


# A file limit is the nearest thing to a full disk that needs no privileges.
FULL_DISK = """
import resource, signal, sys
from merc.train import main
from merc.resuming import AtomicCheckpoints

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
save = AtomicCheckpoints.save_checkpoint
saved = []

def fill(self, checkpoint, path, storage_options=None):
    saved.append(path)
    if len(saved) == 3:  # both of the first epoch have been asked for
        self.wait()
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, -1))
    save(self, checkpoint, path, storage_options)

AtomicCheckpoints.save_checkpoint = fill
main()
"""


def test_a_full_disk_ends_a_run_in_one_message_and_leaves_the_last_whole_checkpoint(tmp_path: Path) -> None:
    overrides = ["data=synthetic_meld", "data.size=0.02", "hyperparameters.hidden_dim=16", "trainer=cpu"]
    overrides += ["data.dims.text=8", "data.dims.audio=8", "data.dims.visual=8", "trainer.max_epochs=3"]
    command = [sys.executable, "-c", FULL_DISK, *overrides, f"run_dir={tmp_path / 'run'}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    (message,) = (line for line in done.stderr.splitlines() if line.startswith("Error"))
    assert "File too large" in message
    assert ".ckpt" in message
    assert "Traceback" not in done.stderr
    files = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert files == ["last.ckpt", "selected.ckpt"]
    assert load(tmp_path / "run" / "checkpoints" / "last.ckpt")["epoch"] == 0
