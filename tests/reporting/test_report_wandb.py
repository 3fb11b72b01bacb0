"""Aggregates at Weights & Biases, without a network."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wandb
from lab import PUBLISHED, Lab, section_of

from merc.reporting.report.wandb_runs import log_sections, variant_summary
from merc.reporting.report.write import write_report


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """Name → what a run was told, besides what the offline files hold."""
    runs: dict[str, dict[str, Any]] = {}
    init = wandb.init

    def spy(**arguments: Any) -> Any:
        run = init(**arguments)
        runs[arguments["name"]] = arguments | {"logged": []}
        log = run.log
        monkeypatch.setattr(run, "log", lambda data: runs[arguments["name"]]["logged"].append(data) or log(data))
        return run

    monkeypatch.setattr(wandb, "init", spy)
    return runs


def test_every_variant_has_its_aggregate(lab: Lab, tmp_path: Path, logged: dict[str, dict[str, Any]]) -> None:
    lab.grid("mine/table", {"text": 0.4, "all": 0.6}, published=PUBLISHED)
    section = section_of(lab)
    out = tmp_path / "out"
    write_report([section], out)
    log_sections([section], out, "merc", mode="offline")
    assert wandb.run is None
    ids = {name: run["id"] for name, run in logged.items()}
    assert [name.rsplit(" ", 1)[1] for name in ids] == ["text", "all", "report"]
    assert len(set(ids.values())) == 3
    text = logged[f"{section.key} text"]
    assert (text["group"], text["job_type"], text["tags"]) == (
        f"mine/table: text ({section.sweep.name})",
        "aggregate",
        ["mine/table"],
    )
    (seeds,) = [data["seeds"] for data in text["logged"]]
    assert [row[0] for row in seeds.data] == [1, 2, 3]
    keys = {key for data in logged[f"{section.key} report"]["logged"] for key in data}
    assert keys == {"tables/scores", "tables/published", "tables/epochs", "tables/tests", "figures/differences"}
    files = list(out.glob("wandb/offline-run-*/*.wandb"))
    assert len(files) == 3
    assert sum(b"selected/test/weighted_f1/sd" in file.read_bytes() for file in files) == 2

    log_sections([section], out, "merc", mode="offline")
    assert {name: run["id"] for name, run in logged.items()} == ids, "the next report updates the same runs"


def test_the_summary_of_a_variant_is_that_of_its_seeds(lab: Lab) -> None:
    lab.grid("mine/table", {"text": 0.4, "all": 0.6})
    section = section_of(lab)
    text, reference = (variant_summary(section, row) for row in section.rows)
    values = [value / 100 for value in section.rows[0].values("weighted_f1")]
    assert text["selected/test/weighted_f1"] == pytest.approx(np.mean(values))
    assert text["selected/test/weighted_f1/sd"] == pytest.approx(np.std(values, ddof=1))
    assert text["p_runs/weighted_f1"] == section.tests["weighted_f1"]["text"].p_runs
    assert text["difference/weighted_f1"] < 0
    assert not any(name.startswith("p_") for name in reference)


def test_a_single_seed_has_no_spread(lab: Lab) -> None:
    lab.grid("mine/table", {"text": 0.4, "all": 0.6}, seeds=(1,))
    section = section_of(lab)
    summary = variant_summary(section, section.rows[0])
    assert "selected/test/weighted_f1" in summary
    assert not any(name.endswith("/sd") or name.startswith("p_variants") for name in summary)
