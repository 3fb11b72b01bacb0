"""``python -m merc.dashboard`` without a network: the specification holds what runs log."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import wandb_workspaces.workspaces as ws
import yaml

from merc import dashboard
from merc.config import compose
from merc.train import train

NODE = {
    "name": "mine/table",
    "title": "Combinations of modalities",
    "source": "A paper, Table 4",
    "kind": "table",
    "reference": "all",
    "columns": ["accuracy", "weighted_f1"],
    "variants": {"all": []},
    "published": {"meld": {"all": {"weighted_f1": 66.18}, "other": {"parameters": 12.92e6}}},
    "remarks": ["meld/all: wrong."],
}


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "own/experiment/mine/table.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(yaml.safe_dump({"experiment": NODE}))
    return tmp_path / "own"


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["merc.dashboard", *arguments])
    dashboard.main()


@pytest.fixture
def specification(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    out = tmp_path / "spec.json"
    arguments = ["--entity", "E", "--project", "P", "--config-dir", str(own), "--dry-run", "--out", str(out)]
    command(monkeypatch, "mine/table", *arguments)
    content: dict[str, Any] = json.loads(out.read_text())["mine/table"]
    return content


def metrics_of(node: Any) -> set[str]:
    """Every metric that a panel anywhere below shows."""
    if isinstance(node, dict):
        own = {name for name in node.get("metrics", []) if isinstance(name, str)}
        return own.union(*map(metrics_of, node.values()))
    return set().union(*map(metrics_of, node)) if isinstance(node, list) else set()


def test_the_workspace_shows_the_runs_of_the_experiment_by_variant(specification: dict[str, Any]) -> None:
    workspace = specification["workspace"]
    assert (workspace["entity"], workspace["project"]) == ("E", "P")
    (runs,) = workspace["spec"]["section"]["runSets"]
    filters = {each["key"]["name"]: (each["op"], each["value"]) for each in runs["filters"]["filters"]}
    assert filters == {"tags": ("IN", ["mine/table"]), "jobType": ("NIN", ["aggregate", "report"])}
    assert [key["name"] for key in runs["grouping"]] == ["group"]


def test_both_show_the_same_panels_and_the_report_what_is_published(specification: dict[str, Any]) -> None:
    shown = metrics_of(specification["workspace"])
    assert {"selected/test/accuracy", "selected/test/weighted_f1", "test_best/test/weighted_f1"} <= shown
    assert metrics_of(specification["report"]) == shown
    text = json.dumps(specification["report"], ensure_ascii=False)
    for words in ("66.18", "| other |  | 12.92 |", "parameters (M)", "meld/all: wrong.", "A paper, Table 4"):
        assert words in text


def test_the_workspace_is_one_that_the_library_reads_back(specification: dict[str, Any]) -> None:
    view = ws.internal.View.model_validate(specification["workspace"])
    names = [section.name for section in ws.Workspace._from_model(view).sections]
    assert names == ["Scores", "Learning curves", "The choice of the epoch", "Balancing"]


def test_every_metric_of_a_panel_is_logged(
    specification: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    small = ["data.size=0.02", "hyperparameters.hidden_dim=16", "hyperparameters.max_epochs=1", "trainer=cpu"]
    train(compose([*small, "logger=wandb", f"run_dir={tmp_path / 'run'}"]))
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    content = file.read_bytes()
    assert [name for name in sorted(metrics_of(specification)) if name.encode() not in content] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mine/tabel", "--dry-run"], "Did you mean 'mine/table'?"),
        (["mine/table"], "Run wandb login, or look first with --dry-run"),
    ],
)
def test_mistakes_end_in_one_line(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dashboard, "has_account", lambda: False)
    with pytest.raises(SystemExit) as stop:
        command(monkeypatch, *arguments, "--entity", "E", "--config-dir", str(own))
    assert message in str(stop.value)
    assert not list(tmp_path.glob("*.json"))


def test_without_the_library_the_way_out_is_named(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    for name in [name for name in sys.modules if name.startswith(("wandb_workspaces.", "merc.reporting.dashboards"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("merc.reporting.dashboards", raising=False)
    with pytest.raises(SystemExit) as stop:
        command(monkeypatch, "mine/table", "--entity", "E", "--config-dir", str(own), "--dry-run")
    assert "pip install 'merc[dashboard]'" in str(stop.value)
