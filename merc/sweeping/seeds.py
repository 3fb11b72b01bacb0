"""What a sweep without an experiment found: the scores of each configuration over its seeds."""

from collections.abc import Mapping
from pathlib import Path

from merc.reporting.report.columns import NAMES
from merc.reporting.report.runs import Run
from merc.reporting.report.sections import Row, Sampling
from merc.reporting.statistics import mean_and_sd

MEASURES = ("weighted_f1", "accuracy")


def scores_over_seeds(seeds: Mapping[Path, int]) -> list[str]:
    """A line for each configuration with two or more finished seeds: mean ± sample standard deviation, in percent.

    Args:
        seeds: run folder → seed of its run. Runs of one configuration lie in one folder; those that ``run_dir`` put
            elsewhere are left out.
    """
    runs: dict[Path, dict[int, Run]] = {}
    for path, seed in seeds.items():
        if path.name == f"seed={seed}":
            runs.setdefault(path.parent, {})[seed] = Run(path)
    rows = [Row(str(folder), of_folder, Sampling()) for folder, of_folder in runs.items()]
    return [_line(row) for row in rows if len(row.finished) > 1]


def _line(row: Row) -> str:
    scores = ", ".join(f"{NAMES[measure]} {_mean(row, measure)}" for measure in MEASURES)
    return f"{row.name}: {scores} ({len(row.finished)} seeds, {row.headline} epoch)"


def _mean(row: Row, measure: str) -> str:
    values = row.values(measure)
    if len(values) < len(row.finished):
        return "–"
    mean, deviation = mean_and_sd(values)
    return f"{mean:.2f} ± {deviation:.2f}"
