"""A run that was stopped in whatever way ends as one that was not."""

import csv
import math
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from merc import resuming
from merc.config import compose
from merc.models.lightning_module import load_checkpoint
from merc.reporting.recorder import Recorder
from merc.reporting.run_folder import RunFolder
from merc.resuming import AtomicCheckpoints
from merc.train import train

SMALL = (
    "data=synthetic_meld",
    "data.size=0.03",
    "data.dims.text=16",
    "data.dims.audio=12",
    "data.dims.visual=8",
    "hyperparameters.hidden_dim=16",
    "hyperparameters.batch_size=8",
    "hyperparameters.learning_rate=0.01",
    "trainer=cpu",
)


class PowerCutError(Exception):
    """Stops a run as nothing in the program expects."""


def outcome(folder: RunFolder) -> tuple[list[dict[str, str]], str]:
    """Everything the run reports except times."""
    with folder.history.open() as file:
        rows = [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]
    return rows, folder.metrics.read_text()


@pytest.mark.parametrize("stop_after", [1, 3])
@pytest.mark.parametrize("before_writing", [True, False])
@pytest.mark.parametrize("variant", ["scheduler=cosine", "balancing.policy.update=epoch", "data.split=merged"])
def test_a_resumed_run_equals_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_after: int, before_writing: bool, variant: str
) -> None:
    overrides = [*SMALL, "trainer.max_epochs=5", "optimizer=adamw", variant]
    train(compose([*overrides, f"run_dir={tmp_path / 'whole'}"]))
    write: Callable[..., None] = Recorder._write

    def cut(recorder: Recorder, trainer: Any) -> None:
        if not before_writing:
            write(recorder, trainer)
        if len(recorder.history) == stop_after + before_writing:
            raise PowerCutError
        if before_writing:
            write(recorder, trainer)

    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "_write", cut)
        patch.setattr(resuming, "UNNOTICED_SECONDS", math.inf)  # every epoch has its checkpoint
        with pytest.raises(PowerCutError):
            train(compose([*overrides, f"run_dir={tmp_path / 'cut'}"]))
    torch.manual_seed(12345)  # another process has drawn other numbers by now
    train(compose([*overrides, f"run_dir={tmp_path / 'cut'}", "resume=true"]))
    assert outcome(RunFolder(tmp_path / "cut")) == outcome(RunFolder(tmp_path / "whole"))


class StopInThirdEpoch(L.Callback):
    """As Lightning's own callbacks stop a training."""

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        trainer.should_stop = trainer.current_epoch == 2


@pytest.mark.parametrize(("ending", "epochs"), [("trainer.max_epochs=4", 4), ("+trainer.max_steps=12", 3), ("", 3)])
def test_checkpoints_for_which_there_is_no_time_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, epochs: int
) -> None:
    monkeypatch.setattr(resuming, "UNNOTICED_SECONDS", -1.0)
    monkeypatch.setattr(resuming, "WAITING_SHARE", 0.0)
    saved: list[str] = []
    save = AtomicCheckpoints.save_checkpoint

    def remembered(
        checkpoints: AtomicCheckpoints, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        saved.append(f"{Path(path).stem} {checkpoint['epoch']}")
        save(checkpoints, checkpoint, path, storage_options)

    monkeypatch.setattr(AtomicCheckpoints, "save_checkpoint", remembered)
    overrides = [*SMALL, "trainer.max_epochs=5", *ending.split(), f"run_dir={tmp_path}"]
    train(compose(overrides), [] if ending else [StopInThirdEpoch()])
    folder = RunFolder(tmp_path)
    with folder.history.open() as file:
        scores = [float(row["validation/weighted_f1"]) for row in csv.DictReader(file)]
    assert len(scores) == epochs
    best, expected = -1.0, []
    for epoch, score in enumerate(scores):
        if score > best:
            expected.append(f"selected {epoch}")
        if score > best or epoch == len(scores) - 1:
            expected.append(f"last {epoch}")
        best = max(best, score)
    assert saved == expected
    assert load_checkpoint(folder.last)["epoch"] == len(scores) - 1


def test_a_run_that_was_cut_behind_its_last_checkpoint_is_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = [*SMALL, "trainer.max_epochs=2"]
    train(compose([*overrides, f"run_dir={tmp_path / 'whole'}"]))
    write: Callable[..., None] = Recorder.write_history

    def cut(recorder: Recorder, trainer: Any) -> None:
        if len(recorder.history) == 2:
            raise PowerCutError
        write(recorder, trainer)

    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "write_history", cut)
        with pytest.raises(PowerCutError):
            train(compose([*overrides, f"run_dir={tmp_path / 'cut'}"]))
    train(compose([*overrides, f"run_dir={tmp_path / 'cut'}", "resume=true"]))
    whole, resumed = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "cut")
    assert outcome(resumed) == outcome(whole)
    assert resumed.read_status()["epoch"] == whole.read_status()["epoch"] == 2


@pytest.mark.slow
def test_kills_at_random_moments_change_nothing(tmp_path: Path) -> None:
    whole, killed = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "killed")
    command = [sys.executable, "-m", "merc.train", *SMALL, "trainer.max_epochs=100"]

    def start(*arguments: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([*command, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    assert start(f"run_dir={whole.path}").wait() == 0
    moments = random.Random(0)  # noqa: S311
    stopped_at: list[int] = []
    for _ in range(4):
        process = start(f"run_dir={killed.path}", "resume=true")
        reached = stopped_at[-1] if stopped_at else 0
        while killed.read_status().get("epoch", 0) <= reached and process.poll() is None:
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.5))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "the run ended before it was killed"
        stopped_at.append(killed.read_status()["epoch"])
    assert start(f"run_dir={killed.path}", "resume=true").wait() == 0
    assert outcome(killed) == outcome(whole)
    assert stopped_at == sorted(set(stopped_at)), "the resumed runs did not go on"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_command_says_how_to_go_on(tmp_path: Path, number: signal.Signals) -> None:
    folder = RunFolder(tmp_path / "run")
    command = [sys.executable, "-m", "merc.train", *SMALL, "trainer.max_epochs=1000", f"run_dir={folder.path}"]
    # Started in the background of a script, the tests themselves may ignore SIGINT, which their children inherit.
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not folder.last.exists():
        time.sleep(0.05)
    process.send_signal(number)
    _, message = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "resume=true" in message
    assert "Traceback" not in message
    assert folder.read_status()["state"] == "failed"
