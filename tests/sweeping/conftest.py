"""Experiments of the tests' own, in a folder that Hydra searches beside the installed ones."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import OmegaConf

from merc.config import CONFIG_MODULE
from merc.sweeping.plan import Plan, Planner
from merc.train import main

MODALITIES = """# @package _global_
experiment:
  name: toy/modalities
  title: Combinations of modalities
  source: A paper, Table 1
  kind: table
  seeds: [1, 2, 3]
  reference: all
  columns: [weighted_f1]
  variants:
    text: ["data.modalities=[text]"]
    text without graph: ["data.modalities=[text]", "graph=none"]
    all: []
  smoke:
    seeds: [1]
    variants: [text, all]
"""

DENOISERS = """# @package _global_
defaults:
  - override /model: redifu
experiment:
  name: toy/denoisers
  title: Denoisers of the text
  source: A paper, Fig. 1
  kind: bars
  columns: [weighted_f1]
  seeds: [1]
  variants:
    none: [denoiser.text=none]
    recurrent: [denoiser.text=recurrent]
  published:
    meld:
      none: {weighted_f1: 61.5}
hyperparameters:
  dropout: 0.3
"""

TINY = (
    "data.size=0.02",
    "data.dims.text=16",
    "data.dims.audio=12",
    "data.dims.visual=8",
    "hyperparameters.hidden_dim=16",
    "hyperparameters.batch_size=8",
    "trainer=cpu",
    "trainer.max_epochs=1",
)


@pytest.fixture
def experiments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two experiments in its ``conf``, in which the test works from now on."""
    folder = tmp_path / "conf" / "experiment" / "toy"
    folder.mkdir(parents=True)
    (folder / "modalities.yaml").write_text(MODALITIES)
    (folder / "denoisers.yaml").write_text(DENOISERS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def expand(experiments: Path) -> Callable[..., list[Plan]]:
    """The plans of a multirun with these arguments."""

    def expand(*arguments: str) -> list[Plan]:
        search_path = create_config_search_path(f"pkg://{CONFIG_MODULE}")
        search_path.prepend("test", f"file://{experiments / 'conf'}", anchor="schema")
        try:
            loader = Hydra.create_main_hydra2("train", search_path).config_loader
            master = loader.load_configuration("train", [], run_mode=RunMode.MULTIRUN)
            OmegaConf.set_readonly(master.hydra, False)
            master.hydra.job.config_name = "train"
            return Planner(loader, master).expand(arguments)
        finally:
            GlobalHydra.instance().clear()

    return expand


@pytest.fixture
def command(
    experiments: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """``python -m merc.train`` in this process: exit status, stdout and stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["train.py", "--config-dir", str(experiments / "conf"), *arguments])
        GlobalHydra.instance().clear()
        capsys.readouterr()
        try:
            main()
        except SystemExit as stop:
            return int(stop.code or 0), *capsys.readouterr()
        return 0, *capsys.readouterr()

    return run


@pytest.fixture
def sweep(command: Callable[..., tuple[int, str, str]]) -> Callable[..., tuple[int, str, str]]:
    """``python -m merc.train -m``, without the progress of every run."""
    return partial(command, "-m", "trainer.enable_progress_bar=false")
