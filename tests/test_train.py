"""A run leaves a complete and true run folder."""

import csv
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, precision_recall_fscore_support, precision_score

from merc.config import compose
from merc.errors import MercError
from merc.models.lightning_module import EmotionRecognition, MeanLosses
from merc.reporting.recorder import DivergenceError, Recorder
from merc.reporting.run_folder import RunFolder
from merc.stacking import train_together
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
    "trainer.max_epochs=4",
)

Train = Callable[..., RunFolder]


@pytest.fixture
def run(tmp_path: Path) -> Train:
    """Train a small model into a folder of that name."""

    def run(name: str, *overrides: str) -> RunFolder:
        train(compose([*SMALL, f"run_dir={tmp_path / name}", *overrides]))
        return RunFolder(tmp_path / name)

    return run


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    path = tmp_path_factory.mktemp("runs") / "finished"
    train(compose([*SMALL, f"run_dir={path}"]))
    return RunFolder(path)


def metrics_of(folder: RunFolder) -> dict[str, Any]:
    metrics: dict[str, Any] = json.loads(folder.metrics.read_text())
    return metrics


def rows_of(folder: RunFolder) -> list[dict[str, str]]:
    with folder.history.open() as file:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


def test_the_run_folder_is_complete(finished: RunFolder) -> None:
    assert {path.name for path in finished.path.iterdir()} == {
        ".lock",
        "config.yaml",
        "environment.json",
        "status.json",
        "metrics.csv",
        "metrics.json",
        "predictions.parquet",
        "costs.json",
        "corpus.json",
        "checkpoints",
    }
    assert {path.name for path in finished.checkpoints.iterdir()} == {"last.ckpt", "selected.ckpt"}
    assert finished.read_status()["state"] == "finished"
    assert finished.read_status()["epoch"] == 4
    environment = json.loads(finished.environment.read_text())
    assert environment["versions"]["torch"] == torch.__version__
    assert environment["hardware"]["cores"] >= 1


def test_metrics_csv_has_curves_and_balancing_state(finished: RunFolder) -> None:
    rows = rows_of(finished)
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    columns = ["train/loss", "learning_rate", "validation/weighted_f1", "test/accuracy", "balancing/theta"]
    assert all(math.isfinite(float(row[column])) for row in rows for column in columns)


def test_mean_losses_are_those_of_all_utterances() -> None:
    means = MeanLosses()
    for _ in range(2):  # what was taken does not count again
        means.add({"total": torch.tensor(2.0, requires_grad=True), "text": torch.tensor(1.0)}, 3)
        means.add({"total": torch.tensor(4.0), "text": torch.tensor(0.0)}, 1)
        assert means.take() == {"train/loss": torch.tensor(2.5), "train/loss_text": torch.tensor(0.75)}


def test_metrics_json_agrees_with_metrics_csv(finished: RunFolder) -> None:
    rows, metrics = rows_of(finished), metrics_of(finished)
    validation = [float(row["validation/weighted_f1"]) for row in rows]
    test = [float(row["test/weighted_f1"]) for row in rows]
    assert metrics["selected"]["epoch"] == validation.index(max(validation)) + 1
    assert metrics["test_best"]["weighted_f1"] == max(test)
    for scores in metrics.values():
        assert scores["weighted_f1"] == test[scores["epoch"] - 1]
        assert {"accuracy", "weighted_precision", "macro_f1", "per_class"} < scores.keys()


def split_of(folder: RunFolder, split: str) -> pa.Table:
    table = pq.read_table(folder.predictions)
    return table.filter(pa.compute.equal(table["split"], split))


def test_scores_equal_those_of_scikit_learn_on_the_predictions(finished: RunFolder) -> None:
    table, selected = split_of(finished, "test"), metrics_of(finished)["selected"]
    labels, predictions = table["label"].to_pylist(), table["prediction"].to_pylist()
    names = list(selected["per_class"])
    options: dict[str, Any] = {"labels": names, "zero_division": 0}
    assert selected["accuracy"] == pytest.approx(accuracy_score(labels, predictions))
    assert selected["weighted_f1"] == pytest.approx(f1_score(labels, predictions, average="weighted", **options))
    assert selected["macro_f1"] == pytest.approx(f1_score(labels, predictions, average="macro", **options))
    precision = precision_score(labels, predictions, average="weighted", **options)
    assert selected["weighted_precision"] == pytest.approx(precision)
    per_class = precision_recall_fscore_support(labels, predictions, **options)
    for index, name in enumerate(names):
        expected = [float(column[index]) for column in per_class]
        assert list(selected["per_class"][name].values()) == pytest.approx(expected)


def test_the_validation_score_is_that_of_the_validation_predictions(finished: RunFolder) -> None:
    table, selected = split_of(finished, "validation"), metrics_of(finished)["selected"]
    score = f1_score(table["label"].to_pylist(), table["prediction"].to_pylist(), average="weighted", zero_division=0)
    assert selected["validation_weighted_f1"] == pytest.approx(score)


def test_probabilities_fit_predictions(finished: RunFolder) -> None:
    table = pq.read_table(finished.predictions)
    names = list(metrics_of(finished)["selected"]["per_class"])
    for prefix in ("", "text_", "audio_", "visual_"):
        probabilities = torch.tensor([table[f"{prefix}probability_{name}"].to_pylist() for name in names])
        torch.testing.assert_close(probabilities.sum(0), torch.ones(table.num_rows))
        assert [names[i] for i in probabilities.argmax(0)] == table[f"{prefix}prediction"].to_pylist()
    assert table["utterance"].to_pylist() == list(dict.fromkeys(table["utterance"].to_pylist()))


def test_checkpoints_are_plain_and_rebuild_the_model(finished: RunFolder) -> None:
    for path in (finished.last, finished.selected):
        checkpoint = torch.load(path, weights_only=True)
        module = EmotionRecognition.from_checkpoint(path)
        assert checkpoint["state_dict"].keys() == module.state_dict().keys()
        assert module.config["hyperparameters"]["hidden_dim"] == 16


def test_the_same_seed_gives_the_same_metrics(finished: RunFolder, run: Train) -> None:
    again, other = run("again"), run("other", "seed=2")
    assert rows_of(again) == rows_of(finished)
    assert again.metrics.read_text() == finished.metrics.read_text()
    assert rows_of(other) != rows_of(finished)


def test_merged_splits_select_nothing_and_say_so(run: Train, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run("merged", "data.split=merged", "trainer.max_epochs=2")
    assert list(metrics_of(folder)) == ["last", "test_best"]
    assert not folder.selected.exists()
    assert set(pq.read_table(folder.predictions)["split"].to_pylist()) == {"test"}
    assert "No epoch is selected" in capsys.readouterr().out


def test_the_closing_table_shows_classes_epochs_and_folder(run: Train, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run("table", "trainer.max_epochs=1")
    text = capsys.readouterr().out
    for part in ("surprise", "support", "selected", "last", "test_best", "optimistic"):
        assert part in text
    assert str(folder.path) in text.replace("\n", "")


def test_a_finished_run_is_shown_again_on_resume(run: Train, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run("twice", "trainer.max_epochs=1")
    shown = capsys.readouterr().out
    before = folder.status.read_text()
    run("twice", "trainer.max_epochs=1", "resume=true")
    assert capsys.readouterr().out == shown
    assert folder.status.read_text() == before


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["hyperparameters.learning_rate=1e15"], "diverged"),
        (["trainer.precision=11"], "trainer.precision=11 is none of 32-true, 16-mixed, bf16-mixed"),
        (["matmul_precision=hihg"], "matmul_precision=hihg is none of highest, high, medium. Did you mean 'high'?"),
        (["trainer.precision=bf16-true"], "trainer.precision=bf16-true is none of 32-true, 16-mixed, bf16-mixed"),
        (
            ["~scheduler", "+scheduler._target_=torch.optim.lr_scheduler.ReduceLROnPlateau"],
            "scheduler=cosine",
        ),
        (["data=meld", "data.store=nowhere"], "data=synthetic_meld needs none"),
    ],
)
def test_a_run_that_cannot_go_on_fails_with_one_message(tmp_path: Path, overrides: list[str], message: str) -> None:
    small = [key for key in SMALL if not key.startswith("data")] if "data=meld" in overrides else SMALL
    with pytest.raises(MercError, match=message):
        train(compose([*small, f"run_dir={tmp_path / 'run'}", *overrides]))
    status = RunFolder(tmp_path / "run").read_status()
    assert status["state"] == "failed"
    assert message.split()[-1] in status["error"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["+trainer.limit_val_batches=0"], "trainer.limit_val_batches=0 may leave a part out"),
        (["+trainer.limit_val_batches=0", "profile_steps=1"], "trainer.limit_val_batches=0 may"),
        (["+trainer.limit_val_batches=1"], "trainer.limit_val_batches=1 may"),
        (["+trainer.limit_val_batches=0.5"], "trainer.limit_val_batches=0.5 may"),
        (["+trainer.check_val_every_n_epoch=2"], "trainer.check_val_every_n_epoch is none of the keys that can be set"),
        (["+trainer.val_check_interval=0.5"], "trainer.val_check_interval is none"),
        (["+trainer.num_sanity_val_steps=2"], "trainer.num_sanity_val_steps is none"),
        (["+trainer.enable_model_summary=true"], r"trainer.enable_model_summary is none.*merc\.models.*Leave it out"),
        (["+trainer.fast_dev_run=true"], "trainer.fast_dev_run is none.*debug=fast"),
        (["+trainer.overfit_batches=1"], "trainer.overfit_batches is none.*limit_train_batches"),
        (["+trainer.logger=true"], "trainer.logger is none.*logger=tensorboard"),
        (["+trainer.callbacks=[]"], "trainer.callbacks is none"),
        (["+trainer.max_steps=3"], "trainer.max_steps=3 ends inside an epoch, which has 4 steps"),
        (["+trainer.max_steps=5"], "trainer.max_steps=5 ends inside an epoch, which has 4 steps"),
        (["+trainer.max_steps=3", "+trainer.accumulate_grad_batches=2"], "an epoch, which has 2 steps"),
        (["+trainer.max_steps=0"], "Nothing was trained.*trainer.max_steps"),
        (["+trainer.limit_train_batches=0"], "Nothing was trained.*trainer.limit_train_batches"),
    ],
)
def test_a_trainer_that_would_leave_epochs_without_their_scores_is_refused_before_training(
    tmp_path: Path, overrides: list[str], message: str
) -> None:
    folder = RunFolder(tmp_path)
    with pytest.raises(MercError, match=message):
        train(compose([*SMALL, f"run_dir={folder.path}", *overrides]))
    assert folder.read_status()["state"] == "failed"
    assert not folder.history.exists()
    assert not folder.checkpoints.exists()


def break_weights(monkeypatch: pytest.MonkeyPatch, seed: int, epoch: int) -> None:
    """Let the last step of an epoch, from 1, make a weight NaN."""
    begin: Callable[..., None] = Recorder.on_validation_start

    def broken(recorder: Recorder, trainer: Any, module: EmotionRecognition) -> None:
        if (module.config["seed"], trainer.current_epoch + 1) == (seed, epoch):
            torch.nn.init.constant_(next(module.parameters()), math.nan)
        begin(recorder, trainer, module)

    monkeypatch.setattr(Recorder, "on_validation_start", broken)


@pytest.mark.parametrize("split", ["official", "merged"])
def test_weights_that_the_last_step_breaks_fail_the_run(
    run: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: str
) -> None:
    break_weights(monkeypatch, seed=1, epoch=2)
    with pytest.raises(MercError, match=r"The (validation|test) loss is nan after epoch 2: training diverged"):
        run("broken", "seed=1", "trainer.max_epochs=2", f"data.split={split}")
    status = RunFolder(tmp_path / "broken").read_status()
    assert (status["state"], status["epoch"]) == ("failed", 1)


def test_a_seed_that_the_last_step_breaks_leaves_the_others_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_weights(monkeypatch, seed=2, epoch=2)
    errors = train_together(compose([*SMALL, "trainer.max_epochs=2", f"run_root={tmp_path}", "seed=[1,2,3]"]))
    assert [type(error) for error in errors] == [type(None), DivergenceError, type(None)]
    folders = [RunFolder(path) for path in sorted(tmp_path.glob("*/seed=*"))]
    assert [folder.read_status()["state"] for folder in folders] == ["finished", "failed", "finished"]


def test_a_full_disk_leaves_the_earlier_checkpoint_whole(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "full")
    # The checkpoints of this run take about 280 kB, its other files far less.
    script = (
        "import resource, signal, sys\n"
        "from merc import resuming\n"
        "from merc.reporting.recorder import Recorder\n"
        "from merc.train import main\n"
        "resuming.UNNOTICED_SECONDS = 1e9\n"  # every epoch has a checkpoint, however slow the disk
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "write = Recorder._write\n"
        "def limited(self, trainer):\n"
        "    if trainer.current_epoch == 2:\n"
        "        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "    write(self, trainer)\n"
        "Recorder._write = limited\n"
        "main()\n"
    )
    command = [sys.executable, "-c", script, *SMALL, f"run_dir={folder.path}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    assert "Error: Cannot write" in done.stderr
    assert "Traceback" not in done.stderr
    assert folder.read_status()["state"] == "failed"
    assert "File too large" in folder.read_status()["error"]
    assert torch.load(folder.last, weights_only=True)["epoch"] == 1
    assert {path.name for path in folder.checkpoints.iterdir()} == {"last.ckpt", "selected.ckpt"}


def test_metrics_csv_holds_the_learning_rate_of_each_epoch(run: Train) -> None:
    rows = rows_of(run("cosine", "scheduler=cosine"))
    expected = [1e-6 + (0.01 - 1e-6) * (1 + math.cos(math.pi * epoch / 4)) / 2 for epoch in range(4)]
    assert [float(row["learning_rate"]) for row in rows] == pytest.approx(expected)


@pytest.mark.slow
def test_two_processes_write_one_run_folder_and_count_every_utterance_once(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    arguments = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "data.size=0.025"]
    command = [sys.executable, "-m", "merc.train", *SMALL, *arguments, "trainer.max_epochs=2", f"run_dir={folder.path}"]
    command.remove("trainer=cpu")
    subprocess.run(command, check=True, capture_output=True, cwd=tmp_path)
    test = split_of(folder, "test")
    selected = metrics_of(folder)["selected"]
    assert sum(scores["support"] for scores in selected["per_class"].values()) == test.num_rows
    assert len(set(test["dialogue"].to_pylist())) % 2 == 1, "an even number of dialogues would prove nothing"
    score = f1_score(test["label"].to_pylist(), test["prediction"].to_pylist(), average="weighted", zero_division=0)
    assert selected["weighted_f1"] == pytest.approx(score)
    assert len(rows_of(folder)) == 2


def test_the_runs_of_a_logger_are_grouped_by_experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups: list[str] = []

    def note(config: Any, folder: RunFolder, group: str) -> None:
        groups.append(group)
        raise MercError("That is enough.")

    monkeypatch.setattr("merc.train.open_logger", note)
    for overrides in (["seed=1"], ["seed=2"], ["seed=1", "balancing=none"], [f"run_dir={tmp_path / 'mine'}"]):
        with pytest.raises(MercError, match="enough"):
            train(compose([*SMALL, f"run_root={tmp_path}", *overrides]))
    full, again, ablation, mine = groups
    assert full == again != ablation
    assert {path.name for path in tmp_path.iterdir()} == {full, ablation, "mine"}
    assert mine == "meld"


@pytest.mark.parametrize(
    "key",
    [
        "denoiser=none",
        "graph=none",
        "balancing=none",
        "scheduler=cosine",
        "trainer.precision=bf16-mixed",
        "+trainer.limit_val_batches=1.0",
        "debug=fast",
    ],
)
def test_variants_train(run: Train, key: str) -> None:
    assert "selected" in metrics_of(run("variant", "trainer.max_epochs=1", key))


@pytest.mark.parametrize("there", [False, True])
def test_bfloat16_that_the_device_does_not_have_is_warned_of(
    run: Train, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, there: bool
) -> None:
    monkeypatch.setattr("merc.train.multiplies_bfloat16", lambda _: there)
    run("single", "trainer.max_epochs=1")
    assert "bfloat16" not in caplog.text
    run("mixed", "trainer.max_epochs=1", "trainer.precision=bf16-mixed")
    assert ("bf16-mixed: this device only imitates bfloat16" in caplog.text) is not there


def test_a_stopped_run_says_how_to_go_on(run: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(EmotionRecognition, "on_train_batch_end", interrupt)
        with pytest.raises(KeyboardInterrupt, match="resume=true"):
            run("stopped")
    assert RunFolder(tmp_path / "stopped").read_status()["state"] == "failed"
