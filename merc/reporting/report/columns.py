"""What the columns of an experiment are: measures in percent, costs in readable units."""

from collections.abc import Iterable
from dataclasses import dataclass

from merc.errors import check_names
from merc.reporting.statistics import PER_CLASS
from merc.reporting.tables import SUMMARY

NAMES = {
    "accuracy": "accuracy",
    "weighted_precision": "weighted precision",
    "weighted_f1": "weighted F1",
    "macro_f1": "macro F1",
    "wa_acc": "wa-ACC",
    "f1": "F1",
    "acc": "ACC",
}
"""Of what is not spelt as it is."""


@dataclass(frozen=True)
class Cost:
    """A key of costs.json.

    Args:
        name: what it is the cost of.
        unit: that it is shown in.
        size: of that unit, in the unit of costs.json.
    """

    name: str
    unit: str
    size: float = 1.0


COSTS = {
    "parameters": Cost("parameters", "M", 1e6),
    "flops_per_utterance": Cost("inference", "MFLOP/utterance", 1e6),
    "inference_flops_per_second": Cost("inference", "GFLOP/s", 1e9),
    "inference_seconds_per_utterance": Cost("inference", "ms/utterance", 1e-3),
    "inference_utterances_per_second": Cost("inference", "utterances/s"),
    "train_seconds": Cost("training", "s"),
    "train_seconds_per_epoch": Cost("training", "s/epoch"),
    "train_batch_seconds": Cost("training", "ms/batch", 1e-3),
    "train_utterances_per_second": Cost("training", "utterances/s"),
}


COUNTS = ("dialogues", "utterances", "speakers", "classes")
"""Of a split; columns of experiments whose kind is corpora, which also show the utterances of each class."""


def check_columns(key: str, columns: Iterable[str]) -> None:
    """Refuse a column for which no run has a value.

    Any class passes: which there are depends on the data.

    Args:
        key: as the user writes it.
        columns: of an experiment about runs.

    Raises:
        MercError: one is no score of the whole split, of a class (``f1/joy``) or of all classes (``per_class_f1``), and
            no cost.
    """
    of_classes = [f"per_class_{measure}" for measure in PER_CLASS] + [f"{measure}/<class>" for measure in PER_CLASS]
    given = [column for column in columns if not _is_of_a_class(column)]
    check_names(key, given, (*SUMMARY, *of_classes, *COSTS))


def _is_of_a_class(column: str) -> bool:
    measure, _, label = column.partition("/")
    return measure in PER_CLASS and label != ""


def is_score(column: str) -> bool:
    """Whether a column is a measure of test predictions rather than a cost."""
    return column in SUMMARY or column.split("/")[0] in PER_CLASS


def column_name(column: str) -> str:
    """A column as a reader knows it: ``f1/joy`` → ``joy F1``; of a cost with its unit."""
    if column in COSTS:
        return f"{COSTS[column].name} ({COSTS[column].unit})"
    measure, _, label = column.partition("/")
    return f"{label} {NAMES.get(measure, measure.replace('_', ' '))}".strip()


def unit(column: str) -> str:
    """What :func:`in_unit` returns is counted in; empty for counts."""
    if column in COSTS:
        return COSTS[column].unit
    return "%" if column.split("/")[0] in (*NAMES, *PER_CLASS) else ""


def in_unit(column: str, value: float) -> float:
    """A cost as costs.json and experiments have it, in the unit in which it is shown; anything else as it is."""
    # Twelve digits: what was printed as 0.0769 ms is not to become 0.07690000000000001 ms.
    return float(f"{value / COSTS[column].size:.12g}") if column in COSTS else value
