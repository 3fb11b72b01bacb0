"""Sweeps through the command: what is run, what is skipped, what is said."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra.core.plugins import Plugins
from omegaconf import OmegaConf

from merc.data.corpora import MELD
from merc.data.store import write_store
from merc.data.synthetic import generate
from merc.reporting.run_folder import RunFolder
from merc.sweeping.manifest import Job, find_manifests, read_manifest
from merc.sweeping.sweeper import _groups, _only, _overrides
from tests.sweeping.conftest import TINY

Sweep = Callable[..., tuple[int, str, str]]
EXPERIMENT = ("experiment=toy/modalities", *TINY)


def folders(root: Path = Path("runs")) -> list[RunFolder]:
    (path,) = find_manifests(root)
    return [RunFolder(root / job.run) for job in read_manifest(path).jobs]


def written(folder: RunFolder) -> tuple[str, int]:
    return folder.metrics.read_text(), folder.metrics.stat().st_mtime_ns


def test_a_sweep_runs_every_job_once_and_nothing_the_second_time(sweep: Sweep) -> None:
    status, out, err = sweep(*EXPERIMENT, "seed=1,2")
    assert (status, err) == (0, "")
    assert out.splitlines()[-1] == "Sweep of 6 jobs: 6 done"
    assert len(out.splitlines()) == 7, "one line for a run"
    before = [written(folder) for folder in folders()]
    status, out, _ = sweep(*EXPERIMENT, "seed=1,2")
    assert (status, out) == (0, "Sweep of 6 jobs: 6 finished before\n")
    assert [written(folder) for folder in folders()] == before
    assert all(folder.read_status()["attempts"] == 1 for folder in folders())


def test_a_run_knows_nothing_of_its_experiment(sweep: Sweep) -> None:
    sweep(*EXPERIMENT, "seed=1")
    folder = folders()[0]
    assert "experiment" not in OmegaConf.load(folder.config)
    assert "toy" not in folder.config.read_text()
    command = json.loads(folder.environment.read_text())["command"]
    assert "data.modalities=[text]" in command
    assert "seed=1" in command


def test_variants_with_the_same_configuration_share_their_runs(sweep: Sweep) -> None:
    status, out, _ = sweep(*EXPERIMENT, "seed=1", "data.modalities=[audio]", "graph=none")
    assert (status, out.splitlines()[-1]) == (0, "Sweep of 1 jobs: 1 done")
    assert len(folders()) == 3
    assert len({folder.path for folder in folders()}) == 1


def test_failed_jobs_are_listed_and_tried_again(sweep: Sweep) -> None:
    # A store that is not there fails in the job, not in the plan.
    missing = [*EXPERIMENT[:1], "data=meld", "seed=1", "trainer=cpu", "hyperparameters.hidden_dim=16"]
    for attempts in (1, 2):
        status, out, err = sweep(*missing)
        assert status == 1
        assert out.splitlines()[0] == "Sweep of 3 jobs: 3 failed"
        assert "text without graph, seed 1" in out
        assert "stores/meld" in out
        assert err.splitlines()[-1] == "Error: 3 of 3 jobs failed. The same command tries them again."
        assert "Traceback" not in err
        status_file = folders()[0].read_status()
        assert (status_file["state"], status_file["attempts"]) == ("failed", attempts)
        assert "stores/meld" in status_file["error"]


def test_a_contradiction_fails_its_job_alone(sweep: Sweep) -> None:
    status, out, _ = sweep(*TINY, "seed=1", "classifier=text_logits", "data.modalities=[text],[audio]")
    assert status == 1
    assert out.splitlines()[-2] == "Sweep of 2 jobs: 1 done, 1 failed"
    failed = [json.loads(path.read_text()) for path in Path("runs").glob("*/seed=1/status.json")]
    assert sorted(entry["state"] for entry in failed) == ["failed", "finished"]


def test_a_job_of_another_process_is_left_alone(sweep: Sweep) -> None:
    sweep(*EXPERIMENT, "seed=1")
    folder = folders()[1]
    script = (
        "import pathlib, sys\nfrom merc.reporting.run_folder import RunFolder, claim\n"
        f"with claim(RunFolder(pathlib.Path({str(folder.path)!r})), {{}}, resume=False, overwrite=True):\n"
        "    print('mine', flush=True)\n    sys.stdin.read()\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"mine\n"
        assert sweep(*EXPERIMENT, "seed=1")[:2] == (
            0,
            "Sweep of 3 jobs: 2 finished before, 1 left to another process\n",
        )
        assert folder.read_status()["pid"] == other.pid
        other.kill()
    assert sweep(*EXPERIMENT, "seed=1")[1].splitlines()[-1] == "Sweep of 3 jobs: 2 finished before, 1 done"


def test_runs_of_features_that_were_replaced_are_not_taken_for_finished(sweep: Sweep, tmp_path: Path) -> None:
    def prepare(seed: int) -> None:
        conversations = generate(MELD, size=0.02, seed=seed, dims={"text": 6, "audio": 4, "visual": 3})
        write_store(tmp_path / "store", conversations, corpus=None, sources={}, overwrite=True)

    arguments = (*(a for a in TINY if not a.startswith("data")), "data=custom", f"data.store={tmp_path / 'store'}")
    prepare(seed=1)
    assert sweep(*arguments, "seed=1")[1].splitlines()[-1] == "Sweep of 1 jobs: 1 done"
    prepare(seed=2)
    status, _, err = sweep(*arguments, "seed=1")
    assert (status, "trained on other data" in err) == (1, True)
    assert sweep(*arguments, "seed=1", "overwrite=true")[1].splitlines()[-1] == "Sweep of 1 jobs: 1 done"


def test_a_single_run_of_an_experiment_is_refused(command: Sweep) -> None:
    status, _, err = command(*EXPERIMENT)
    assert status == 1
    assert "Add -m to run them: -m experiment=toy/modalities." in err


def test_seeds_at_once_without_a_sweep_are_refused(command: Sweep) -> None:
    status, _, err = command(*TINY, "seeds_per_process=4")
    assert status == 1
    assert "Add -m and list the seeds: -m seed=1,2,3,4 seeds_per_process=4." in err
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("experiment=toy/modalitys", "'toy/modalitys' is no choice of 'experiment'"),
        ("hydra/launcher=jblib", "Did you mean 'joblib'?"),
        ("hydra.launcher._target_=hydra_plugins.absent.Launcher", "pip install 'merc[sweeps]'"),
    ],
)
def test_a_mistake_is_explained(sweep: Sweep, argument: str, message: str) -> None:
    arguments = [a for a in EXPERIMENT if not argument.startswith(a.split("=")[0] + "=")]
    status, _, err = sweep(*arguments, argument)
    assert status == 1
    assert message in err
    assert len(err.splitlines()) == 1


def test_a_launcher_that_gives_up_ends_in_failed_jobs(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: Any, **__: Any) -> None:
        raise RuntimeError("a worker was killed")

    name = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
    monkeypatch.setattr(Plugins.instance().class_name_to_class[name], "launch", killed)
    status, out, err = sweep(*EXPERIMENT, "seed=1")
    assert status == 1
    assert "The launcher gave up: a worker was killed" in out
    assert err.splitlines()[-1] == "Error: 3 of 3 jobs failed. The same command tries them again."


def job_of(seed: int, *overrides: str) -> tuple[Job, int]:
    return Job("", seed, [*overrides, f"seed={seed}", "resume=true"], f"{'-'.join(overrides)}/{seed}"), 2


def test_jobs_that_differ_in_the_seed_alone_are_grouped() -> None:
    jobs = [job_of(seed, graph) for graph in ("graph=gcn", "graph=gat") for seed in (1, 2, 3)]
    jobs.insert(1, (jobs[0][0], 1))  # of a plan that asks for one seed at a time
    groups = _groups({Path(f"{i}"): job for i, job in enumerate(jobs)})
    assert [[int(str(path)) for path in group] for group in groups] == [[0, 2], [1], [3], [4, 5], [6]]
    assert _overrides(list(groups[0].values())) == ["graph=gcn", "seed=[1,2]", "resume=true"]
    assert _overrides(list(groups[1].values())) == ["graph=gcn", "seed=1", "resume=true"]


def test_a_restarted_sweep_keeps_its_groups() -> None:
    groups = _groups({Path(f"{seed}"): job_of(seed) for seed in range(1, 6)})
    left = _only(groups, {Path(path) for path in "1345"})
    assert [[job.seed for job in group.values()] for group in left] == [[1], [3, 4], [5]]
    assert _only(groups, {Path("4")}) == [{Path("4"): job_of(4)[0]}]


def test_seeds_of_a_variant_are_trained_at_once(sweep: Sweep) -> None:
    arguments = (*EXPERIMENT, "variants=[text]", "seeds_per_process=2")
    status, out, err = sweep(*arguments)
    assert (status, err) == (0, "")
    assert out.splitlines()[-1] == "Sweep of 3 jobs: 3 done"
    sizes = [json.loads(folder.costs.read_text()).get("seeds_at_once", {}).get("seeds") for folder in folders()]
    assert sizes == [2, 2, None]
    commands = [json.loads(folder.environment.read_text())["command"] for folder in folders()]
    assert ["seed=1" in command for command in commands] == [True, False, False]
    assert sweep(*arguments[:-1])[1] == "Sweep of 3 jobs: 3 finished before\n"


def test_what_cannot_be_stacked_says_so_for_every_seed(sweep: Sweep) -> None:
    refused = (*TINY, "seed=1,2", "balancing=ogm_ge", "seeds_per_process=2")
    status, out, err = sweep(*refused)
    assert status == 1
    assert out.splitlines()[0] == "Sweep of 2 jobs: 2 failed"
    reason = "Several seeds cannot be trained at once: GradientModulation works on single runs only."
    assert (out.count(reason), err.count(reason)) == (2, 1)
    assert sweep(*refused[:-1])[1].splitlines()[-1] == "Sweep of 2 jobs: 2 done"


@pytest.mark.parametrize("number", ["0", "-1"])
def test_no_seeds_at_once_are_refused(sweep: Sweep, number: str) -> None:
    assert (
        f"seeds_per_process={number}: give a whole number of at least 1."
        in sweep(*TINY, "seed=1,2", f"seeds_per_process={number}")[2]
    )


def test_seeds_at_once_through_the_real_command(tmp_path: Path) -> None:
    arguments = [*TINY, "seed=1,2", "seeds_per_process=2", "trainer.enable_progress_bar=false"]
    command = [sys.executable, "-m", "merc.train", "-m", *arguments, f"run_root={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "Sweep of 2 jobs: 2 done"
    runs = [RunFolder(path) for path in sorted(tmp_path.glob("*/seed=*"))]
    assert [folder.path.name for folder in runs] == ["seed=1", "seed=2"]
    assert all(folder.finished and folder.reported.exists() and folder.predictions.exists() for folder in runs)
