"""``python -m merc.report`` as a user types it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from lab import Lab

from merc import report, train
from merc.config import compose
from merc.reporting.report.runs import Run
from merc.reporting.statistics import measure_names, seed_scores


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["merc.report", *arguments])
    report.main()


def settings(lab: Lab, out: Path) -> list[str]:
    return [f"run_root={lab.runs}", f"config_dir={lab.config_dir}", f"out={out}", "resamples=100"]


def test_the_report_is_written_without_loading_torch(lab: Lab, tmp_path: Path) -> None:
    lab.grid("mine/table", {"text": 0.4, "all": 0.6})
    loaded = "[name for name in ('torch', 'lightning') if name in sys.modules]"
    code = f"import sys; from merc.report import main; main(); print({loaded})"
    arguments = [sys.executable, "-c", code, "mine/table", *settings(lab, tmp_path / "out")]
    run = subprocess.run(arguments, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == "[]"
    assert "Combinations of modalities" in run.stdout
    assert (tmp_path / "out/report.html").is_file()


def test_matplotlib_is_loaded_for_figures_only(lab: Lab, tmp_path: Path) -> None:
    lab.grid("mine/table", {"all": 0.6}, seeds=(1,))
    code = "import sys; from merc.report import main; main(); print('matplotlib' in sys.modules)"
    arguments = [sys.executable, "-c", code, *settings(lab, tmp_path / "out"), "figures=false"]
    run = subprocess.run(arguments, capture_output=True, text=True, timeout=120, check=True)
    assert run.stdout.splitlines()[-1] == "False"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mine/tabel"], "Did you mean 'mine/table'?"),
        (["run_rot=runs"], "There is no key 'run_rot'. Did you mean 'run_root'?"),
        (["--verbose"], "There is no option --verbose."),
        (["figures=maybe"], "figures=maybe is not true or false"),
        (["resamples=many"], "resamples=many is not a whole number"),
        (["resamples=0"], "Choose 1 or more"),
        (["level=95"], "Choose one between 0 and 1"),
        (["compare", "somewhere"], "compare takes two run folders"),
        (["compare", "somewhere", "elsewhere"], "somewhere is no run folder"),
    ],
)
def test_mistakes_end_in_one_line(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    lab.grid("mine/table", {"all": 0.6}, seeds=(1,))
    with pytest.raises(SystemExit) as stop:
        command(monkeypatch, *settings(lab, tmp_path / "out"), *arguments)
    assert str(stop.value).startswith("Error: ")
    assert message in str(stop.value)
    assert "\n" not in str(stop.value)
    assert not (tmp_path / "out").exists()


def test_an_experiment_without_a_file_does_not_block_the_others(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lab.grid("mine/table", {"all": 0.6}, seeds=(1,))
    lab.sweep("theirs/windows", [lab.job("all", 1, "model-meld-all/seed=1")])
    command(monkeypatch, *settings(lab, tmp_path / "out"), "figures=false")
    shown = capsys.readouterr().out.splitlines()
    assert [line for line in shown if line.startswith("Skipped")] == [
        "Skipped: There is no experiment 'theirs/windows'. If it is one of your own, say where: config_dir=FOLDER, "
        "which holds experiment/."
    ]
    assert [path.parent.parent.name for path in (tmp_path / "out").rglob("report.md")] == ["table"]
    for name in ("theirs/windows", "theirs"):
        with pytest.raises(SystemExit, match="Error: There is no experiment 'theirs/windows'"):
            command(monkeypatch, *settings(lab, tmp_path / "out"), "figures=false", "mine/table", name)


def test_help_lists_every_key(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    command(monkeypatch, "--help")
    shown = capsys.readouterr().out
    for key in ("compare", "run_root", "out", "config_dir", "figures", "resamples", "level", "seed"):
        assert key in shown


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder that training left."""
    folder = tmp_path_factory.mktemp("runs") / "small/seed=1"
    small = ["data.size=0.03", "hyperparameters.hidden_dim=16", "hyperparameters.max_epochs=2", "trainer=cpu"]
    train.train(compose([*small, "seed=1", f"run_dir='{folder}'", "trainer.enable_progress_bar=false"]))
    return folder


def test_what_training_leaves_is_what_the_report_reads(
    trained: Path, lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lab.experiment("mine/table", columns=["accuracy", "weighted_f1", "per_class_f1"])
    lab.sweep("mine/table", [lab.job("all", 1, str(trained))])
    command(monkeypatch, *settings(lab, tmp_path / "out"), "figures=false")
    metrics = json.loads((trained / "metrics.json").read_text())
    shown = capsys.readouterr().out
    assert f"{100 * metrics['selected']['weighted_f1']:.2f}" in shown

    test = Run(trained).test
    assert test is not None
    recomputed = dict(zip(measure_names(test.classes), seed_scores(test.confusions[None])[0], strict=True))
    for measure in ("accuracy", "weighted_precision", "weighted_f1", "macro_f1"):
        assert recomputed[measure] == pytest.approx(metrics["selected"][measure], abs=1e-9)
    assert recomputed["f1/neutral"] == pytest.approx(metrics["selected"]["per_class"]["neutral"]["f1"], abs=1e-9)


def test_runs_that_training_left_can_be_compared(
    trained: Path, lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = lab.run("other/seed=1")
    command(monkeypatch, "compare", str(trained), str(other), f"out={tmp_path / 'out'}")
    assert "No tests: the runs have no predictions of the same test utterances." in capsys.readouterr().out
    (folder,) = (tmp_path / "out/compare").iterdir()
    assert {path.suffix for path in folder.iterdir()} == {".md", ".html", ".png", ".pdf"}
