"""Who may write to a run folder, and what its status says."""

import fcntl
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from merc.config import compose
from merc.errors import MercError
from merc.reporting import run_folder
from merc.reporting.recorder import Recorder
from merc.reporting.run_folder import RunFolder, RunLockedError, claim, default_path
from merc.resuming import AtomicCheckpoints

CONFIG = {"seed": 1, "optimizer": {"lr": 0.1}, "resume": False}


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "runs" / "x")


def leave_unfinished(folder: RunFolder, checkpoint: bool) -> None:
    """What a killed run leaves behind."""

    def train() -> None:
        with claim(folder, CONFIG, resume=False, overwrite=False):
            (folder.path / "rubbish.txt").touch()
            if checkpoint:
                folder.checkpoints.mkdir()
                folder.last.touch()
            raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError):
        train()


def finish(folder: RunFolder) -> None:
    with claim(folder, CONFIG, resume=False, overwrite=False):
        folder.checkpoints.mkdir()
        folder.last.touch()


def test_status_follows_the_run(folder: RunFolder) -> None:
    with claim(folder, CONFIG, resume=False, overwrite=False):
        assert folder.read_status()["state"] == "running"
    assert folder.read_status()["state"] == "finished"
    assert folder.read_status()["ended"]


def test_a_failure_is_recorded(folder: RunFolder) -> None:
    leave_unfinished(folder, checkpoint=False)
    assert folder.read_status()["state"] == "failed"
    assert folder.read_status()["error"] == "out of luck"


@pytest.mark.parametrize("checkpoint", [True, False])
def test_the_status_counts_the_processes_and_their_time(folder: RunFolder, checkpoint: bool) -> None:
    leave_unfinished(folder, checkpoint)
    first = folder.read_status()
    with claim(folder, CONFIG, resume=True, overwrite=False):
        time.sleep(0.02)
    second = folder.read_status()
    assert (first["attempts"], second["attempts"]) == (1, 2)
    assert second["seconds"] >= 0.02 + (first["seconds"] if checkpoint else 0)
    with claim(folder, CONFIG, resume=True, overwrite=False):
        pass
    assert folder.read_status() == second, "a finished run is held without being changed"


def test_a_killed_run_has_counted_its_time_up_to_its_last_epoch(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_unfinished(folder, checkpoint=True)
    folder.update_status(seconds=100.0)
    monkeypatch.setattr("merc.reporting.recorder.to_csv", lambda _: "")
    trainer: Any = SimpleNamespace(max_epochs=2)
    with claim(folder, CONFIG, resume=True, overwrite=False):
        recorder = Recorder(folder, AtomicCheckpoints())
        recorder.history = [{"epoch": 1}]
        time.sleep(0.02)
        recorder.write_history(trainer)
        at_the_epoch = folder.read_status()["seconds"]
    assert 100.02 <= at_the_epoch <= folder.read_status()["seconds"] < 150


def test_a_run_that_failed_before_its_first_checkpoint_is_started_afresh(folder: RunFolder) -> None:
    leave_unfinished(folder, checkpoint=False)
    with claim(folder, CONFIG, resume=False, overwrite=False):
        assert not (folder.path / "rubbish.txt").exists()


@pytest.mark.parametrize(
    ("leave", "state"),
    [(finish, "a finished"), (lambda folder: leave_unfinished(folder, checkpoint=True), "an unfinished")],
)
def test_an_existing_run_needs_resume_or_overwrite(
    folder: RunFolder, leave: Callable[[RunFolder], None], state: str
) -> None:
    leave(folder)
    with (
        pytest.raises(MercError, match=rf"holds {state} run\. Add resume=true.*overwrite=true"),
        claim(folder, CONFIG, resume=False, overwrite=False),
    ):
        pass
    assert folder.last.exists()


def test_resume_keeps_and_overwrite_clears(folder: RunFolder) -> None:
    leave_unfinished(folder, checkpoint=True)
    started = folder.read_status()["started"]
    with claim(folder, CONFIG, resume=True, overwrite=False):
        assert folder.last.exists()
        assert folder.read_status()["started"] == started
    with claim(folder, CONFIG, resume=False, overwrite=True):
        assert not folder.last.exists()


def test_resume_refuses_another_configuration_and_names_the_keys(folder: RunFolder) -> None:
    leave_unfinished(folder, checkpoint=True)
    other = {"seed": 1, "optimizer": {"lr": 0.2}, "resume": True}
    with (
        pytest.raises(MercError, match=r"optimizer\.lr \(0\.1 there, 0\.2 here\)") as error,
        claim(folder, other, resume=True, overwrite=False),
    ):
        pass
    assert "seed" not in str(error.value)


def test_both_options_contradict_each_other(folder: RunFolder) -> None:
    with pytest.raises(MercError, match="contradict"), claim(folder, CONFIG, resume=True, overwrite=True):
        pass


def test_a_live_run_keeps_others_out(folder: RunFolder) -> None:
    with (
        claim(folder, CONFIG, resume=False, overwrite=False),
        pytest.raises(RunLockedError, match=r"Process \d+ on .* is writing"),
        claim(folder, CONFIG, resume=False, overwrite=True),
    ):
        pass


def test_a_glance_at_the_lock_keeps_nobody_out(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.path.mkdir(parents=True)
    glance = (folder.path / ".lock").open("w")
    fcntl.flock(glance, fcntl.LOCK_SH)
    monkeypatch.setattr(time, "sleep", lambda _: glance.close())
    with claim(folder, CONFIG, resume=False, overwrite=False):
        assert folder.locked
    assert not folder.locked


def test_a_killed_run_lets_others_in(folder: RunFolder) -> None:
    script = (
        "import os, pathlib\n"
        "from merc.reporting.run_folder import RunFolder, claim\n"
        f"with claim(RunFolder(pathlib.Path({str(folder.path)!r})), {CONFIG!r}, resume=False, overwrite=False):\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    assert subprocess.run([sys.executable, "-c", script]).returncode == -9
    assert json.loads(folder.status.read_text())["state"] == "running"
    with claim(folder, CONFIG, resume=True, overwrite=False):
        pass
    assert folder.finished


@pytest.mark.parametrize("writer", ["write_text", "write_json"])
@pytest.mark.parametrize("moment", ["before", "inside", "behind"])
def test_a_run_that_was_killed_while_it_claimed_its_folder_is_started_afresh(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, writer: str, moment: str
) -> None:
    write = getattr(run_folder, writer)

    class KilledError(BaseException):
        pass

    def killed(target: Path, content: object) -> None:
        if moment == "behind":
            write(target, content)
        if moment == "inside":
            (target.parent / f".{target.name}.x1y2z3").touch()
        # A process that is killed runs no handler, which would write to its status.
        monkeypatch.setattr(RunFolder, "update_status", lambda *_, **__: None)
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(run_folder, writer, killed)
        with pytest.raises(KilledError), claim(folder, CONFIG, resume=True, overwrite=False):
            pass
    monkeypatch.undo()
    with claim(folder, CONFIG, resume=True, overwrite=False):
        assert {path.name for path in folder.path.iterdir()} == {".lock", "config.yaml", "status.json"}


def test_leftover_temporaries_are_deleted_and_other_files_are_not(folder: RunFolder) -> None:
    leave_unfinished(folder, checkpoint=True)
    names = [".metrics.csv.abc", ".profile.txt.abc", ".trace.json.abc", "checkpoints/.last.ckpt.abc"]
    leftovers = [folder.path / name for name in names]
    kept = [folder.path / ".notes", folder.path / "metrics.csv.old", folder.checkpoints / "last.ckpt"]
    for path in [*leftovers, *kept]:
        path.touch()
    with claim(folder, CONFIG, resume=True, overwrite=False):
        assert not any(path.exists() for path in leftovers)
        assert all(path.exists() for path in kept)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_that_is_no_run_is_left_alone(folder: RunFolder, overwrite: bool) -> None:
    folder.path.mkdir(parents=True)
    (folder.path / "thesis.tex").touch()
    with pytest.raises(MercError, match=r"thesis\.tex"), claim(folder, CONFIG, resume=False, overwrite=overwrite):
        pass
    assert [path.name for path in folder.path.iterdir()] == ["thesis.tex"]


def test_a_folder_that_another_process_is_making_is_no_stranger(folder: RunFolder) -> None:
    folder.path.mkdir(parents=True)
    with (folder.path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (folder.path / ".status.json.x1y2z3").touch()
        with pytest.raises(RunLockedError), claim(folder, CONFIG, resume=False, overwrite=False):
            pass


def test_a_folder_that_cannot_be_made_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(MercError, match="Cannot write"),
        claim(RunFolder(tmp_path / "file" / "x"), CONFIG, resume=False, overwrite=False),
    ):
        pass


def test_the_path_depends_on_the_experiment_alone() -> None:
    path = default_path(compose(["seed=1"]), "name")
    assert path.name == "seed=1"
    assert default_path(compose(["seed=1", "resume=true", "logger=tensorboard"]), "name") == path
    assert default_path(compose(["seed=1", "+experiment.name=method/table"]), "name") == path
    assert default_path(compose(["seed=2"]), "name").parent == path.parent
    assert default_path(compose(["hyperparameters.window=3"]), "name").parent != path.parent
