"""The optional loggers, without a network."""

from collections.abc import Callable
from pathlib import Path

import pytest
import wandb
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

from merc.config import compose
from merc.errors import MercError
from merc.reporting import loggers
from merc.reporting.run_folder import RunFolder
from merc.train import train


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., RunFolder]:
    def run(*overrides: str) -> RunFolder:
        small = ["data=synthetic_meld", "data.size=0.02", "hyperparameters.hidden_dim=16", "trainer=cpu"]
        train(compose([*small, "trainer.max_epochs=2", f"run_dir={tmp_path / 'run'}", *overrides]))
        return RunFolder(tmp_path / "run")

    return run


@pytest.mark.slow
def test_wandb_logs_offline_and_is_closed(
    run: Callable[..., RunFolder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    logged: dict[str, object] = {}
    init = wandb.init

    def spy(**arguments: object) -> object:
        logged.update(arguments)
        return init(**arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(wandb, "init", spy)
    run("logger=wandb", "seed=1")
    assert wandb.run is None
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    content = file.read_bytes()
    for name in (
        b"test/f1/sadness",
        b"balancing/theta",
        b"test/confusion_matrix",
        b"validation/weighted_f1",
        b"window",
    ):
        assert name in content
    assert logged["job_type"] == "seed=1"
    assert logged["group"]


def test_wandb_goes_offline_without_an_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(loggers, "_has_account", lambda: False)
    assert loggers.wandb_mode("auto") == "offline"
    monkeypatch.setattr(loggers, "_has_account", lambda: True)
    assert loggers.wandb_mode("auto") == "online"
    assert loggers.wandb_mode("disabled") == "disabled"
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert loggers.wandb_mode("auto") == "offline"


def test_the_same_folder_and_start_name_the_same_wandb_run(tmp_path: Path) -> None:
    first, second = RunFolder(tmp_path / "a"), RunFolder(tmp_path / "b")
    assert loggers.run_id(first) == loggers.run_id(first)
    assert loggers.run_id(first) != loggers.run_id(second)


def test_tensorboard_writes_curves(run: Callable[..., RunFolder]) -> None:
    folder = run("logger=tensorboard")
    events = EventAccumulator(str(folder.path / "tensorboard"))
    events.Reload()
    tags = events.Tags()["scalars"]
    assert {"test/weighted_f1", "test/f1/sadness", "balancing/theta", "train/loss"} <= set(tags)
    assert len(events.Scalars("test/weighted_f1")) == 2


def test_tensorboard_that_is_not_installed_is_explained(
    run: Callable[..., RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object, **__: object) -> None:
        raise ModuleNotFoundError("No module named 'tensorboard'")

    monkeypatch.setattr(loggers, "TensorBoardLogger", missing)
    with pytest.raises(MercError, match=r"merc\[tensorboard\]"):
        run("logger=tensorboard")
