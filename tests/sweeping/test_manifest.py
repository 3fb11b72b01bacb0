"""What several commands started is read as the sweeps that it is."""

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from merc.errors import MercError
from merc.sweeping.manifest import Job, Manifest, find_manifests, read_manifest, read_sweeps, sweeps_of


def manifest(seeds: Sequence[int], *overrides: str, data: str = "meld", folder: str = "model-1") -> Manifest:
    """Two variants, as a command started them with these seeds."""
    jobs = [Job(name, seed, [], f"{folder}-{name}/seed={seed}") for name in ("full", "all") for seed in seeds]
    return Manifest("method/table", data, "meld", [*overrides, f"seed={','.join(map(str, seeds))}"], jobs)


def start(root: Path, *manifests: Manifest) -> None:
    """Write manifests, a second apart."""
    for second, each in enumerate(manifests):
        before = set(find_manifests(root))
        each.write(root)
        for path in set(find_manifests(root)) - before or {root / "sweeps" / each.experiment / f"{each.name}.json"}:
            os.utime(path, (second, second))


def runs(sweep: Manifest) -> list[tuple[str, int]]:
    return [(job.variant, job.seed) for job in sweep.jobs]


def test_seeds_that_came_later_join_the_sweep(tmp_path: Path) -> None:
    start(tmp_path, manifest([2, 3], "graph=gcn"), manifest([1], "graph=gcn"))
    (sweep,) = read_sweeps(tmp_path)
    assert runs(sweep) == [(variant, seed) for variant in ("full", "all") for seed in (1, 2, 3)]
    assert sweep.overrides == ("graph=gcn",)


def test_other_data_and_other_overrides_are_sweeps_of_their_own(tmp_path: Path) -> None:
    others = (manifest([2], "graph=gcn"), manifest([2], data="iemocap"))
    start(tmp_path, manifest([1]), *others)
    assert len(read_sweeps(tmp_path)) == 3
    assert all(len(sweep.jobs) == 2 for sweep in read_sweeps(tmp_path))


def test_runs_of_an_earlier_configuration_are_not_averaged_with_later_ones(tmp_path: Path) -> None:
    start(tmp_path, manifest([1, 2]), manifest([1], folder="model-2"))
    (sweep,) = read_sweeps(tmp_path)
    assert [job.run for job in sweep.jobs] == ["model-2-full/seed=1", "model-2-all/seed=1"]
    start(tmp_path, manifest([1], folder="model-2"), manifest([1, 2]))
    (sweep,) = read_sweeps(tmp_path)
    assert {job.run.split("/")[0] for job in sweep.jobs} == {"model-1-full", "model-1-all"}


def test_sweeps_are_chosen_by_experiment_or_folder(tmp_path: Path) -> None:
    for name in ("method/table10", "method/table9", "other/table1"):
        Manifest(name, "meld", "meld", [], []).write(tmp_path)
    assert [sweep.experiment for sweep in read_sweeps(tmp_path)] == ["method/table9", "method/table10", "other/table1"]
    assert [sweep.experiment for sweep in read_sweeps(tmp_path, ["other"])] == ["other/table1"]
    assert [sweep.experiment for sweep in read_sweeps(tmp_path, ["method/table9"])] == ["method/table9"]
    with pytest.raises(MercError, match=r"no sweep of 'method/tabel9'.*Did you mean 'method/table9'.*run_root="):
        read_sweeps(tmp_path, ["method/tabel9"])
    with pytest.raises(MercError, match=r"no sweep in .*nowhere.*-m experiment=NAME.*run_root="):
        read_sweeps(tmp_path / "nowhere")


def test_without_a_sweep_the_folders_below_that_have_one_are_named(tmp_path: Path) -> None:
    (tmp_path / "model-data-hash" / "seed=1").mkdir(parents=True)
    with pytest.raises(MercError, match=r"only experiments \(experiment=NAME\) have one\. Start one"):
        read_sweeps(tmp_path)
    for name in ("smoke", "older"):
        Manifest("method/table1", "meld", "meld", [], []).write(tmp_path / name)
    older, smoke = tmp_path / "older", tmp_path / "smoke"
    with pytest.raises(MercError) as caught:
        read_sweeps(tmp_path)
    assert f"There are some in {older}, {smoke}: run_root={older} or run_root={smoke}. Start" in str(caught.value)


def test_a_run_knows_its_sweeps(tmp_path: Path) -> None:
    start(tmp_path, manifest([1, 2]), manifest([1], "graph=gcn"), manifest([1], data="iemocap", folder="model-2"))
    found = sweeps_of(tmp_path / "model-1-all/seed=1")
    assert [(sweep.data, tuple(sweep.overrides), variant) for sweep, variant in found] == [
        ("meld", overrides, "all") for overrides in sorted([(), ("graph=gcn",)], key=lambda o: name_of(*o))
    ]
    assert sweeps_of(tmp_path / "elsewhere/seed=1") == []


def name_of(*overrides: str) -> str:
    return Manifest("method/table", "meld", "meld", overrides, []).name


@pytest.mark.parametrize("content", ["{", "[]", '{"format": 1}', '{"format": 2}', '{"format": 1, "jobs": [{}]}'])
def test_a_damaged_manifest_is_explained(tmp_path: Path, content: str) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(MercError, match="Start the sweep again"):
        read_manifest(tmp_path / "x.json")
