"""A multirun's arguments become the right jobs."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from merc.config import compose
from merc.errors import MercError
from merc.reporting.run_folder import run_path
from merc.sweeping.manifest import Manifest, find_manifests, read_manifest
from merc.sweeping.plan import Plan

Expand = Callable[..., list[Plan]]


def plain_run(*overrides: str) -> str:
    """The run folder of a single run with these overrides, below runs/."""
    config = compose(overrides)
    return str(run_path(config, "amb_dsgdn-synthetic_meld").relative_to("runs"))


def test_an_experiment_is_variants_times_seeds(expand: Expand) -> None:
    (plan,) = expand("experiment=toy/modalities")
    names = ["text", "text without graph", "all"]
    assert [(job.variant, job.seed) for job in plan.jobs] == list(itertools.product(names, [1, 2, 3]))


def test_variants_are_chosen_by_name_and_share_their_runs_with_the_whole_experiment(expand: Expand) -> None:
    (whole,) = expand("experiment=toy/modalities")
    (part,) = expand("experiment=toy/modalities", "variants=[all,text]")
    assert [job.run for job in part.jobs] == [job.run for job in whole.jobs if job.variant != "text without graph"]


def test_a_job_is_the_run_that_its_overrides_make_without_the_experiment(expand: Expand) -> None:
    (plan,) = expand("experiment=toy/modalities", "hyperparameters.window=4")
    runs = {(job.variant, job.seed): job.run for job in plan.jobs}
    assert runs["all", 2] == plain_run("hyperparameters.window=4", "seed=2")
    assert runs["text", 1] == plain_run("data.modalities=[text]", "hyperparameters.window=4", "seed=1")
    assert len(set(runs.values())) == 9


def test_the_file_of_the_experiment_changes_the_configuration(expand: Expand) -> None:
    (plan,) = expand("experiment=toy/denoisers")
    own = ["model=redifu", "hyperparameters.dropout=0.3", "denoiser.text=recurrent", "seed=1"]
    expected = str(run_path(compose(own), "redifu-synthetic_meld").relative_to("runs"))
    assert [job.run for job in plan.jobs if job.variant == "recurrent"] == [expected]


def test_the_command_line_wins_over_the_experiment(expand: Expand) -> None:
    (plan,) = expand("experiment=toy/modalities", "seed=7,8", "graph=gcn")
    assert [job.seed for job in plan.jobs] == [7, 8] * 3
    assert all("graph=gcn" in job.overrides and "graph=none" not in job.overrides for job in plan.jobs)
    (plan,) = expand("experiment=toy/denoisers", "hyperparameters.dropout=0.1", "denoiser/module@denoiser.text=none")
    assert all("denoiser/module@denoiser.text=none" in job.overrides for job in plan.jobs)
    assert not any("denoiser/module@denoiser.text=recurrent" in job.overrides for job in plan.jobs)
    assert len({job.run for job in plan.jobs}) == 1


def test_what_the_command_line_sweeps_makes_a_plan_each(expand: Expand) -> None:
    plans = expand("experiment=toy/modalities,toy/denoisers", "data=synthetic_meld,synthetic_iemocap", "seed=1")
    manifests = [plan.manifest for plan in plans if plan.manifest]
    assert [(m.experiment, m.data, m.corpus) for m in manifests] == [
        (experiment, f"synthetic_{corpus}", corpus)
        for experiment in ("toy/modalities", "toy/denoisers")
        for corpus in ("meld", "iemocap")
    ]
    assert len({(m.experiment, m.name) for m in manifests}) == 4


def test_without_an_experiment_there_are_jobs_and_no_manifest(expand: Expand) -> None:
    plans = expand("optimizer.lr=0.1,0.2", "seed=3,4")
    assert [plan.manifest for plan in plans] == [None, None]
    assert [job.overrides for plan in plans for job in plan.jobs] == [
        [f"optimizer.lr={rate}", f"seed={seed}", "resume=true"] for rate in (0.1, 0.2) for seed in (3, 4)
    ]
    (plan,) = expand("graph=none")
    assert [job.seed for job in plan.jobs] == [compose(["graph=none"]).seed]


def test_jobs_go_on_unless_they_start_again(expand: Expand) -> None:
    assert all(job.overrides[-1] == "resume=true" for plan in expand("experiment=toy/denoisers") for job in plan.jobs)
    (again,) = expand("experiment=toy/denoisers", "overwrite=true")
    assert again.overwrite
    assert not any("resume=true" in job.overrides for job in again.jobs)


def test_smoke_reduces_the_experiment(expand: Expand) -> None:
    (plan,) = expand("experiment=toy/modalities", "trainer=smoke")
    assert [(job.variant, job.seed) for job in plan.jobs] == [("text", 1), ("all", 1)]
    assert plan.run_root == Path("runs/smoke")
    config = compose([o for o in plan.jobs[0].overrides if not o.startswith("experiment=")])
    assert (config.trainer.max_epochs, config.hyperparameters.hidden_dim, config.data.size) == (1, 32, 0.03)


def test_smoke_leaves_alone_what_a_variant_or_the_command_line_sets() -> None:
    config = compose(["trainer=smoke", "hyperparameters.hidden_dim=48", "trainer.max_epochs=2", "run_root=elsewhere"])
    assert (config.hyperparameters.hidden_dim, config.trainer.max_epochs, config.run_root) == (48, 2, "elsewhere")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["experiment=toy/modalities", "+experiment.sed=1"], "names 'sed', which is none of name, title"),
        (
            ["experiment=toy/modalities", 'experiment.variants.text=["graf=none"]'],
            "variant 'text': The configuration has",
        ),
        (["experiment=toy/modalities", 'experiment.variants.text=["seed=many"]'], "variant 'text': seed=many is not"),
        (["experiment=toy/modalities", "variants=[txt]"], "variants names 'txt', which is none of text"),
        (["variants=[text]"], "add experiment="),
        (["experiment=toy/modalities", "seed=one"], "seed=one is not a whole number"),
        (["experiment=toy/modalities", "run_dir=runs/x"], "runs/x would hold several runs"),
        (["optimizer.lr=interval(0,1)"], "has no end. List the values: optimizer.lr=a,b,c"),
    ],
)
def test_a_mistake_stops_the_sweep_before_it_starts(expand: Expand, arguments: list[str], message: str) -> None:
    with pytest.raises(MercError) as error:
        expand(*arguments)
    assert message in str(error.value)


def test_a_folder_of_ones_own_may_follow_the_job(expand: Expand) -> None:
    (plan,) = expand("seed=1,2", "run_dir=mine/${seed}")
    assert [job.run for job in plan.jobs] == ["../mine/1", "../mine/2"]


def test_a_manifest_is_read_as_it_was_written(expand: Expand, tmp_path: Path) -> None:
    (plan,) = expand("experiment=toy/modalities", "seed=5,6", "graph=gcn", "logger=none")
    assert plan.manifest is not None
    plan.manifest.write(tmp_path)
    (path,) = find_manifests(tmp_path)
    assert path.relative_to(tmp_path / "sweeps").parent == Path("toy/modalities")
    content = json.loads(path.read_text())
    assert (content["format"], content["overrides"]) == (1, ["graph=gcn", "seed=5,6"])
    read = read_manifest(path)
    assert [vars(job) for job in read.jobs] == [vars(job) for job in plan.jobs]
    assert (read.experiment, read.data, read.corpus) == ("toy/modalities", "synthetic_meld", "meld")


def test_the_same_command_has_the_same_manifest_in_any_order(expand: Expand) -> None:
    def manifest(*arguments: str) -> Manifest:
        (plan,) = expand("experiment=toy/denoisers", *arguments)
        assert plan.manifest is not None
        return plan.manifest

    first, second = manifest("graph=gcn", "optimizer.lr=1"), manifest("optimizer.lr=1", "graph=gcn", "resume=true")
    assert first.name == second.name == manifest("optimizer.lr=1", "graph=gcn", "data=synthetic_meld").name
    others = (["graph=gcn"], ["graph=gcn", "optimizer.lr=1", "data.modalities=[text]"])
    assert all(manifest(*other).name != first.name for other in others)
