"""A checkpoint is scored as the run that wrote it was."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from merc.config import compose
from merc.errors import MercError
from merc.evaluate import evaluate
from merc.models.lightning_module import EmotionRecognition
from merc.models.released import released_views
from merc.reporting.run_folder import RunFolder
from merc.train import train

DATA = (
    "data=synthetic_meld",
    "data.size=0.03",
    "data.dims.text=16",
    "data.dims.audio=12",
    "data.dims.visual=8",
    "trainer=cpu",
)
SMALL = (*DATA, "model=amb_dsgdn_released", "hyperparameters.hidden_dim=16", "hyperparameters.batch_size=8")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    path = tmp_path_factory.mktemp("runs") / "run"
    train(compose([*SMALL, "trainer.max_epochs=2", f"run_dir={path}"]))
    return RunFolder(path)


def compose_evaluation(ckpt: Path, *overrides: str, data: tuple[str, ...] = DATA) -> dict[str, object]:
    return evaluate(compose([*data, f"ckpt='{ckpt}'", *overrides], "evaluate"))


def test_a_checkpoint_scores_as_in_its_run(trained: RunFolder, tmp_path: Path) -> None:
    metrics = compose_evaluation(trained.selected, f"out={tmp_path / 'out'}")
    selected = json.loads(trained.metrics.read_text())["selected"]
    assert {name: metrics[name] for name in ("weighted_f1", "accuracy", "per_class")} == {
        name: selected[name] for name in ("weighted_f1", "accuracy", "per_class")
    }
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == metrics
    run = pq.read_table(trained.predictions)
    test = run.filter([split == "test" for split in run["split"].to_pylist()])
    assert pq.read_table(tmp_path / "out" / "predictions.parquet").equals(test)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_every_split_can_be_scored(trained: RunFolder, split: str) -> None:
    assert compose_evaluation(trained.last, f"split={split}")["split"] == split


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_released_state_dict_scores_as_the_same_weights_do(trained: RunFolder, tmp_path: Path, suffix: str) -> None:
    module = EmotionRecognition.from_checkpoint(trained.last)
    views = released_views(module.model, "amb_dsgdn")
    state = {name: view.clone().contiguous() for name, view in views.items()}
    released = tmp_path / f"released{suffix}"
    torch.save(state, released) if suffix == ".pt" else save_file(state, released)
    expected = compose_evaluation(trained.last)
    assert compose_evaluation(released, data=SMALL)["per_class"] == expected["per_class"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.dims.text=17"], "takes text 16.*has text 17"),
        (["data.modalities=[text,audio]"], r"data\.modalities=\[text,audio,visual\]"),
        (["data.standardize=zscore"], r"Add data\.standardize=none"),
        (["split=tset"], "Did you mean 'test'"),
        (["split=validation", "data.split=merged"], "no validation split"),
    ],
)
def test_data_that_do_not_fit_are_refused(trained: RunFolder, overrides: list[str], message: str) -> None:
    with pytest.raises(MercError, match=message):
        compose_evaluation(trained.last, *overrides)


def test_other_classes_are_refused(trained: RunFolder) -> None:
    with pytest.raises(MercError, match="apart"):
        compose_evaluation(trained.last, data=("data=synthetic_iemocap", "data.size=0.03"))


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".safetensors"])
@pytest.mark.parametrize("content", [None, b"rubbish"])
def test_missing_and_damaged_files_are_explained(tmp_path: Path, suffix: str, content: bytes | None) -> None:
    path = tmp_path / f"file{suffix}"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(MercError, match=str(path)):
        compose_evaluation(path)
