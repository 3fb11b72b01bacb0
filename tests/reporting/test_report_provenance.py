"""A report says how it was made, and can be read where none of its runs are."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from lab import Lab, robustness, section_of, sections_of

from merc.arguments import help_text
from merc.config import compose
from merc.reporting.report.provenance import RUN_ROOT, commands, facts, portable
from merc.reporting.report.sections import Section
from merc.reporting.report.write import read_sections, write_report

ENVIRONMENT = {
    "command": ["/home/me/merc/train.py", "run_root=/home/me/runs"],
    "versions": {"python": "3.11.7", "merc": "0.1.0", "torch": "2.13.0", "lightning": "2.6.6", "numpy": "2.4.6"},
    "git": {"commit": "fc161a01cfcb529c40404bce16e9f11d886f9220", "dirty": False},
    "hardware": {"cpu": "A CPU", "cores": 2, "gpus": ["A GPU", "A GPU"]},
}
OVERRIDES = ("data.store=/home/me/stores/meld", "data.modalities=[text,audio]", "seed=1,2")


def swept(lab: Lab, runs: dict[int, dict[str, Any]], merged: bool = False) -> Section:
    """An experiment of two seeds, with further files for each."""
    lab.experiment("mine/table", remarks=["meld: a fault"], published={"meld": {"all": {"weighted_f1": 66.0}}})
    for seed, files in runs.items():
        lab.run(f"all/seed={seed}", 0.5, seed, merged=merged, **files)
    lab.sweep("mine/table", [lab.job("all", seed, f"all/seed={seed}") for seed in runs], overrides=OVERRIDES)
    return section_of(lab)


def test_the_commands_are_those_of_the_sweep(lab: Lab) -> None:
    section = swept(lab, {1: {}, 2: {}})
    train, report = commands(section, Path("docs/results/mine"))
    chosen = ["data=meld", "data.store=path/to/meld", "data.modalities=[text,audio]"]
    some = "variants=[all]"  # the experiment has others, too
    there = "run_root=path/to/runs"
    assert shlex.split(train)[3:] == ["-m", "experiment=mine/table", *chosen, "seed=1,2", some, there]
    assert shlex.split(report)[3:] == ["mine/table", there, "out=docs/results/mine"]
    assert commands(section, Path("/home/me/out"))[-1].endswith("merc.report mine/table run_root=path/to/runs")
    assert compose([*chosen, "seed=1"]).data.modalities == ["text", "audio"]


def test_what_was_evaluated_behind_training_is_a_command_too(lab: Lab) -> None:
    section = swept(lab, {1: {"robustness": robustness(0.5)}})
    assert commands(section, Path("reports"))[1] == "python -m merc.evaluate sweep=mine/table run_root=path/to/runs"


def test_the_commands_name_the_folder_of_the_runs_unless_it_is_the_default(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    swept(lab, {1: {"robustness": robustness(0.5)}})
    monkeypatch.chdir(lab.runs.parent)
    (section,) = read_sections(Path("runs"), config_dir=lab.config_dir)
    assert not any("run_root" in line for line in commands(section, Path("reports")))
    lab.runs.rename("smoke runs")
    (section,) = read_sections(Path("smoke runs"), config_dir=lab.config_dir)
    lines = commands(section, Path("reports"))
    assert len(lines) == 3
    assert all("run_root=smoke runs" in shlex.split(line) for line in lines)


def test_the_default_folder_of_the_runs_is_that_of_the_commands() -> None:
    assert help_text("", "report").count(f"run_root: {RUN_ROOT} #") == 1
    assert compose([]).run_root == compose([], "evaluate").run_root == str(RUN_ROOT)


def test_facts_are_those_of_the_runs(lab: Lab) -> None:
    older = ENVIRONMENT | {"versions": ENVIRONMENT["versions"] | {"torch": "2.12.1"}}  # type: ignore[operator]
    section = swept(lab, {1: {"environment": ENVIRONMENT}, 2: {"environment": older}})
    for seed, (started, ended) in {1: ("2026-11-20", "2026-11-21"), 2: ("2026-11-22", "2026-11-22")}.items():
        section.rows[0].runs[seed].status.update(started=f"{started}T17:00:00+00:00", ended=f"{ended}T01:00:00+00:00")
    told = dict(fact.removesuffix(".").split(": ", 1) for fact in facts(section))
    assert told["Data"] == "meld, test split of 40 dialogues and 240 utterances"
    assert "best validation weighted F1" in told["Protocol"]
    assert told["Seeds"] == "1, 2; 2 runs for each variant"
    assert told["Trained"] == "2026-11-20 to 2026-11-22"
    assert told["Versions"] == (
        "merc 0.1.0 (fc161a0), torch 2.13.0, lightning 2.6.6, python 3.11.7 / "
        "merc 0.1.0 (fc161a0), torch 2.12.1, lightning 2.6.6, python 3.11.7"
    )
    assert told["Hardware"] == "A GPU"


def test_training_on_both_splits_is_said(lab: Lab) -> None:
    protocol = next(fact for fact in facts(swept(lab, {1: {}}, merged=True)) if fact.startswith("Protocol"))
    assert "training and validation data together" in protocol
    assert "last epoch" in protocol


def test_there_are_no_facts_without_runs(lab: Lab) -> None:
    lab.experiment("mine/table")
    lab.sweep("mine/table", [lab.job("all", 1, "none/seed=1")])
    assert facts(section_of(lab)) == []


def test_a_report_stands_alone(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    swept(lab, {1: {"environment": ENVIRONMENT}, 2: {"environment": ENVIRONMENT}})
    monkeypatch.chdir(tmp_path)
    lab.grid("mine/bars", {"text": 0.4, "all": 0.6}, kind="bars")
    write_report(sections_of(lab), Path("docs/results/mine"))
    for name in ("table", "bars"):
        (page,) = Path("docs/results/mine/mine", name).glob("*/report.md")
        text = page.read_text(encoding="utf-8")
        assert "out=docs/results/mine" in text
        links = re.findall(r"\]\((.*?)\)", text)
        assert links or name == "table"
        assert all((page.parent / link).is_file() for link in links)
    files = [path for path in Path("docs").rglob("*") if path.suffix in (".md", ".html", ".csv", ".tex")]
    assert {path.suffix for path in files} == {".md", ".html", ".csv", ".tex"}
    for path in files:
        for machine in ("/home/me", str(tmp_path), "/root", "/tmp"):  # noqa: S108
            assert machine not in path.read_text(encoding="utf-8"), path


def test_of_the_paths_of_a_machine_the_last_name_is_kept() -> None:
    paths = ["a=/home/me/x", "b='/home/me/x y'", "c=relative/x", "d=[text,audio]", "e=1e-3", "f=/x"]
    shown = ["a=path/to/x", "b='path/to/x y'", "c=relative/x", "d=[text,audio]", "e=1e-3", "f=path/to/x"]
    assert portable(paths) == shown
