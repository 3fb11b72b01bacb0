"""What the runs of one sweep say: a row for each variant, with scores, intervals and tests."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from merc.reporting import statistics
from merc.reporting.report.columns import in_unit, is_score
from merc.reporting.report.runs import Predictions, Run
from merc.reporting.statistics import Array, Comparison
from merc.reporting.tables import SUMMARY
from merc.sweeping.experiment import Experiment
from merc.sweeping.manifest import Manifest


@dataclass(frozen=True)
class Sampling:
    """How the statistics are drawn.

    Args:
        resamples: of the bootstrap and of the tests.
        level: of confidence.
        seed: of the draws.
    """

    resamples: int = 2000
    level: float = 0.95
    seed: int = 0


class Row:
    """The runs of one variant, one per seed.

    Args:
        name: of the variant.
        runs: seed → run.
        sampling: how the statistics are drawn.
    """

    def __init__(self, name: str, runs: Mapping[int, Run], sampling: Sampling) -> None:
        self.name = name
        self.runs = runs
        self.sampling = sampling

    @cached_property
    def finished(self) -> dict[int, Run]:
        """Seed → finished run."""
        return {seed: run for seed, run in self.runs.items() if run.finished}

    @property
    def mixes_features(self) -> bool:
        """Whether its runs were trained on more than one feature store."""
        return len({run.fingerprint for run in self.finished.values()}) > 1

    @property
    def headline(self) -> str:
        """The epoch whose scores count, and whose predictions were kept: ``selected``, else ``last``."""
        return "selected" if all("selected" in run.metrics for run in self.finished.values()) else "last"

    def values(self, column: str, epoch: str | None = None) -> list[float]:
        """A measure in percent, or a cost in the unit in which it is shown, of every finished seed that has it.

        Args:
            column: a measure, or a key of costs.json.
            epoch: of a measure: ``selected``, ``last``, ``test_best``; None: the headline's.
        """
        runs = self.finished.values()
        if not is_score(column):
            costs = (run.costs.get(column) for run in runs)
            return [in_unit(column, cost) for cost in costs if isinstance(cost, int | float)]
        scores = (run.score(epoch or self.headline, column) for run in runs)
        return [100 * score for score in scores if score is not None]

    @cached_property
    def tested(self) -> dict[int, Predictions]:
        """Seed → predictions of the test split."""
        tests = {seed: run.test for seed, run in self.finished.items()}
        return {seed: test for seed, test in tests.items() if test is not None}

    @cached_property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """Measure → interval over dialogues of the mean over seeds, in percent; empty without predictions."""
        if not self.tested:
            return {}
        groups = [_stacked(self.tested, seeds) for seeds in same_dialogues(self.tested)]
        replicates = statistics.bootstrap_groups(groups, self.sampling.resamples, self.sampling.seed)
        dialogues = min(counts_SDCC.shape[1] for counts_SDCC in groups)
        ends = 100 * statistics.interval(replicates, dialogues, self.sampling.level)
        names = statistics.measure_names(_one(self.tested).classes)
        return dict(zip(names, map(tuple, ends.T.tolist()), strict=True))

    def compare(self, reference: "Row") -> Comparison | None:
        """This variant against another on the seeds that were tested on the same utterances; None without any."""
        shared = {
            seed: test
            for seed, test in self.tested.items()
            if seed in reference.tested and test.same_utterances(reference.tested[seed])
        }
        if not shared:
            return None
        pairs = [(_stacked(self.tested, seeds), _stacked(reference.tested, seeds)) for seeds in same_dialogues(shared)]
        sampling = self.sampling
        return statistics.compare_groups(pairs, sampling.resamples, sampling.level, sampling.seed)


def same_dialogues(tests: Mapping[int, Predictions]) -> list[list[int]]:
    """The seeds in groups that were tested on the same utterances: one, unless each seed has data of its own."""
    groups: list[list[int]] = []
    for seed, test in tests.items():
        group = next((group for group in groups if test.same_utterances(tests[group[0]])), None)
        if group is None:
            groups.append([seed])
        else:
            group.append(seed)
    return groups


@dataclass(frozen=True)
class Tested:
    """One measure of a variant against the reference, in percentage points.

    Args:
        difference: of the means over the shared seeds.
        low: lower end of its interval over dialogues.
        high: upper end.
        p_runs: Holm-adjusted over the variants; of these runs.
        p_variants: the same with the chance of the seeds; NaN for a single seed.
        effect: Hedges' g over seeds.
    """

    difference: float
    low: float
    high: float
    p_runs: float
    p_variants: float
    effect: float


class Section:
    """One experiment on one corpus.

    Args:
        experiment: what is to be shown.
        sweep: which runs there are.
        sampling: how the statistics are drawn.
        runs: a job's ``run`` → that run, shared by all sections, so that one of several experiments is read once.
        run_root: folder of the run folders.
    """

    def __init__(
        self, experiment: Experiment, sweep: Manifest, sampling: Sampling, runs: Mapping[str, Run], run_root: Path
    ) -> None:
        self.experiment = experiment
        self.sweep = sweep
        self.run_root = run_root
        variants: dict[str, dict[int, Run]] = {}
        for job in sweep.jobs:
            variants.setdefault(job.variant, {})[job.seed] = runs[job.run]
        self.rows = [Row(name, of_seeds, sampling) for name, of_seeds in variants.items()]

    @property
    def key(self) -> str:
        """``<experiment>/<data>-<hash>``: where its files lie."""
        return f"{self.experiment.name}/{self.sweep.name}"

    @cached_property
    def published(self) -> Mapping[str, Mapping[str, float]]:
        """Row → column → the number as printed on this corpus, costs in the unit of ours."""
        printed = self.experiment.published.get(self.sweep.corpus, {})
        return {row: {name: in_unit(name, cell) for name, cell in cells.items()} for row, cells in printed.items()}

    @property
    def remarks(self) -> list[str]:
        """The paper's faults that concern this corpus; a remark on one corpus begins with its name."""
        others = self.experiment.published.keys() - {self.sweep.corpus}
        return [text for text in self.experiment.remarks if text.split(":")[0].split("/")[0] not in others]

    @property
    def only_published(self) -> list[str]:
        """Rows of the paper that none of our variants is."""
        ours = {row.name for row in self.rows}
        return [name for name in self.published if name not in ours]

    @cached_property
    def classes(self) -> list[str]:
        """The classes of the corpus, from any finished run, else as far as the paper names them."""
        for row in self.rows:
            for run in row.finished.values():
                return list(run.metrics["last"]["per_class"])
        columns = (column for cells in self.published.values() for column in cells)
        return list(dict.fromkeys(column.split("/", 1)[1] for column in columns if "/" in column))

    @cached_property
    def columns(self) -> list[str]:
        """The experiment's columns, ``per_class_f1`` spelt out for every class."""
        return [name for column in self.experiment.columns for name in self._expanded(column)]

    def _expanded(self, column: str) -> list[str]:
        measure = column.removeprefix("per_class_")
        return [column] if measure == column else [f"{measure}/{label}" for label in self.classes]

    @cached_property
    def printed_besides(self) -> list[str]:
        """Columns that the paper prints and the experiment has not, such as the recall of each class."""
        printed = dict.fromkeys(column for cells in self.published.values() for column in cells)
        return [] if self.experiment.kind == "corpora" else [name for name in printed if name not in self.columns]

    @property
    def summary(self) -> list[str]:
        """The columns that are scores of the whole split."""
        return [column for column in self.columns if column in SUMMARY]

    @property
    def main(self) -> str:
        """The measure that figures show: the first column where weighted F1 is none."""
        return "weighted_f1" if "weighted_f1" in self.columns or not self.columns else self.columns[0]

    @cached_property
    def reference(self) -> Row | None:
        """The row that the others are tested against."""
        return next((row for row in self.rows if row.name == self.experiment.reference), None)

    @cached_property
    def tests(self) -> dict[str, dict[str, Tested]]:
        """Measure → row → its test against the reference; Holm's adjustment is over the rows of a measure."""
        if self.reference is None:
            return {}
        others = [row for row in self.rows if row is not self.reference]
        compared = {row.name: row.compare(self.reference) for row in others}
        there = {name: comparison for name, comparison in compared.items() if comparison is not None}
        if not there:
            return {}
        names = statistics.measure_names(_one(self.reference.tested).classes)
        return {measure: _adjusted(there, names.index(measure)) for measure in self.summary}

    @property
    def untested(self) -> list[str]:
        """Rows with finished runs that could not be compared with the reference, though there is one."""
        if self.reference is None or not self.reference.tested:
            return []
        tested = {name for rows in self.tests.values() for name in rows}
        return [row.name for row in self.rows if row is not self.reference and row.finished and row.name not in tested]

    def states(self) -> list[tuple[Row, int, Run]]:
        """Row, seed and run of everything that is not finished."""
        return [(row, seed, run) for row in self.rows for seed, run in row.runs.items() if not run.finished]


def mean(values: Sequence[float]) -> float:
    """The mean; NaN without values."""
    return sum(values) / len(values) if values else math.nan


def _adjusted(compared: Mapping[str, Comparison], measure: int) -> dict[str, Tested]:
    p_runs = statistics.holm([float(each.p_runs[measure]) for each in compared.values()])
    p_variants = statistics.holm([float(each.p_variants[measure]) for each in compared.values()])
    return {
        name: Tested(
            100 * float(each.difference[measure]),
            100 * float(each.low[measure]),
            100 * float(each.high[measure]),
            p_runs[index],
            p_variants[index],
            float(each.effect[measure]),
        )
        for index, (name, each) in enumerate(compared.items())
    }


def _stacked(tests: Mapping[int, Predictions], seeds: Sequence[int]) -> Array:
    """(S, D, C, C) counts of seeds that were tested on the same utterances."""
    return np.stack([tests[seed].confusions for seed in seeds])


def _one(tests: Mapping[int, Predictions]) -> Predictions:
    return next(iter(tests.values()))
