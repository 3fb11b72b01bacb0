"""What a sweep without an experiment found: the scores of each configuration over its seeds."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from merc.reporting.report.columns import NAMES
from merc.reporting.report.runs import Run
from merc.reporting.statistics import mean_and_sd

MEASURES = ("weighted_f1", "accuracy")


def scores_over_seeds(seeds: Mapping[Path, int]) -> list[str]:
    """A line for each configuration with two or more finished seeds: mean ± sample standard deviation, in percent.

    Args:
        seeds: run folder → seed of its run. Runs of one configuration lie in one folder; those that ``run_dir`` put
            elsewhere are left out.
    """
    finished: dict[Path, list[Run]] = {}
    for path, seed in seeds.items():
        run = Run(path)
        if path.name == f"seed={seed}" and run.finished:
            finished.setdefault(path.parent, []).append(run)
    return [_line(folder, runs) for folder, runs in finished.items() if len(runs) > 1]


def _line(folder: Path, runs: Sequence[Run]) -> str:
    """Of the epoch that counts: the selected one where every run has one, else the last."""
    epoch = "selected" if all("selected" in run.metrics for run in runs) else "last"
    scores = ", ".join(f"{NAMES[measure]} {_mean(runs, epoch, measure)}" for measure in MEASURES)
    return f"{folder}: {scores} ({len(runs)} seeds, {epoch} epoch)"


def _mean(runs: Sequence[Run], epoch: str, measure: str) -> str:
    values = [score for run in runs if (score := run.score(epoch, measure)) is not None]
    if len(values) < len(runs):
        return "–"
    mean, deviation = mean_and_sd([100 * value for value in values])
    return f"{mean:.2f} ± {deviation:.2f}"
