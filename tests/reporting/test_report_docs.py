"""The documentation of experiments and reports: its experiment is one, its kinds and commands are those there are."""

import re
from pathlib import Path

import yaml
from lab import Lab

from merc.arguments import parse
from merc.reporting.report.write import read_sections, write_report
from merc.sweeping.experiment import KINDS, read_experiment

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "experiments.md").read_text(encoding="utf-8")
REPORTS = (DOCS / "reports.md").read_text(encoding="utf-8")


def test_the_experiment_of_the_page_can_be_reported(lab: Lab, tmp_path: Path) -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    path = lab.config_dir / "experiment/mine/windows.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    experiment = read_experiment("mine/windows", lab.config_dir)
    variants = yaml.safe_load(text)["experiment"]["variants"]
    assert experiment.reference in variants
    jobs = []
    for variant in variants:
        lab.run(f"{variant}/seed=1")
        jobs.append(lab.job(variant, 1, f"{variant}/seed=1"))
    lab.sweep("mine/windows", jobs)
    (section,) = read_sections(lab.runs, (), lab.config_dir)
    write_report([section], tmp_path / "out")
    written = {path.name for path in (tmp_path / "out" / section.key).iterdir()}
    assert {"report.md", "scores.csv", "tests.csv", "scores.tex", "tests.tex", "lines.png", "lines.pdf"} <= written
    assert "DialogueRNN (published only)" in (tmp_path / "out/report.html").read_text(encoding="utf-8")


def test_every_kind_is_explained() -> None:
    explained = PAGE[PAGE.index("| `kind`") :]
    assert set(re.findall(r"^\| `(\w+)` \| (?!shown)", explained, re.MULTILINE)) == set(KINDS)


def test_the_commands_of_the_page_are_commands() -> None:
    commands = re.findall(r"^python -m merc\.report(.*?)(?:#.*)?$", REPORTS, re.MULTILINE)
    assert len(commands) == 5
    for arguments in commands:
        parse(arguments.split(), "report")
