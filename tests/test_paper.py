"""``make paper ARGS=trainer=smoke`` makes every table and figure with every published number; no run is made twice."""

import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from merc.data.corpora import CORPORA
from merc.sweeping.experiment import Experiment, experiment_names, read_experiment
from merc.sweeping.manifest import find_manifests, read_manifest

ROOT = Path(__file__).resolve().parents[1]
FIGURES = ("lines", "bars", "heatmap", "confusion", "robustness")
"""Kinds that are a figure."""


@pytest.fixture(scope="module")
def paper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which all of it was run."""
    folder, environment = tmp_path_factory.mktemp("paper"), Path(sys.prefix)
    chosen = [f"VENV={environment}", "-o", str(environment / ".merc-installed"), "ARGS=trainer=smoke"]
    done = subprocess.run(
        ["make", "-f", str(ROOT / "Makefile"), "paper", *chosen],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return folder


def sections() -> Iterator[tuple[Experiment, str]]:
    """Every experiment with every corpus that it is made for."""
    for name in experiment_names():
        for corpus in CORPORA:
            if not name.endswith(tuple(f"_{other}" for other in CORPORA if other != corpus)):
                yield read_experiment(name), corpus


def numbers(report: str, row: str) -> list[float]:
    """Every number in the rows of that name, of all tables of a report."""
    found: list[float] = []
    for line in report.replace("\\", "").replace("−", "-").replace("\u202f", "").splitlines():
        name, _, rest = line.strip("| ").replace("*", "").partition(" | ")
        if line.startswith("|") and re.sub(r" \((reference|published|published only)\)$", "", name) == row:
            found += map(float, re.findall(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?", rest))
    return found


def stands(printed: float, shown: list[float]) -> bool:
    """Whether a number is there, in its own unit or in thousands or thousandths of it."""
    return any(
        math.isclose(printed * 1000.0**power, number, rel_tol=1e-9) for number in shown for power in range(-3, 4)
    )


@pytest.mark.slow
def test_every_table_and_figure_is_made_with_every_published_number(paper: Path) -> None:
    page = (paper / "reports/report.html").read_text(encoding="utf-8")
    for experiment, corpus in sections():
        (folder,) = (paper / "reports" / experiment.name).glob(f"synthetic_{corpus}-*")
        there = {path.name for path in folder.iterdir()}
        table = "corpora" if experiment.kind == "corpora" else "scores"
        figure = {f"{experiment.kind}.png", f"{experiment.kind}.pdf"} if experiment.kind in FIGURES else set()
        assert {"report.md", "scores.csv", f"{table}.tex", *figure} <= there, folder
        report = (folder / "report.md").read_text(encoding="utf-8")
        for words in ("Failed:", "Not begun:", "Running or interrupted:"):
            assert words not in report, folder
        assert experiment.title in page
        for row, cells in experiment.published.get(corpus, {}).items():
            shown = numbers(report, row)
            missing = {column: value for column, value in cells.items() if not stands(value, shown)}
            assert not missing, f"{folder}: {row}"


@pytest.mark.slow
def test_experiments_share_their_runs(paper: Path) -> None:
    manifests = [read_manifest(path) for path in find_manifests(paper / "runs/smoke")]
    jobs = [job.run for manifest in manifests for job in manifest.jobs]
    statuses = {
        str(path.parent.relative_to(paper / "runs/smoke")): json.loads(path.read_text())
        for path in (paper / "runs/smoke").rglob("status.json")
    }
    assert statuses.keys() == set(jobs)
    assert len(jobs) > 1.4 * len(statuses)
    assert {(status["state"], status["attempts"]) for status in statuses.values()} == {("finished", 1)}
