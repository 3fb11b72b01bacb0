"""The scores over seeds that a sweep without an experiment prints."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from merc.files import write_json
from merc.reporting.run_folder import RunFolder
from merc.sweeping.seeds import scores_over_seeds
from tests.sweeping.conftest import TINY


def put(path: Path, state: str = "finished", **metrics: tuple[float, float]) -> None:
    folder = RunFolder(path)
    write_json(folder.status, {"state": state})
    scores = {epoch: {"weighted_f1": f1, "accuracy": accuracy} for epoch, (f1, accuracy) in metrics.items()}
    write_json(folder.metrics, scores)


def test_a_line_is_the_mean_and_sample_deviation_of_the_finished_seeds(tmp_path: Path) -> None:
    put(tmp_path / "a/seed=1", selected=(0.50, 0.60), last=(0.1, 0.1))
    put(tmp_path / "a/seed=2", selected=(0.52, 0.64), last=(0.1, 0.1))
    put(tmp_path / "a/seed=3", state="failed", selected=(0.9, 0.9))
    seeds = {tmp_path / f"a/seed={seed}": seed for seed in (1, 2, 3, 4)}
    expected = "weighted F1 51.00 ± 1.41, accuracy 62.00 ± 2.83 (2 seeds, selected epoch)"
    assert scores_over_seeds(seeds) == [f"{tmp_path / 'a'}: {expected}"]


def test_without_a_selected_epoch_the_last_counts(tmp_path: Path) -> None:
    for seed in (1, 2):
        put(tmp_path / f"a/seed={seed}", last=(0.4, 0.5))
    (line,) = scores_over_seeds({tmp_path / f"a/seed={seed}": seed for seed in (1, 2)})
    assert line.endswith("weighted F1 40.00 ± 0.00, accuracy 50.00 ± 0.00 (2 seeds, last epoch)")


@pytest.mark.parametrize("names", [("a/seed=1", "b/seed=2"), ("mine/x", "mine/y"), ("a/seed=1",), ()])
def test_one_seed_of_a_configuration_makes_no_line(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        put(tmp_path / name, last=(0.4, 0.5))
    assert scores_over_seeds({tmp_path / name: number for number, name in enumerate(names, 1)}) == []


def test_a_sweep_prints_them_whenever_its_runs_were_finished(sweep: Callable[..., tuple[int, str, Any]]) -> None:
    arguments = (*TINY, "graph=none,gcn", "seed=1,2")
    first = sweep(*arguments)[1].splitlines()
    assert first[-1] == "Sweep of 4 jobs: 4 done"
    assert len(first) == 4 + 2 + 1
    assert all(line.startswith("runs/amb_dsgdn-synthetic_meld-") for line in first[4:6])
    assert all(line.endswith("(2 seeds, selected epoch)") for line in first[4:6])
    assert sweep(*arguments)[1].splitlines() == [*first[4:6], "Sweep of 4 jobs: 4 finished before"]
