"""``debug=profiler`` says where the time of training steps goes, and trains the same."""

import json
from pathlib import Path

import pytest

from merc.config import compose
from merc.reporting.run_folder import RunFolder
from merc.train import train

TINY = (
    "data.size=0.03",
    "data.dims.text=16",
    "data.dims.audio=12",
    "data.dims.visual=8",
    "hyperparameters.hidden_dim=16",
    "hyperparameters.batch_size=4",
    "trainer=cpu",
)


def run(path: Path, *overrides: str) -> RunFolder:
    train(compose([*TINY, "trainer.max_epochs=2", f"run_dir={path}", *overrides]))
    return RunFolder(path)


def test_stages_and_operators_of_some_steps(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = run(tmp_path / "run", "debug=profiler", "profile_steps=3")
    shown = capfd.readouterr()
    for stage in ("projection", "denoiser", "graph", "classifier", "objective"):
        assert f"forward: {stage}" in shown.out + shown.err
    assert "backward" in shown.out + shown.err
    assert "aten::mm" in (folder.path / "profile.txt").read_text()
    events = json.loads((folder.path / "trace.json").read_text())["traceEvents"]
    assert sum(event.get("name") == "forward: graph" and event.get("ph") == "X" for event in events) == 3


def test_an_epoch_of_a_single_step_is_profiled_too(tmp_path: Path) -> None:
    folder = run(tmp_path / "run", "profile_steps=5", "+trainer.limit_train_batches=1")
    assert "aten::mm" in (folder.path / "profile.txt").read_text()


def test_what_is_profiled_trains_the_same(tmp_path: Path) -> None:
    plain, profiled = run(tmp_path / "plain"), run(tmp_path / "profiled", "profile_steps=2")
    assert json.loads(plain.metrics.read_text()) == json.loads(profiled.metrics.read_text())
    assert not (plain.path / "profile.txt").exists()
