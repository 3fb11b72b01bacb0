"""The optional loggers, without a network."""

from collections.abc import Callable
from pathlib import Path

import pytest
import wandb
from lab import Lab
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

from merc.config import compose
from merc.errors import MercError
from merc.reporting import loggers, wandb_account
from merc.reporting.run_folder import RunFolder
from merc.sweeping.manifest import sweeps_of
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
        b"test/predictions",
        b"validation/weighted_f1",
        b"window",
    ):
        assert name in content
    assert logged["job_type"] == "seed=1"
    assert logged["group"]


def test_runs_of_a_sweep_are_grouped_by_experiment_and_variant(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    path = "model-0123/seed=2"
    for experiment in ("mine/one", "mine/two"):
        lab.sweep(experiment, [lab.job("text", 2, path), lab.job("all", 2, "model-4567/seed=2")])
    folder = RunFolder(lab.run(path))
    logger = loggers.wandb_logger(folder, "model-0123", 2, "merc", None, "offline")
    try:
        run = logger.experiment
        sweep, _ = sweeps_of(folder.path)[0]
        assert run.group == f"mine/one: text ({sweep.name})"
        assert (run.job_type, run.tags) == ("seed=2", ("mine/one", "mine/two"))
        assert run.id == loggers.run_id(folder)
    finally:
        wandb.finish()


def test_wandb_goes_offline_without_an_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(wandb_account, "has_account", lambda: False)
    assert wandb_account.wandb_mode("auto") == "offline"
    monkeypatch.setattr(wandb_account, "has_account", lambda: True)
    assert wandb_account.wandb_mode("auto") == "online"
    assert wandb_account.wandb_mode("disabled") == "disabled"
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert wandb_account.wandb_mode("auto") == "offline"


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
