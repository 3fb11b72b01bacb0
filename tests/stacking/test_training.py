"""Several seeds at once: every run folder is that of a run alone, whatever befalls the others."""

import csv
import gc
import json
import math
import shutil
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from merc import resuming
from merc.config import compose
from merc.errors import MercError
from merc.evaluate import evaluate
from merc.reporting.recorder import DivergenceError, Recorder
from merc.reporting.run_folder import RunFolder, RunLockedError, claim, run_path
from merc.stacking import train_together
from merc.stacking.module import StackedRecognition
from merc.train import close_run, run_config, run_trainer, train
from tests.stacking.conftest import STILL

SMALL = (
    "data=synthetic_meld",
    "data.size=0.02",
    "data.dims.text=12",
    "data.dims.audio=8",
    "data.dims.visual=4",
    "hyperparameters.hidden_dim=16",
    "hyperparameters.heads=2",
    "hyperparameters.fusion_heads=2",
    "hyperparameters.batch_size=8",
    "hyperparameters.learning_rate=1e-3",
    "trainer=cpu",
    "trainer.max_epochs=2",
    "trainer.enable_progress_bar=false",
)
EXACT = (*STILL, "balancing=none")
TIMES = ("seconds", "evaluation_seconds", "seeds_at_once")


class PowerCutError(BaseException):
    """Stops a process as nothing in the program expects."""


def together(root: Path, *overrides: str, seeds: str = "1,2") -> list[Exception | None]:
    return train_together(compose([*SMALL, *overrides, f"run_root={root}", f"seed=[{seeds}]"]))


def alone(root: Path, *overrides: str, seeds: str = "1,2") -> None:
    for seed in seeds.split(","):
        train(compose([*SMALL, *overrides, f"run_root={root}", f"seed={seed}"]))


def folders(root: Path) -> list[RunFolder]:
    return [RunFolder(path) for path in sorted(root.glob("*/seed=*"))]


def assert_close(ours: Any, expected: Any, where: str = "") -> None:
    """Equal but for rounding, times and whose they are: nested plain values and tensors."""
    assert type(ours) is type(expected), where
    if isinstance(expected, dict):
        assert list(ours) == list(expected), where
        for key, value in expected.items():
            if key not in TIMES:
                assert_close(ours[key], value, f"{where}/{key}")
    elif isinstance(expected, list | tuple):
        assert len(ours) == len(expected), where
        for i, (one, other) in enumerate(zip(ours, expected, strict=True)):
            assert_close(one, other, f"{where}/{i}")
    elif isinstance(expected, Tensor):
        # Adam makes steps of the rounding in gradients that are 0, such as those of the keys' biases.
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-3, msg=lambda text: f"{where}: {text}")
    elif isinstance(expected, float):
        assert ours == pytest.approx(expected, rel=1e-4, abs=1e-6), where
    else:
        assert ours == expected, where


def table(folder: RunFolder) -> list[dict[str, float]]:
    with folder.history.open() as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def at_once(folder: RunFolder) -> int | None:
    """How many seeds the times of training are of, as costs.json has it."""
    seeds: int | None = json.loads(folder.costs.read_text()).get("seeds_at_once", {}).get("seeds")
    return seeds


def outcome(folder: RunFolder) -> tuple[list[dict[str, float]], str]:
    """Everything the run reports except times, to the last digit."""
    return [{k: v for k, v in row.items() if k not in TIMES} for row in table(folder)], folder.metrics.read_text()


@pytest.mark.parametrize("choice", ["model=amb_dsgdn scheduler=cosine", "model=redifu graph.cross_modal.dropout=0"])
def test_whole_runs_equal_those_of_the_seeds_alone(tmp_path: Path, choice: str) -> None:
    overrides = [*choice.split(), *EXACT]
    alone(tmp_path / "a", *overrides)
    assert together(tmp_path / "b", *overrides) == [None, None]
    for ours, expected in zip(folders(tmp_path / "b"), folders(tmp_path / "a"), strict=True):
        assert ours.path.relative_to(tmp_path / "b") == expected.path.relative_to(tmp_path / "a")
        assert sorted(p.name for p in ours.path.rglob("*")) == sorted(p.name for p in expected.path.rglob("*"))
        assert ours.config.read_text().replace(str(tmp_path / "b"), str(tmp_path / "a")) == expected.config.read_text()
        assert_close(table(ours), table(expected))
        assert json.loads(ours.metrics.read_text()) == json.loads(expected.metrics.read_text())
        assert ours.corpus.read_text() == expected.corpus.read_text()
        assert ours.read_status()["state"] == "finished"
        for name in ("last", "selected"):
            one, other = (torch.load(getattr(f, name), weights_only=True) for f in (ours, expected))
            one["merc"]["config"]["run_root"] = other["merc"]["config"]["run_root"]
            assert_close(one, other)
        costs = json.loads(ours.costs.read_text())
        assert costs["seeds_at_once"]["seeds"] == 2
        assert costs["seeds_at_once"]["train_seconds"] > 0
        assert costs.keys() | costs["seeds_at_once"].keys() == {
            *json.loads(expected.costs.read_text()), "seeds_at_once", "seeds",
        }  # fmt: skip


def test_a_run_of_a_stack_is_evaluated_like_any_other(tmp_path: Path) -> None:
    together(tmp_path, "trainer.max_epochs=1")
    for folder in folders(tmp_path):
        scores = evaluate(compose([f'ckpt="{folder.path}"'], "evaluate"))
        stored = json.loads(folder.metrics.read_text())["selected"]
        assert scores["weighted_f1"] == pytest.approx(stored["weighted_f1"])


def test_the_same_stack_gives_the_same_numbers_with_masks_of_each_seeds_own(tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert together(tmp_path / name, "trainer.max_epochs=1", "hyperparameters.warmup_epochs=0") == [None, None]
    outcomes = [list(map(outcome, folders(tmp_path / name))) for name in ("a", "b")]
    assert outcomes[0] == outcomes[1]
    assert outcomes[0][0] != outcomes[0][1]
    assert any("balancing/q_text" in row for row in outcomes[0][0][0])


def cut(monkeypatch: pytest.MonkeyPatch, seed: int, epoch: int, before_writing: bool) -> None:
    """Cut the power when a seed writes that epoch, from 1."""
    write: Callable[..., None] = Recorder._write

    def until(recorder: Recorder, trainer: Any) -> None:
        here = recorder.folder.path.name == f"seed={seed}" and len(recorder.history) == epoch
        if not before_writing:
            write(recorder, trainer)
        if here:
            trainer.strategy.checkpoint_io.wait()
            raise PowerCutError
        if before_writing:
            write(recorder, trainer)

    monkeypatch.setattr(Recorder, "_write", until)
    monkeypatch.setattr(resuming, "UNNOTICED_SECONDS", math.inf)  # every epoch has its checkpoint


def test_seeds_that_are_equally_far_go_on_together_as_if_nothing_had_happened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variant = ("scheduler=cosine", "balancing.policy.update=epoch")
    together(tmp_path / "whole", *variant)
    with monkeypatch.context() as patch:
        cut(patch, seed=2, epoch=1, before_writing=False)
        with pytest.raises(PowerCutError):
            together(tmp_path / "cut", *variant)
    assert {folder.read_status()["epoch"] for folder in folders(tmp_path / "cut")} == {1}
    torch.manual_seed(12345)
    assert together(tmp_path / "cut", *variant, "resume=true") == [None, None]
    assert list(map(outcome, folders(tmp_path / "cut"))) == list(map(outcome, folders(tmp_path / "whole")))


def test_seeds_go_on_together_from_the_last_epoch_that_had_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = ("hyperparameters.warmup_epochs=1", "trainer.max_epochs=7", "hyperparameters.learning_rate=1e-2")
    together(tmp_path / "whole", *overrides, seeds="1,2,3")
    with monkeypatch.context() as patch:
        patch.setattr(resuming, "UNNOTICED_SECONDS", -1.0)  # never is there time for checkpoints
        patch.setattr(resuming, "WAITING_SHARE", 0.0)
        diverge(patch, {}, stop=7)
        with pytest.raises(PowerCutError):
            together(tmp_path / "cut", *overrides, seeds="1,2,3")
    scores = [[row["validation/weighted_f1"] for row in table(folder)] for folder in folders(tmp_path / "cut")]
    selected = [own.index(max(own)) for own in scores]
    reached = [torch.load(folder.last, weights_only=True)["epoch"] for folder in folders(tmp_path / "cut")]
    assert reached == [max(selected)] * 3
    assert together(tmp_path / "cut", *overrides, "resume=true", seeds="1,2,3") == [None] * 3
    assert list(map(outcome, folders(tmp_path / "cut"))) == list(map(outcome, folders(tmp_path / "whole")))


def test_seeds_that_are_not_equally_far_go_on_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone(tmp_path / "whole", *EXACT, seeds="1,2,3")
    with monkeypatch.context() as patch:
        cut(patch, seed=2, epoch=2, before_writing=True)
        with pytest.raises(PowerCutError):
            together(tmp_path / "cut", *EXACT, seeds="1,2,3")
    # The third seed was not asked for its second epoch any more.
    assert [folder.read_status()["epoch"] for folder in folders(tmp_path / "cut")] == [2, 1, 1]
    assert together(tmp_path / "cut", *EXACT, "resume=true", seeds="1,2,3") == [None] * 3
    for ours, expected in zip(folders(tmp_path / "cut"), folders(tmp_path / "whole"), strict=True):
        assert_close(table(ours), table(expected))
        assert at_once(ours) == 3, "for the first epoch"


def test_a_seed_of_a_stack_goes_on_alone_and_single_runs_go_on_as_a_stack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone(tmp_path / "whole", *EXACT)
    with monkeypatch.context() as patch:
        cut(patch, seed=2, epoch=1, before_writing=False)
        with pytest.raises(PowerCutError):
            together(tmp_path / "stack", *EXACT)
        with pytest.raises(PowerCutError):
            alone(tmp_path / "mixed", *EXACT, seeds="2")
    first = folders(tmp_path / "stack")[0].path
    shutil.copytree(first, tmp_path / "mixed" / first.parent.name / first.name)
    alone(tmp_path / "stack", *EXACT, "resume=true", seeds="2")
    assert together(tmp_path / "mixed", *EXACT, "resume=true") == [None, None]
    for name, seed in (("stack", 1), ("mixed", 0), ("mixed", 1)):
        assert_close(table(folders(tmp_path / name)[seed]), table(folders(tmp_path / "whole")[seed]))
        assert at_once(folders(tmp_path / name)[seed]) == 2


def test_finished_seeds_are_skipped_and_a_single_one_is_trained_as_ever(tmp_path: Path) -> None:
    alone(tmp_path / "a", "trainer.max_epochs=1")
    alone(tmp_path / "b", "trainer.max_epochs=1", seeds="1")
    finished = folders(tmp_path / "b")[0].metrics
    before = finished.stat().st_mtime_ns
    assert together(tmp_path / "b", "trainer.max_epochs=1", "resume=true") == [None, None]
    assert finished.stat().st_mtime_ns == before
    assert list(map(outcome, folders(tmp_path / "b"))) == list(map(outcome, folders(tmp_path / "a")))


def diverge(monkeypatch: pytest.MonkeyPatch, epochs: dict[int, int], stop: int = 0) -> None:
    """Let seeds diverge in these epochs, from 1, and the power fail in another."""
    end: Callable[..., None] = Recorder.on_train_epoch_end

    def at_the_end(recorder: Recorder, *arguments: Any) -> None:
        epoch = len(recorder.history) + 1
        if epoch == stop:
            arguments[0].strategy.checkpoint_io.wait()
            raise PowerCutError
        if epochs.get(int(recorder.folder.path.name.removeprefix("seed="))) == epoch:
            raise DivergenceError(f"The training loss is nan after epoch {epoch}.")
        end(recorder, *arguments)

    monkeypatch.setattr(Recorder, "on_train_epoch_end", at_the_end)


def test_a_seed_that_diverges_or_is_elsewhere_leaves_the_others_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone(tmp_path / "whole", *EXACT, seeds="1,3")
    diverge(monkeypatch, {2: 2})
    name = folders(tmp_path / "whole")[0].path.parent.name
    taken = RunFolder(tmp_path / "cut" / name / "seed=4")
    with claim(taken, {}, resume=False, overwrite=False):
        errors = together(tmp_path / "cut", *EXACT, seeds="1,2,3,4")
    assert [type(error) for error in errors] == [type(None), DivergenceError, type(None), RunLockedError]
    first, second, third, _ = folders(tmp_path / "cut")
    assert second.read_status()["state"] == "failed"
    assert second.read_status()["error"] == "The training loss is nan after epoch 2."
    assert second.read_status()["epoch"] == 1
    for ours, expected in zip((first, third), folders(tmp_path / "whole"), strict=True):
        assert_close(table(ours), table(expected))


def test_what_befalls_all_fails_all_and_stopping_stops_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise MercError("The disk is full.")

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt("Stopped.")

    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "_write", refuse)
        assert [str(error) for error in together(tmp_path)] == ["The disk is full."] * 2
    assert {folder.read_status()["state"] for folder in folders(tmp_path)} == {"failed"}
    monkeypatch.setattr("merc.stacking.training.run_trainer", stop)
    with pytest.raises(KeyboardInterrupt):
        together(tmp_path, "resume=true")
    assert {folder.read_status()["error"] for folder in folders(tmp_path)} == {"Stopped."}
    monkeypatch.undo()
    first, second = folders(tmp_path)
    first.checkpoints.mkdir(exist_ok=True)
    first.last.write_text("damaged")
    damaged, none = together(tmp_path, "resume=true")
    assert none is None
    assert "cannot be read as a checkpoint" in str(damaged)
    assert [folder.read_status()["state"] for folder in (first, second)] == ["failed", "finished"]
    assert not any(folder.locked for folder in folders(tmp_path))


def test_seeds_that_all_diverge_have_their_own_reasons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    diverge(monkeypatch, {1: 2, 2: 1})
    reasons = [f"The training loss is nan after epoch {epoch}." for epoch in (2, 1)]
    assert [str(error) for error in together(tmp_path)] == reasons
    assert [folder.read_status()["error"] for folder in folders(tmp_path)] == reasons


@pytest.mark.parametrize("error", [MercError, KeyboardInterrupt])
def test_a_seed_that_diverged_keeps_its_reason_when_the_others_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    def fail_in_the_end(*arguments: Any) -> None:
        run_trainer(*arguments)
        raise error("The disk is full.")

    diverge(monkeypatch, {2: 1})
    monkeypatch.setattr("merc.stacking.training.run_trainer", fail_in_the_end)
    with suppress(KeyboardInterrupt):
        assert [str(error).split()[1] for error in together(tmp_path, seeds="1,2,3")] == ["disk", "training", "disk"]
    reasons = [folder.read_status()["error"] for folder in folders(tmp_path)]
    assert reasons == ["The disk is full.", "The training loss is nan after epoch 1.", "The disk is full."]


def test_a_seed_that_cannot_be_closed_leaves_the_others_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def close(trainer: Any, module: Any, data: Any, recorder: Recorder, *others: Any) -> None:
        if recorder.folder.path.name == "seed=2":
            raise MercError("The disk is full.")
        close_run(trainer, module, data, recorder, *others)

    monkeypatch.setattr("merc.stacking.training.close_run", close)
    errors = together(tmp_path, "trainer.max_epochs=1", seeds="1,2,3")
    assert [error and str(error) for error in errors] == [None, "The disk is full.", None]
    states = [folder.read_status()["state"] for folder in folders(tmp_path)]
    assert states == ["finished", "failed", "finished"]
    assert [folder.metrics.exists() for folder in folders(tmp_path)] == [True, False, True]


@pytest.mark.parametrize("failing", ["run_trainer", "close_run", "a seed"])
def test_what_failed_keeps_no_stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    stacks: list[weakref.ref[StackedRecognition]] = []

    def remembered(*arguments: Any) -> StackedRecognition:
        made = StackedRecognition(*arguments)
        stacks.append(weakref.ref(made))
        return made

    def fail(*_: Any) -> None:
        try:
            raise OSError("No space left.")
        except OSError as error:
            raise MercError("The disk is full.") from error

    if failing == "a seed":
        diverge(monkeypatch, {2: 1})
    else:
        monkeypatch.setattr(f"merc.stacking.training.{failing}", fail)
    monkeypatch.setattr("merc.stacking.training.StackedRecognition", remembered)
    errors = together(tmp_path, "trainer.max_epochs=1")
    assert errors[1] is not None
    gc.collect()
    assert [stack() for stack in stacks] == [None]


def test_seeds_per_process_is_no_part_of_a_run() -> None:
    one, four = (compose([f"seeds_per_process={number}"]) for number in (1, 4))
    assert run_path(one, "name") == run_path(four, "name")
    assert run_config(one) == run_config(four)
