"""A run belongs to the features that it was trained on."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig

from merc.config import compose
from merc.data.corpora import MELD
from merc.data.store import fingerprint, write_store
from merc.data.synthetic import generate
from merc.errors import MercError
from merc.reporting.corpus import refuse_other_features
from merc.reporting.recorder import Recorder
from merc.reporting.run_folder import RunFolder
from merc.train import train


def write(store: Path, seed: int, sources: dict[str, str] | None = None) -> Path:
    conversations = generate(MELD, size=0.02, seed=seed, dims={"text": 6, "audio": 4, "visual": 3})
    write_store(store, conversations, corpus=None, sources=sources or {}, overwrite=store.exists())
    return store


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return write(tmp_path / "store", seed=1)


@pytest.fixture
def command(store: Path, tmp_path: Path) -> Callable[..., DictConfig]:
    def composed(*overrides: str) -> DictConfig:
        small = ("hyperparameters.hidden_dim=16", "trainer.max_epochs=2", "trainer=cpu", f"run_dir={tmp_path / 'run'}")
        return compose(["data=custom", f"data.store={store}", *small, *overrides])

    return composed


def test_the_fingerprint_is_of_the_content(tmp_path: Path) -> None:
    first, same, other = (
        fingerprint(write(tmp_path / name, seed, {name: "a"})) for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert first == same != other


def test_a_finished_run_is_not_taken_for_one_of_other_features(
    command: Callable[..., DictConfig], store: Path, tmp_path: Path
) -> None:
    scores = train(command())
    assert train(command("resume=true")) == scores
    write(store, seed=2)
    with pytest.raises(MercError, match="trained on other data"):
        train(command("resume=true"))
    with pytest.raises(MercError, match="trained on other data") as refused:
        train(command())
    assert "resume=true" not in str(refused.value), "which would be refused as well"
    assert train(command("overwrite=true"))
    refuse_other_features(RunFolder(tmp_path / "run"))
    shutil.rmtree(store)
    assert train(command("resume=true"))  # of a store that is gone nothing contradicts the scores


def test_a_run_does_not_go_on_with_other_features(
    command: Callable[..., DictConfig], store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(*_: object) -> None:
        raise RuntimeError("power cut")

    with monkeypatch.context() as patched:
        patched.setattr(Recorder, "on_fit_end", cut, raising=False)
        with pytest.raises(RuntimeError, match="power cut"):
            train(command())
    folder = RunFolder(tmp_path / "run")
    assert folder.last.exists()
    before = folder.corpus.read_text()
    write(store, seed=2)
    with pytest.raises(MercError, match="trained on other data"):
        train(command("resume=true"))
    assert folder.corpus.read_text() == before
    assert json.loads(before)["fingerprint"] != fingerprint(store)
    write(store, seed=1)
    assert train(command("resume=true"))
