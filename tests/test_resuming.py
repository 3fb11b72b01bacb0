"""Checkpoints that are written beside the training: whole, in order, of the moment they were asked for."""

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from merc import resuming
from merc.errors import MercError
from merc.resuming import AtomicCheckpoints


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
