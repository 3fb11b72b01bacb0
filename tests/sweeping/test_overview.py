"""What the table of the sweeps says about run folders in every state."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from merc import sweep
from merc.errors import MercError
from merc.files import write_json
from merc.reporting.run_folder import RunFolder, _lock
from merc.sweeping.manifest import Job, Manifest
from merc.sweeping.overview import State, read_progress


def put(path: Path, score: float | None = None, **status: Any) -> None:
    folder = RunFolder(path)
    write_json(folder.status, status)
    if score is not None:
        write_json(folder.metrics, {"selected": {"weighted_f1": score}, "last": {"weighted_f1": 0.0}})


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Path]:
    """A sweep with a job in each state; the one that runs is held as long as the test lasts."""
    names = ["done", "better", "running", "failed", "interrupted", "waiting"]
    jobs = [Job(name, 1, [], f"{name}/seed=1") for name in names]
    Manifest("method/table", "corpus", "corpus", ["graph=gcn"], jobs).write(tmp_path)
    put(tmp_path / "done/seed=1", 0.50, state="finished", seconds=100.0, epoch=4, epochs=4)
    put(tmp_path / "better/seed=1", 0.61, state="finished", seconds=300.0, epoch=4, epochs=4)
    put(tmp_path / "failed/seed=1", state="failed", error="The loss is nan.", epoch=1, epochs=4)
    put(tmp_path / "interrupted/seed=1", state="running", epoch=2, epochs=4)
    with held(tmp_path / "running/seed=1"):
        yield tmp_path


@contextmanager
def held(path: Path) -> Iterator[None]:
    with _lock(RunFolder(path)):
        put(path, state="running", epoch=1, epochs=4)
        yield


def test_every_state_is_told_apart(runs: Path) -> None:
    (progress,) = read_progress(runs)
    states = {job.job.variant: job.state for job in progress.jobs}
    assert states == {
        "done": State.DONE,
        "better": State.DONE,
        "running": State.RUNNING,
        "failed": State.FAILED,
        "interrupted": State.WAITING,
        "waiting": State.WAITING,
    }
    assert not progress.ended
    assert progress.best is not None
    assert (progress.best.job.variant, progress.best.score) == ("better", 0.61)


def test_the_time_left_is_that_of_the_epochs_ahead(runs: Path) -> None:
    (progress,) = read_progress(runs)
    # Runs took 200 s on average; ahead are 3/4 of one, half of one and a whole one, one at a time.
    assert progress.seconds_left == pytest.approx(200 * (0.75 + 0.5 + 1))
    with held(runs / "waiting/seed=1"):
        (progress,) = read_progress(runs)
        assert progress.seconds_left == pytest.approx(200 * (0.75 + 0.5 + 0.75) / 2)


def test_nothing_is_foretold_before_a_run_has_ended(tmp_path: Path) -> None:
    Manifest("a", "corpus", "corpus", [], [Job("x", 1, [], "x")]).write(tmp_path)
    (progress,) = read_progress(tmp_path)
    assert (progress.seconds_left, progress.best) == (None, None)


def test_a_look_does_not_keep_a_run_from_its_folder(runs: Path) -> None:
    folder = RunFolder(runs / "interrupted/seed=1")
    assert not folder.locked
    with _lock(folder):
        assert folder.locked
    assert not RunFolder(runs / "nowhere").locked


def run(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "merc.sweep", *arguments]
    inherited = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    return subprocess.run(command, capture_output=True, text=True, env=inherited | environment)


@pytest.fixture
def long_names(tmp_path: Path) -> Path:
    overrides = ["data.modalities=[text]", "classifier=summed_logits", "hyperparameters.dropout=0.25"]
    jobs = [Job("all of them", 1, [], "all/seed=1")]
    Manifest("amb_dsgdn/table4_modalities", "synthetic_meld", "meld", overrides, jobs).write(tmp_path)
    return tmp_path


@pytest.mark.parametrize("columns", ["120", "200"])
def test_the_table_shows_names_and_brackets_whole(long_names: Path, columns: str) -> None:
    lines = run("status", f"run_root={long_names}", COLUMNS=columns).stdout.splitlines()
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if line.startswith("│")]
    assert rows[0][:2] == ["amb_dsgdn/table4_modalities", "synthetic_meld"]
    assert rows[0][3:] == ["0", "0", "0", "1", "–", "–"]
    assert "".join(row[2] for row in rows).startswith("data.modalities=[text]")


@pytest.mark.parametrize("columns", ["40", "80"])
def test_a_narrow_terminal_gets_lines(long_names: Path, columns: str) -> None:
    lines = run("status", f"run_root={long_names}", COLUMNS=columns).stdout.splitlines()
    assert max(map(len, lines)) <= int(columns)
    text = " ".join(" ".join(lines).split())
    assert text.startswith("amb_dsgdn/table4_modalities")
    for part in ("data.modalities=[text]", "0 done, 0 running, 0 failed, 1 waiting", "time left –"):
        assert part in text


@pytest.mark.parametrize(("environment", "whole"), [({"COLUMNS": "250"}, True), ({}, False)])
def test_the_table_is_as_wide_as_columns_says(long_names: Path, environment: dict[str, str], whole: bool) -> None:
    shown = run("status", f"run_root={long_names}", **environment).stdout
    settings = "data.modalities=[text] classifier=summed_logits hyperparameters.dropout=0.25"
    assert (settings in shown, max(map(len, shown.splitlines())) > 120) == (whole, whole)


def test_the_command_shows_counts_best_and_errors(runs: Path) -> None:
    shown = run("status", "method/table", f"run_root={runs}").stdout
    cells = [cell.strip() for cell in shown.splitlines()[3].split("│")]
    assert cells[1:9] == ["method/table", "corpus", "graph=gcn", "2", "1", "1", "2", "61.00 (better, seed 1)"]
    assert cells[9] == "0:07:30"
    assert "running: method/table, running, seed 1 (running/seed=1): 25 %" in shown
    assert "failed: method/table, failed, seed 1 (failed/seed=1): The loss is nan." in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "python -m merc.sweep status"),
        (["statis"], "python -m merc.sweep status"),
        (["status", "method/tabel"], "Did you mean 'method/table'?"),
        (["status", "run_rot=x"], "Did you mean 'run_root'?"),
        (["status", "run_root=nowhere"], "There is no sweep in nowhere"),
        (["status", "watch=yes"], "watch=yes is not true or false"),
    ],
)
def test_a_mistake_is_one_line(runs: Path, arguments: list[str], message: str) -> None:
    root = [f"run_root={runs}"] if arguments and not any("run_root" in argument for argument in arguments) else []
    done = run(*arguments, *root)
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_watching_ends_with_the_sweep(runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    looks: list[float] = []

    def pause(seconds: float) -> None:
        looks.append(seconds)
        for name in ("running", "interrupted", "waiting"):
            put(runs / name / "seed=1", 0.7, state="finished", seconds=1.0, epoch=4, epochs=4)

    monkeypatch.setattr("time.sleep", pause)
    sweep.status([], runs, watch=True)
    assert len(looks) == 1
    assert "70.00" in capsys.readouterr().out


def test_the_command_does_without_torch() -> None:
    script = "import sys, merc.sweep; sys.exit(any(name in sys.modules for name in ('torch', 'lightning', 'hydra')))"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


def test_a_manifest_that_cannot_be_read_is_explained(tmp_path: Path) -> None:
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "x.json").write_text("{")
    with pytest.raises(MercError, match="Start the sweep again"):
        read_progress(tmp_path)
