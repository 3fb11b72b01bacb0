"""The manifest of a sweep: which runs belong to it. It is written before the first of them starts."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from merc.errors import MercError
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
        overrides: those of the command line, which apply to every job.
        jobs: every run, variant by variant.
    """

    experiment: str
    data: str
    corpus: str
    overrides: Sequence[str]
    jobs: Sequence[Job]

    @property
    def file(self) -> Path:
        """``<experiment>/<data>-<hash of the overrides>.json``: the same for the same command, in any order."""
        digest = hashlib.sha256(json.dumps(sorted(self.overrides)).encode()).hexdigest()[:8]
        return Path(self.experiment) / f"{self.data}-{digest}.json"

    def write(self, run_root: Path) -> None:
        """Write the manifest below the folder of the run folders; an earlier one of the same command is replaced."""
        write_json(run_root / FOLDER / self.file, {"format": FORMAT, **asdict(self)})


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
    except (ValueError, TypeError, KeyError) as error:
        raise MercError(f"{path} is no manifest of a sweep ({error}). Start the sweep again to renew it.") from error


def find_manifests(run_root: Path) -> Iterator[Path]:
    """The manifests below the folder of the run folders, by name."""
    yield from sorted(path for path in (run_root / FOLDER).rglob("*.json") if not path.name.startswith("."))
