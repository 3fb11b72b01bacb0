"""Two runs side by side: what ``python -m merc.report compare`` does."""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from merc.errors import MercError
from merc.files import write_text
from merc.reporting import statistics
from merc.reporting.report import render
from merc.reporting.report.columns import column_name
from merc.reporting.report.page import PageSection, page, page_figures
from merc.reporting.report.runs import Predictions, Run
from merc.reporting.report.sections import Sampling
from merc.reporting.report.tables import Cell, Table, p_cell, range_cell, signed_cell
from merc.reporting.tables import SUMMARY

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from merc.reporting.report.attention import AttentionPair

CURVES = ("train/loss", "validation/weighted_f1", "test/weighted_f1")
BALANCING = "balancing/"
CAPTIONS = {
    "curves": "Learning curves; solid: the first run, dashed: the second.",
    "balancing": "Balancing state after each epoch; solid: the first run, dashed: the second.",
}


@dataclass(frozen=True)
class Pair:
    """Two runs.

    Args:
        first: a run.
        second: the run that it is compared with.
        sampling: how the statistics are drawn.
    """

    first: Run
    second: Run
    sampling: Sampling

    @property
    def names(self) -> tuple[str, str]:
        """The names of the two, as short as they can be told apart by."""
        one, two = self.first.folder.path, self.second.folder.path
        if one.name != two.name and one.parent == two.parent:
            return one.name, two.name
        return f"{one.parent.name}/{one.name}", f"{two.parent.name}/{two.name}"

    @cached_property
    def tests(self) -> tuple[Predictions, Predictions] | None:
        """The test predictions of both; None where they are missing, or about different utterances."""
        first, second = self.first.test, self.second.test
        if first is None or second is None or not first.same_utterances(second):
            return None
        return first, second


def read_pair(first: Path, second: Path, sampling: Sampling) -> Pair:
    """Two run folders.

    Raises:
        MercError: one of them is no run folder or has not finished an epoch, or both are the same.
    """
    if first.resolve() == second.resolve():
        raise MercError(f"Both runs are {first}. Name two different run folders.")
    runs = Run(first), Run(second)
    for run in runs:
        if not run.status:
            raise MercError(f"{run.folder.path} is no run folder: it has no status.json.")
        if not run.folder.history.exists():
            raise MercError(f"The run in {run.folder.path} has not finished an epoch yet. Wait for it.")
    return Pair(*runs, sampling)


def write_comparison(pair: Pair, out: Path, figures: bool = True, attention: "AttentionPair | None" = None) -> Path:
    """Write ``compare.md``, ``compare.html`` and the figures of two runs, and ``attention.csv`` if there is any.

    Args:
        pair: the runs.
        out: folder; the files lie in ``<out>/compare/<first>--<second>/``.
        figures: draw them too.
        attention: of both in one dialogue.

    Returns:
        the path of compare.html.

    Raises:
        MercError: matplotlib is not installed, a file is damaged, or one cannot be written.
    """
    folder = out / "compare" / "--".join(name.replace("/", "-").replace("=", "") for name in pair.names)
    curves = comparison_figures(pair) if figures else {}
    parts = [_Part(" against ".join(pair.names), "", comparison_tables(pair), curves, CAPTIONS)]
    if attention is not None:
        write_text(folder / "attention.csv", attention.csv())
        maps = attention.figures() if figures else {}
        parts.append(_Part(attention.title, attention.origin, [], maps, attention.captions))
    for part in parts:
        part.write_figures(folder)
    write_text(folder / "compare.md", "\n".join(part.markdown() for part in parts))
    sections = [part.section() for part in parts]
    write_text(folder / "compare.html", page("Two runs", _introduction(pair), sections))
    return folder / "compare.html"


@dataclass(frozen=True)
class _Part:
    """A part of a comparison, which becomes one of the page and of the Markdown file.

    Args:
        title: its headline.
        origin: what it shows.
        tables: its tables.
        figures: name → figure.
        captions: name of a figure → what stands below it.
    """

    title: str
    origin: str
    tables: Sequence[Table]
    figures: "Mapping[str, Figure]"
    captions: Mapping[str, str]

    def markdown(self) -> str:
        images = [f"![{name}]({name}.png)\n\n{self.captions[name]}\n" for name in self.figures]
        return "\n".join([f"# {self.title}\n", f"{self.origin}\n", render.markdown(self.tables), *images])

    def section(self) -> PageSection:
        return PageSection(self.title, self.origin, "", "", self.tables, page_figures(self.figures, self.captions))

    def write_figures(self, folder: Path) -> None:
        if self.figures:
            from merc.reporting.report.figures import write_figure

            for name, figure in self.figures.items():
                write_figure(figure, folder / name)


def comparison_tables(pair: Pair) -> list[Table]:
    """Scores, classes and changed utterances; the scores alone where the predictions cannot be compared."""
    if pair.tests is None:
        return [_scores_table(pair, None)]
    first, second = (test.confusions[None] for test in pair.tests)
    sampling = pair.sampling
    compared = statistics.compare(first, second, sampling.resamples, sampling.level, sampling.seed)
    return [_scores_table(pair, compared), _classes_table(pair, *pair.tests, compared), _changes_table(*pair.tests)]


def _introduction(pair: Pair) -> str:
    one, two = pair.names
    return (
        f"{one}: {pair.first.folder.path} ({pair.first.state}). {two}: {pair.second.folder.path} ({pair.second.state})."
    )


def _headlines(pair: Pair) -> tuple[str, str]:
    first, second = ("selected" if "selected" in run.metrics else "last" for run in (pair.first, pair.second))
    return first, second


def _scores_table(pair: Pair, compared: statistics.Comparison | None) -> Table:
    headers = ["measure", *pair.names, "difference"] + (["interval", "p"] if compared else [])
    one, two = _headlines(pair)
    rows = []
    for index, measure in enumerate(SUMMARY):
        scores = pair.first.score(one, measure), pair.second.score(two, measure)
        cells = [Cell(column_name(measure)), *map(_percent, scores)]
        difference = math.nan if None in scores else 100 * ((scores[0] or 0) - (scores[1] or 0))
        cells.append(signed_cell(difference))
        rows.append(cells + (_test_cells(compared, index, compared.p_runs[index]) if compared else []))
    title = "Test scores in percent, " + (f"{one} epoch" if one == two else f"{one} and {two} epoch")
    if compared is None:
        notes = ["No tests: the runs have no predictions of the same test utterances."]
    else:
        notes = [
            f"Intervals of the differences: {100 * pair.sampling.level:g} %, paired bootstrap of the test dialogues. "
            "p: paired approximate randomisation of whole dialogues, two-sided. Both speak of these two runs; another "
            "seed may change more than what sets them apart."
        ]
    return Table("scores", title, headers, rows, notes=notes)


def _classes_table(pair: Pair, first: Predictions, second: Predictions, compared: statistics.Comparison) -> Table:
    names = statistics.measure_names(first.classes)
    indices = [names.index(f"f1/{label}") for label in first.classes]
    adjusted = statistics.holm([float(compared.p_runs[index]) for index in indices])
    one, two = (100 * statistics.scores(test.confusions.sum(0)) for test in (first, second))
    rows = []
    for label, (index, p) in enumerate(zip(indices, adjusted, strict=True)):
        support = int((first.label == label).sum())
        cells = [Cell(first.classes[label]), Cell(str(support), support)]
        cells += [Cell(f"{scores[index]:.2f}", float(scores[index])) for scores in (one, two)]
        rows.append([*cells, signed_cell(100 * float(compared.difference[index])), *_test_cells(compared, index, p)])
    headers = ["class", "utterances", *pair.names, "difference", "interval", "p"]
    notes = ["p: Holm-adjusted over the classes."]
    return Table("classes", "F1 of each class in percent", headers, rows, notes=notes)


def _test_cells(compared: statistics.Comparison, index: int, p: float) -> list[Cell]:
    low, high = 100 * float(compared.low[index]), 100 * float(compared.high[index])
    return [range_cell(low, high, signed=True), p_cell(float(p))]


def _changes_table(first: Predictions, second: Predictions) -> Table:
    """How many utterances of each class only one of the runs gets right."""
    right, now_right = first.prediction == first.label, second.prediction == second.label
    kinds = (right & now_right, right & ~now_right, ~right & now_right, ~right & ~now_right)
    rows = [_counts(label, [kind[first.label == code] for kind in kinds]) for code, label in enumerate(first.classes)]
    headers = ["class", "right in both", "right → wrong", "wrong → right", "wrong in both"]
    title = "Test utterances, from the first run to the second"
    return Table("changes", title, headers, [*rows, _counts("all", list(kinds))])


def _counts(name: str, kinds: Sequence[np.ndarray]) -> list[Cell]:
    counts = [int(kind.sum()) for kind in kinds]
    return [Cell(name), *(Cell(str(count), count) for count in counts)]


def _percent(score: float | None) -> Cell:
    return Cell("") if score is None else Cell(f"{100 * score:.2f}", 100 * score)


def read_history(path: Path) -> dict[str, list[float]]:
    """Column of a metrics.csv → its values, one for each epoch; NaN where an epoch has none."""
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    return {name: [float(row[name] or "nan") for row in rows] for name in reader.fieldnames or ()}


def comparison_figures(pair: Pair) -> "dict[str, Figure]":
    """The learning curves of both runs, and their balancing state if any has one.

    Raises:
        MercError: matplotlib is not installed.
    """
    from merc.reporting.report.figures import styled

    histories = [read_history(run.folder.history) for run in (pair.first, pair.second)]
    columns = list(dict.fromkeys(name for history in histories for name in history))
    curves = {name: [name] for name in CURVES if name in columns}
    balancing: dict[str, list[str]] = {}
    for name in columns:
        if name.startswith(BALANCING):
            balancing.setdefault(name.removeprefix(BALANCING).split("_")[0], []).append(name)
    with styled():
        panels = {"curves": curves, "balancing": balancing}
        return {name: _curves(pair, histories, name, groups) for name, groups in panels.items() if groups}


def _curves(
    pair: Pair, histories: Sequence[dict[str, list[float]]], name: str, groups: dict[str, list[str]]
) -> "Figure":
    """A panel for each group of columns; colours tell columns apart, solid and dashed lines the runs."""
    from merc.reporting.report.figures import COLOURS, legend, panels_of

    figure, panels = panels_of(len(groups))
    for panel, (title, columns) in zip(panels, groups.items(), strict=True):
        for index, column in enumerate(columns):
            for run, style, history in zip(pair.names, ("-", "--"), histories, strict=True):
                # Names of columns where there are several to tell apart, else those of the runs.
                label = run if name == "curves" else column.rsplit("_", 1)[1] if len(columns) > 1 else None
                if column in history:
                    panel.plot(history["epoch"], history[column], style, color=COLOURS[index % 7], label=label)
        panel.set_title(title, fontsize=9)
        panel.set_xlabel("epoch")
        panel.locator_params(axis="x", integer=True)
    legend(figure, panels)
    return figure
