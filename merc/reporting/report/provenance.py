"""How the numbers of a section came about: commands, protocol, seeds, dates, versions and hardware of its runs."""

import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from merc.reporting.report.runs import Run
from merc.reporting.report.sections import Row, Section, same_dialogues

PACKAGES = ("merc", "torch", "lightning", "python")
"""Those whose versions are told; the environment.json of a run has more."""

RUN_ROOT = Path("runs")
"""The default of the commands."""

PROTOCOLS = {
    "selected": "scores on the test split, at the epoch with the best validation weighted F1 (selected)",
    "last": "trained on training and validation data together, scores on the test split at the last epoch (last)",
}


def portable(overrides: Iterable[str]) -> list[str]:
    """Overrides as anybody may read them: of the paths of a machine only the last name is kept."""
    return [re.sub(r"(?<==)([\"']?)/(?:[^,\]]*/)?", r"\1path/to/", override) for override in overrides]


def commands(section: Section, out: Path) -> list[str]:
    """The commands that train and report a section again, for a shell; each names a folder of runs of one's own.

    Args:
        section: what they make.
        out: folder of the report; left out where it is a path of this machine alone.
    """
    name = section.experiment.name
    seeds = sorted({seed for row in section.rows for seed in row.runs})
    chosen = [f"data={section.sweep.data}", *portable(section.sweep.overrides), f"seed={','.join(map(str, seeds))}"]
    variants = list(dict.fromkeys(job.variant for job in section.sweep.jobs))
    if set(variants) != set(section.experiment.variants):
        chosen.append(f"variants=[{','.join(variants)}]")
    where = [] if section.run_root == RUN_ROOT else portable([f"run_root={section.run_root}"])
    train = ["python", "-m", "merc.train", "-m", f"experiment={name}", *chosen, *where]
    report = ["python", "-m", "merc.report", name, *where, *([] if out.is_absolute() else [f"out={out}"])]
    evaluate = ["python", "-m", "merc.evaluate", f"sweep={name}", *where]
    disturbed = any(run.robustness for run in _finished(section))
    return [shlex.join(words) for words in (train, *([evaluate] if disturbed else []), report)]


def facts(section: Section) -> list[str]:
    """What a reader must know to judge a section's scores, a sentence each; empty without finished runs."""
    runs = list(_finished(section))
    if not runs:
        return []
    told = [
        ("Data", _data(section)),
        ("Protocol", "; ".join(PROTOCOLS[each] for each in _distinct(row.headline for row in _with_runs(section)))),
        ("Seeds", _seeds(section)),
        ("Trained", _dates(runs)),
        ("Versions", " / ".join(_distinct(_versions(run.environment) for run in runs))),
        ("Hardware", " / ".join(_distinct(_hardware(run.environment) for run in runs))),
    ]
    return [f"{name}: {text}." for name, text in told if text]


def _finished(section: Section) -> Iterator[Run]:
    for row in section.rows:
        yield from row.finished.values()


def _with_runs(section: Section) -> list[Row]:
    return [row for row in section.rows if row.finished]


def _data(section: Section) -> str:
    tested = next((row.tested for row in section.rows if row.tested), {})
    if not tested:
        return section.sweep.data
    counts = next(iter(tested.values())).counts
    own = ", others for each seed" if len(same_dialogues(tested)) > 1 else ""
    size = f"test split of {counts['dialogues']} dialogues and {counts['utterances']} utterances"
    return f"{section.sweep.data}, {size}{own}"


def _seeds(section: Section) -> str:
    rows = _with_runs(section)
    counts = [len(row.finished) for row in rows]
    each = str(min(counts)) if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
    seeds = sorted({seed for row in rows for seed in row.finished})
    return f"{', '.join(map(str, seeds))}; {each} {'run' if each == '1' else 'runs'} for each variant"


def _dates(runs: Sequence[Run]) -> str:
    days = sorted({str(run.status[key])[:10] for run in runs for key in ("started", "ended") if run.status.get(key)})
    return " to ".join(_distinct([days[0], days[-1]])) if days else ""


def _versions(environment: dict[str, Any]) -> str:
    versions = environment.get("versions", {})
    return ", ".join(f"{name} {versions[name]}{_commit(environment, name)}" for name in PACKAGES if versions.get(name))


def _commit(environment: dict[str, Any], package: str) -> str:
    git = environment.get("git")
    if package != "merc" or not git:
        return ""
    return f" ({git['commit'][:7]}{', with local changes' if git['dirty'] else ''})"


def _hardware(environment: dict[str, Any]) -> str:
    hardware = environment.get("hardware", {})
    return ", ".join(_distinct(hardware.get("gpus") or filter(None, [hardware.get("cpu")])))


def _distinct(texts: Iterable[str]) -> list[str]:
    return list(filter(None, dict.fromkeys(texts)))
