"""The tables that the commands print."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

SUMMARY = ("accuracy", "weighted_precision", "weighted_f1", "macro_f1")
CHOSEN_BY = {"selected": "validation", "last": "the end", "test_best": "test (optimistic)"}


def closing_tables(metrics: Mapping[str, Any], folder: Path) -> RenderableType:
    """What a training run prints at its end: the scores per class and at the three epochs, in percent.

    Args:
        metrics: the content of metrics.json.
        folder: the run folder.
    """
    epoch = "selected" if "selected" in metrics else "last"
    title = f"Test, {epoch} epoch {metrics[epoch]['epoch']}"
    notes = [Text(f"Run folder: {folder}", overflow="fold")]
    if "selected" not in metrics:
        notes.insert(0, Text("No epoch is selected: data.split=merged trains on the validation split as well."))
    return Group(class_table(metrics[epoch]["per_class"], title), _epochs_table(metrics), *notes)


def closing_line(metrics: Mapping[str, Any], folder: Path) -> str:
    """What a run of a sweep prints at its end: the test scores of the epoch that counts, and where the rest lies."""
    epoch = "selected" if "selected" in metrics else "last"
    scores = scores_line(metrics[epoch], ("weighted_f1", "accuracy"))
    return f"{folder}: {scores} ({epoch} epoch {metrics[epoch]['epoch']})"


def class_table(per_class: Mapping[str, Mapping[str, float]], title: str) -> Table:
    """Precision, recall and F1 in percent and the support of every class."""
    table = Table("class", title=title, title_justify="left")
    for column in ("precision", "recall", "F1", "support"):
        table.add_column(column, justify="right")
    for label, scores in per_class.items():
        cells = [_percent(scores[measure]) for measure in ("precision", "recall", "f1")]
        table.add_row(label, *cells, str(int(scores["support"])))
    return table


def robustness_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Scores in percent under disturbances, the rows of robustness.json."""
    table = Table("noisy", "missing", "noise", *SUMMARY, title="Disturbed features", title_justify="left")
    for column in table.columns[2:]:
        column.justify = "right"
    for row in rows:
        noisy = "+".join(row["modalities"]) if row["noise"] else "–"
        scores = [_percent(row["scores"][measure]) for measure in SUMMARY]
        table.add_row(noisy, "+".join(row["drop"]) or "–", f"{row['noise']:g} σ", *scores)
    return table


def scores_line(scores: Mapping[str, Any], names: Sequence[str] = SUMMARY) -> str:
    """The scores of a whole split in one line, in percent."""
    return "  ".join(f"{name} {_percent(scores[name])}" for name in names)


def _epochs_table(metrics: Mapping[str, Any]) -> Table:
    table = Table("test scores")
    for name in metrics:
        table.add_column(name, justify="right")
    table.add_row("epoch", *[str(scores["epoch"]) for scores in metrics.values()])
    table.add_row("chosen by", *[CHOSEN_BY[name] for name in metrics])
    for measure in SUMMARY:
        table.add_row(measure, *[_percent(scores[measure]) for scores in metrics.values()])
    return table


def _percent(score: float) -> str:
    return f"{100 * score:.2f}"


def show(content: RenderableType) -> None:
    """Print to stdout, at a fixed width where stdout is no terminal, so that logs keep whole lines.

    Names such as ``[angry]`` or ``:smile:`` stay as they are, rather than become styles and pictures.
    """
    console = Console(markup=False, emoji=False)
    if not console.is_terminal:
        console = Console(markup=False, emoji=False, width=120)
    console.print(content)
