"""Which runs belong to a sweep: its manifests, below ``sweeps/`` in the folder of the run folders."""

import json
from collections.abc import Sequence
from pathlib import Path

from merc.errors import MercError, nearest


def runs_of_sweeps(run_root: Path, experiments: Sequence[str]) -> list[Path]:
    """The run folders of all sweeps of some experiments, each once; not all of them need exist.

    Args:
        run_root: the folder of the run folders.
        experiments: names as on the command line, such as ``amb_dsgdn/fig7_noise``.

    Raises:
        MercError: an experiment was never started there.
    """
    root = run_root / "sweeps"
    runs: dict[Path, None] = {}
    for name in experiments:
        manifests = sorted((root / name).glob("*.json"))
        if not manifests:
            started = {str(path.parent.relative_to(root)) for path in root.rglob("*.json")}
            raise MercError(
                f"There is no sweep of the experiment '{name}' in {root}.{nearest(name, started)} "
                f"Start it with `python -m merc.train -m experiment={name}`, or say where its runs are: run_root=…."
            )
        for manifest in manifests:
            jobs = json.loads(manifest.read_text(encoding="utf-8"))["jobs"]
            runs |= dict.fromkeys(run_root / job["run"] for job in jobs)
    return list(runs)
