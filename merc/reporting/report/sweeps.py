"""The sweeps that a run root holds: which runs belong to which variant of which experiment."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merc.errors import MercError, nearest


@dataclass(frozen=True)
class Job:
    """One run of a sweep.

    Args:
        variant: its name in the experiment.
        row: the variant and, where the command line swept over more, the overrides that set this run apart.
        seed: of the run.
        run: its folder.
    """

    variant: str
    row: str
    seed: int
    run: Path


@dataclass(frozen=True)
class Sweep:
    """An experiment on one corpus, as started by one command.

    Args:
        experiment: its name.
        data: choice of the data.
        corpus: whose published numbers apply.
        overrides: those of the command line that apply to all jobs.
        jobs: in the order of the variants.
        name: ``<data>-<hash>``, the name of its manifest.
    """

    experiment: str
    data: str
    corpus: str
    overrides: tuple[str, ...]
    jobs: tuple[Job, ...]
    name: str


def read_sweeps(run_root: Path, names: Sequence[str] = ()) -> list[Sweep]:
    """The sweeps below ``<run_root>/sweeps``, sorted by experiment.

    Args:
        run_root: folder of the run folders.
        names: experiments, or folders of experiments; none: all.

    Raises:
        MercError: there is no sweep, none of such an experiment, or a manifest is damaged.
    """
    folder = run_root / "sweeps"
    sweeps = [_read(path, run_root) for path in sorted(folder.rglob("*.json"))]
    if not sweeps:
        raise MercError(
            f"There is no sweep in {folder}. Start one with python -m merc.train -m experiment=NAME, "
            "or say where the runs are: run_root=FOLDER."
        )
    there = {sweep.experiment for sweep in sweeps}
    for name in names:
        if not any(_selects(name, experiment) for experiment in there):
            raise MercError(
                f"No sweep of '{name}' is in {folder}, only of {', '.join(sorted(there))}.{nearest(name, there)}"
            )
    return [sweep for sweep in sweeps if not names or any(_selects(name, sweep.experiment) for name in names)]


def _selects(name: str, experiment: str) -> bool:
    return experiment == name or experiment.startswith(f"{name.rstrip('/')}/")


def _read(path: Path, run_root: Path) -> Sweep:
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        return Sweep(
            experiment=manifest["experiment"],
            data=manifest["data"],
            corpus=manifest["corpus"],
            overrides=tuple(manifest["overrides"]),
            jobs=tuple(_jobs(manifest["jobs"], run_root)),
            name=path.stem,
        )
    except (ValueError, KeyError, TypeError) as error:
        raise MercError(
            f"{path} is no manifest of a sweep: {error!r}. Start the sweep again; runs are kept."
        ) from error


def _jobs(entries: Sequence[dict[str, Any]], run_root: Path) -> Iterable[Job]:
    common: dict[str, set[str]] = {}
    for entry in entries:
        own = set(entry["overrides"])
        common[entry["variant"]] = common.get(entry["variant"], own) & own
    for entry in entries:
        apart = [text for text in entry["overrides"] if text not in common[entry["variant"]]]
        swept = [text for text in apart if not text.startswith("seed=")]
        row = ", ".join([entry["variant"], *swept])
        yield Job(entry["variant"], row, entry["seed"], run_root / entry["run"])


def memberships(run: Path) -> list[tuple[str, str]]:
    """Experiment and row of every sweep that a run folder ``<run_root>/<name>/seed=<seed>`` belongs to.

    Raises:
        MercError: a manifest is damaged.
    """
    path = run.resolve()
    run_root = path.parents[1]
    sweeps = [_read(manifest, run_root) for manifest in sorted((run_root / "sweeps").rglob("*.json"))]
    there = ((sweep.experiment, job.row) for sweep in sweeps for job in sweep.jobs if job.run == path)
    return list(dict.fromkeys(there))


def run_group(experiment: str, row: str) -> str:
    """The group of a variant's runs at Weights & Biases, which takes 128 characters."""
    return f"{experiment}: {row}"[:128]


def tag(experiment: str) -> str:
    """The tag of an experiment's runs at Weights & Biases, which takes 64 characters."""
    return experiment[:64]
