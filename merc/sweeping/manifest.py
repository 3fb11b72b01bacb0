"""The manifest of a sweep: which runs belong to it. It is written before the first of them starts."""

import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from merc.errors import MercError, nearest
from merc.files import write_json

FORMAT = 1
FOLDER = "sweeps"
"""The folder of the manifests in the folder of the run folders."""


@dataclass(frozen=True)
class Job:
    """One run of a sweep.

    Args:
        variant: of the experiment.
        seed: of the run.
        overrides: those of the command line that compose the run's configuration.
        run: the run folder, as a path from the folder of the run folders.
    """

    variant: str
    seed: int
    overrides: Sequence[str]
    run: str


@dataclass(frozen=True)
class Manifest:
    """What a sweep of an experiment consists of.

    Args:
        experiment: name of the experiment.
        data: the choice of ``data``.
        corpus: name of the corpus, which chooses the published numbers.
        overrides: the others of the command line, which apply to every job.
        jobs: every run, variant by variant.
    """

    experiment: str
    data: str
    corpus: str
    overrides: Sequence[str]
    jobs: Sequence[Job]

    @property
    def name(self) -> str:
        """``<data>-<hash of the overrides>``: the same for the same command, in any order."""
        return f"{self.data}-{hashlib.sha256(json.dumps(sorted(self.overrides)).encode()).hexdigest()[:8]}"

    def write(self, run_root: Path) -> None:
        """Write the manifest below the folder of the run folders; an earlier one of the same command is replaced."""
        path = run_root / FOLDER / self.experiment / f"{self.name}.json"
        write_json(path, {"format": FORMAT, **asdict(self)})

    def without_choices(self) -> "Manifest":
        """The same without the seeds and variants that the command line chose: such commands are one sweep."""
        return replace(self, overrides=tuple(o for o in self.overrides if not o.startswith(("seed=", "variants="))))

    def joined(self, older: "Manifest") -> "Manifest":
        """This sweep with the seeds that an older command gave its variants, and with that one's other variants.

        Runs of one variant lie in one folder, unless the experiment or a default has changed since: what the older
        command made of another configuration is left out.
        """
        folders = {job.variant: os.path.dirname(job.run) for job in self.jobs}
        there = {(job.variant, job.seed) for job in self.jobs}
        missing = [job for job in older.jobs if (job.variant, job.seed) not in there]
        added = [job for job in missing if folders.get(job.variant) in (None, os.path.dirname(job.run))]
        order = list(dict.fromkeys(job.variant for job in (*self.jobs, *added)))
        jobs = sorted([*self.jobs, *added], key=lambda job: (order.index(job.variant), job.seed))
        return replace(self, jobs=jobs)


def read_manifest(path: Path) -> Manifest:
    """The manifest in a file.

    Raises:
        MercError: the file is no manifest, or one of another version.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("format") != FORMAT:
            raise MercError(f"{path} was written by another version of merc. Start the sweep again to renew it.")
        return Manifest(**{**content, "jobs": [Job(**job) for job in content["jobs"]]})
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise MercError(f"{path} is no manifest of a sweep ({error}). Start the sweep again to renew it.") from error


def find_manifests(run_root: Path) -> list[Path]:
    """The manifests below the folder of the run folders, by name."""
    return sorted(path for path in (run_root / FOLDER).rglob("*.json") if not path.name.startswith("."))


def read_sweeps(run_root: Path, names: Sequence[str] = ()) -> list[Manifest]:
    """The sweeps of experiments, in natural order of their names.

    What several commands gave an experiment on the same data with the same overrides, other seeds or variants each
    time, is one sweep; where they disagree about a run, the last one counts.

    Args:
        run_root: folder of the run folders.
        names: experiments, or folders of experiments; none: all.

    Raises:
        MercError: there is no sweep, none of such an experiment, or a manifest cannot be read.
    """
    sweeps = _sweeps(run_root)
    if not sweeps:
        raise MercError(
            f"There is no sweep in {run_root / FOLDER}: only experiments (experiment=NAME) have one."
            f"{_elsewhere(run_root)} Start one with python -m merc.train -m experiment=NAME, or say where the runs "
            "are: run_root=FOLDER."
        )
    there = {sweep.experiment for sweep in sweeps}
    for name in names:
        if not any(_selects(name, experiment) for experiment in there):
            raise MercError(
                f"There is no sweep of '{name}' in {run_root / FOLDER}.{nearest(name, there)} Start it with "
                f"python -m merc.train -m experiment={name}, or say where its runs are: run_root=FOLDER."
            )
    return [sweep for sweep in sweeps if not names or any(_selects(name, sweep.experiment) for name in names)]


def _elsewhere(run_root: Path) -> str:
    """A sentence on the folders below the folder of the run folders that have sweeps of their own; empty: none has."""
    folders = sorted(run_root.iterdir()) if run_root.is_dir() else []
    there = [folder for folder in folders if folder.is_dir() and find_manifests(folder)]
    if not there:
        return ""
    return f" There are some in {', '.join(map(str, there))}: {' or '.join(f'run_root={f}' for f in there)}."


def sweeps_of(run: Path) -> list[tuple[Manifest, str]]:
    """Every sweep that a run folder ``<run_root>/<name>/seed=<seed>`` belongs to, and as which variant.

    Raises:
        MercError: a manifest cannot be read.
    """
    path = run.resolve()
    run_root = path.parents[1]
    return [
        (sweep, job.variant)
        for sweep in _sweeps(run_root)
        for job in sweep.jobs
        if (run_root / job.run).resolve() == path
    ]


def _sweeps(run_root: Path) -> list[Manifest]:
    newest_first = sorted(find_manifests(run_root), key=lambda path: path.stat().st_mtime, reverse=True)
    sweeps: dict[tuple[str, str], Manifest] = {}
    for manifest in (read_manifest(path).without_choices() for path in newest_first):
        key = (manifest.experiment, manifest.name)
        sweeps[key] = sweeps[key].joined(manifest) if key in sweeps else manifest
    return [sweeps[key] for key in sorted(sweeps, key=_natural)]


def _natural(key: tuple[str, str]) -> list[tuple[int, str]]:
    """Table 9 comes before table 10."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", " ".join(key))]


def _selects(name: str, experiment: str) -> bool:
    return experiment == name or experiment.startswith(f"{name.rstrip('/')}/")
