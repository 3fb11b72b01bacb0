"""A checkpoint is scored as the run that wrote it was."""

import csv
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file
from sklearn.metrics import f1_score

from merc.config import compose, instantiate, plain
from merc.data.corpora import MELD
from merc.data.datamodule import ConversationDataModule
from merc.data.store import write_store
from merc.data.synthetic import generate
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
    said = [*data, f"ckpt='{ckpt}'", *overrides]
    return evaluate(compose(said, "evaluate"), said)


def loss_of(folder: RunFolder, epoch: int) -> float:
    """The test loss of an epoch, as training wrote it down."""
    with folder.history.open() as file:
        return next(float(row["test/loss"]) for row in csv.DictReader(file) if row["epoch"] == str(epoch))


def test_a_checkpoint_scores_as_in_its_run(trained: RunFolder, tmp_path: Path) -> None:
    metrics = compose_evaluation(trained.selected, f"out={tmp_path / 'out'}")
    selected = json.loads(trained.metrics.read_text())["selected"]
    assert {name: metrics[name] for name in ("weighted_f1", "accuracy", "per_class")} == {
        name: selected[name] for name in ("weighted_f1", "accuracy", "per_class")
    }
    assert metrics["loss"] == loss_of(trained, selected["epoch"])
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == metrics
    run = pq.read_table(trained.predictions)
    test = run.filter([split == "test" for split in run["split"].to_pylist()])
    assert pq.read_table(tmp_path / "out" / "predictions.parquet").equals(test)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_every_split_can_be_scored(trained: RunFolder, split: str) -> None:
    data: ConversationDataModule = instantiate(plain(compose(SMALL))["data"])
    data.setup()
    part = data.parts[split]
    with torch.no_grad():
        module = EmotionRecognition.from_checkpoint(trained.last)
        predicted = module(part.batch(range(len(part.lengths)))).fused.argmax(-1)
    metrics = compose_evaluation(trained.last, f"split={split}")
    assert metrics["split"] == split
    assert metrics["weighted_f1"] == pytest.approx(f1_score(part.labels, predicted, average="weighted"))
    support = [scores["support"] for scores in metrics["per_class"].values()]
    assert support == torch.bincount(part.labels, minlength=len(support)).tolist()


def test_every_batch_counts(trained: RunFolder) -> None:
    whole, parts = compose_evaluation(trained.last), compose_evaluation(trained.last, "data.evaluation_batch_size=2")
    # Weights of classes make the loss of a batch the mean of no other set of utterances.
    assert parts.pop("loss") != whole.pop("loss")
    assert parts == whole


def test_with_several_devices_each_dialogue_counts_once(trained: RunFolder, tmp_path: Path) -> None:
    # An odd number of dialogues, which two devices cannot share.
    several = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "data.size=0.025"]
    command = [sys.executable, "-m", "merc.evaluate", f"ckpt={trained.path}", *several, f"out={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    per_class = json.loads((tmp_path / "metrics.json").read_text())["per_class"]
    predictions = pq.read_table(tmp_path / "predictions.parquet")
    assert len(set(predictions["dialogue"].to_pylist())) % 2 == 1
    labels = Counter(predictions["label"].to_pylist())
    assert {name: scores["support"] for name, scores in per_class.items() if scores["support"]} == labels


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


def test_what_is_no_checkpoint_is_told_without_pytorchs_advice_to_trust_it(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text("# merc")
    with pytest.raises(MercError, match=r"nothing in it was executed\. \(UnpicklingError\)$") as refused:
        compose_evaluation(path)
    assert "weights_only" not in str(refused.value)


def trained_with(path: Path, *overrides: str) -> RunFolder:
    train(compose([*SMALL, "trainer.max_epochs=1", f"run_dir={path}", *overrides]))
    return RunFolder(path)


@pytest.mark.parametrize("fraction", ["null", "0.3"])
def test_the_data_are_those_of_training(tmp_path: Path, fraction: str) -> None:
    folder = trained_with(
        tmp_path / "run",
        "seed=4",
        f"data.validation_fraction={fraction}",
        "data.signal.text=2.5",
        "data.modalities=[text,audio]",
        "data.standardize=zscore",
    )
    selected = json.loads(folder.metrics.read_text())["selected"]
    # All that the command says: which corpus, where to compute, what is otherwise given for every run here.
    metrics = compose_evaluation(folder.selected, "split=validation", data=("data=synthetic_meld", "trainer=cpu"))
    assert metrics["weighted_f1"] == selected["validation_weighted_f1"]
    metrics = compose_evaluation(folder.selected, data=("data=synthetic_meld", "trainer=cpu"))
    assert metrics["per_class"] == selected["per_class"]


def test_features_are_standardised_as_in_training(tmp_path: Path) -> None:
    folder = trained_with(tmp_path / "run", "data.standardize=zscore")
    own, merged = (compose_evaluation(folder.last, *said) for said in ([], ["data.split=merged"]))
    assert own == merged  # the same test dialogues, whatever means and deviations the training part would have now


def test_a_store_that_was_replaced_is_not_taken_for_that_of_training(tmp_path: Path) -> None:
    def prepare(seed: int) -> Path:
        conversations = generate(MELD, size=0.02, seed=seed, dims={"text": 6, "audio": 4, "visual": 3})
        write_store(tmp_path / "store", conversations, corpus=None, sources={}, overwrite=seed > 1)
        return tmp_path / "store"

    store = prepare(seed=1)
    small = ("hyperparameters.hidden_dim=16", "trainer.max_epochs=1", "trainer=cpu", f"run_dir={tmp_path / 'run'}")
    train(compose(["data=custom", f"data.store={store}", "model=amb_dsgdn_released", *small]))
    ckpt = RunFolder(tmp_path / "run").last
    trained_on = compose_evaluation(ckpt, data=())
    prepare(seed=2)
    with pytest.raises(MercError, match=f"was replaced.*data.store={store}"):
        compose_evaluation(ckpt, data=())
    assert compose_evaluation(ckpt, f"data.store={store}", data=("data=custom",)) != trained_on


def test_what_the_command_says_about_the_data_wins(trained: RunFolder) -> None:
    smaller, same = compose_evaluation(trained.last, "data.size=0.02"), compose_evaluation(trained.last)
    assert smaller["per_class"] != same["per_class"]


@pytest.mark.parametrize(
    ("training", "command", "message"),
    [
        ("data.split=merged", [], "no validation split"),
        ("data.split=merged", ["data.split=official"], "some of them were training data"),
        ("data.validation_fraction=0.3", ["data.validation_fraction=null"], "some of them were training data"),
        ("data.validation_fraction=0.3", ["data.seed=1234"], "some of them were training data"),
    ],
)
def test_training_data_are_not_scored_as_validation(
    tmp_path: Path, training: str, command: list[str], message: str
) -> None:
    folder = trained_with(tmp_path / "run", training)
    with pytest.raises(MercError, match=message):
        compose_evaluation(folder.last, "split=validation", *command)
    compose_evaluation(folder.last, "split=test", *command)


@pytest.mark.parametrize("override", ["model=redifu", "denoiser=none", "resume=true", "seed=4", "logger=wandb"])
def test_overrides_without_effect_are_refused(trained: RunFolder, override: str) -> None:
    with pytest.raises(MercError, match=f"^{override} is without effect"):
        compose_evaluation(trained.last, override)


@pytest.mark.parametrize("override", ["draws=9", "noisy=[audio]"])
def test_settings_of_noise_are_refused_without_it(trained: RunFolder, override: str) -> None:
    with pytest.raises(MercError, match="without effect: there is no noise"):
        compose_evaluation(trained.last, override)


@pytest.mark.parametrize(
    "override",
    ["resume=true", "overwrite=true", "run_dir=x", "logger=wandb", "variants=[x]", "+optimizer.amsgrad=true"],
)
def test_settings_of_training_are_refused_with_a_released_state_dict(tmp_path: Path, override: str) -> None:
    torch.save({"weight": torch.zeros(1)}, tmp_path / "released.pt")
    with pytest.raises(MercError, match="without effect: nothing is trained here"):
        compose_evaluation(tmp_path / "released.pt", override, data=SMALL)


def altered(ckpt: Path, path: Path, target: str, plugins: list[str]) -> Path:
    """The checkpoint with a gate of that name in its configuration."""
    content = torch.load(ckpt, weights_only=True)
    content["merc"]["config"] |= {"gate": {"default": {"_target_": target}}, "plugins": plugins}
    torch.save(content, path)
    return path


@pytest.mark.parametrize(
    "target", ["torch.os.popen", "torch.os.system", "shutil.rmtree", "merc.files.write_text", "torch.load"]
)
def test_a_checkpoint_runs_no_code_of_its_choice(trained: RunFolder, tmp_path: Path, target: str) -> None:
    ckpt = altered(trained.last, tmp_path / "evil.ckpt", target, ["os", "posix", "shutil"])
    with pytest.raises(MercError, match="names '"):
        compose_evaluation(ckpt)


def test_a_checkpoint_of_another_version_is_explained(trained: RunFolder, tmp_path: Path) -> None:
    content = torch.load(trained.last, weights_only=True)
    del content["merc"]["info"]["scales"]
    torch.save(content, tmp_path / "old.ckpt")
    with pytest.raises(MercError, match="another version of merc: it lacks 'scales'"):
        compose_evaluation(tmp_path / "old.ckpt")


def test_a_checkpoint_trusts_the_commands_plugins_alone(
    trained: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_parts.py").write_text("from merc.models.classifiers import WeightedLogits\n\n\n"
                                           "class Own(WeightedLogits):\n    pass\n")  # fmt: skip
    monkeypatch.syspath_prepend(tmp_path)
    content = torch.load(trained.last, weights_only=True)
    content["merc"]["config"]["classifier"]["_target_"] = "own_parts.Own"
    content["merc"]["config"]["plugins"] = ["own_parts"]
    torch.save(content, tmp_path / "own.ckpt")
    with pytest.raises(MercError, match=r"plugins=\[own_parts\]"):
        compose_evaluation(tmp_path / "own.ckpt")
    expected = compose_evaluation(trained.last)["per_class"]
    assert compose_evaluation(tmp_path / "own.ckpt", "plugins=[own_parts]")["per_class"] == expected


def test_products_are_as_exact_as_the_command_says(trained: RunFolder) -> None:
    compose_evaluation(trained.selected, "matmul_precision=medium")
    assert torch.get_float32_matmul_precision() == "medium"
    compose_evaluation(trained.selected)
    assert torch.get_float32_matmul_precision() == "highest"


def test_a_run_is_scored_in_its_precision_unless_the_command_says_another(tmp_path: Path) -> None:
    folder = trained_with(tmp_path / "run", "trainer.precision=bf16-mixed", "matmul_precision=medium")
    run = pq.read_table(folder.predictions)
    test = run.filter([split == "test" for split in run["split"].to_pylist()])

    def predictions(*overrides: str) -> pa.Table:
        compose_evaluation(folder.selected, f"out='{tmp_path}'", *overrides)
        return pq.read_table(tmp_path / "predictions.parquet")

    torch.set_float32_matmul_precision("highest")
    assert predictions().equals(test)
    assert torch.get_float32_matmul_precision() == "medium"
    assert not predictions("trainer.precision=32-true").equals(test)
    assert predictions("trainer.precision=bf16-mixed").equals(test)
    predictions("matmul_precision=high")
    assert torch.get_float32_matmul_precision() == "high"
