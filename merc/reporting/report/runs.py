"""Run folders as a report reads them: whatever state they are in, and only the files that are asked for."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from merc.errors import MercError
from merc.reporting.run_folder import RunFolder
from merc.reporting.statistics import Array, dialogue_confusions

EPOCHS = ("selected", "last", "test_best")


@dataclass(frozen=True)
class Predictions:
    """What a run predicted on a split.

    Args:
        classes: C names, in the order of the ids.
        dialogues: D ids.
        dialogue: (N,) index of the dialogue of each utterance.
        label: (N,) true class ids.
        prediction: (N,) predicted class ids.
    """

    classes: tuple[str, ...]
    dialogues: tuple[str, ...]
    dialogue: NDArray[np.int64]
    label: NDArray[np.int64]
    prediction: NDArray[np.int64]

    @cached_property
    def confusions(self) -> Array:
        """(D, C, C) counts."""
        return dialogue_confusions(self.dialogue, self.label, self.prediction, len(self.classes))

    @property
    def counts(self) -> dict[str, Any]:
        """How many dialogues and utterances there are, and utterances per class."""
        support = np.bincount(self.label, minlength=len(self.classes)).tolist()
        by_class = dict(zip(self.classes, support, strict=True))
        return {"dialogues": len(self.dialogues), "utterances": len(self.label), "classes": by_class}

    def same_utterances(self, other: "Predictions") -> bool:
        """Whether both are about the same dialogues with the same labels in the same order."""
        return (
            self.classes == other.classes
            and self.dialogues == other.dialogues
            and np.array_equal(self.dialogue, other.dialogue)
            and np.array_equal(self.label, other.label)
        )


class Run:
    """The content of a run folder, read when it is asked for.

    Args:
        path: of the folder; it need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.folder = RunFolder(path)

    @cached_property
    def status(self) -> dict[str, Any]:
        """The content of status.json; empty when the run has not begun."""
        return _json(self.folder.status)

    @property
    def state(self) -> str:
        """``finished``, ``failed``, ``running`` or ``waiting``."""
        return str(self.status.get("state", "waiting"))

    @property
    def finished(self) -> bool:
        return self.state == "finished"

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """The content of metrics.json: epoch → scores; empty unless the run is finished."""
        return _json(self.folder.metrics) if self.finished else {}

    @cached_property
    def environment(self) -> dict[str, Any]:
        """The content of environment.json; empty when the run has not begun."""
        return _json(self.folder.environment)

    @cached_property
    def costs(self) -> dict[str, Any]:
        """The content of costs.json; empty when nobody measured them."""
        return _json(self.folder.costs)

    @cached_property
    def robustness(self) -> list[dict[str, Any]]:
        """The rows of robustness.json; empty when nobody measured it."""
        rows: list[dict[str, Any]] = _json(self.folder.robustness).get("rows", [])
        return rows

    @cached_property
    def splits(self) -> dict[str, Predictions]:
        """Split → its predictions; empty when there are none."""
        return read_predictions(self.folder.predictions) if self.folder.predictions.exists() else {}

    @property
    def test(self) -> Predictions | None:
        """The predictions of the test split; None when there are none."""
        return self.splits.get("test")

    @cached_property
    def corpus(self) -> dict[str, dict[str, Any]]:
        """Split → ``dialogues``, ``utterances`` and ``classes`` (name → utterances), and maybe ``speakers``.

        The content of corpus.json, which knows the training split too, else of the splits that were evaluated.
        """
        return self._corpus_file.get("splits") or {
            split: predictions.counts for split, predictions in self.splits.items()
        }

    @property
    def fingerprint(self) -> str | None:
        """Of the feature store that it was trained on; None: there was none."""
        digest: str | None = self._corpus_file.get("fingerprint")
        return digest

    @cached_property
    def _corpus_file(self) -> dict[str, Any]:
        return _json(self.folder.corpus)

    def score(self, epoch: str, measure: str) -> float | None:
        """A test score as a fraction; None where the run has none.

        Args:
            epoch: ``selected``, ``last`` or ``test_best``.
            measure: ``weighted_f1`` and so on, or ``f1/<class>``.
        """
        scores: Mapping[str, Any] = self.metrics.get(epoch, {})
        if "/" in measure:
            name, label = measure.split("/", 1)
            return scores.get("per_class", {}).get(label, {}).get(name)
        return scores.get(measure)


def read_predictions(path: Path) -> dict[str, Predictions]:
    """The fused predictions of every split in a predictions.parquet.

    Raises:
        MercError: the file is damaged, or is no such table.
    """
    columns = ["split", "dialogue", "label", "prediction"]
    try:
        with pq.ParquetFile(path, read_dictionary=columns) as file:
            names = file.schema_arrow.names
            table = file.read(columns, use_threads=False).unify_dictionaries().combine_chunks()
        codes = {name: _codes(table[name]) for name in columns}
        classes = tuple(name.removeprefix("probability_") for name in names if name.startswith("probability_"))
        label, prediction = (_class_ids(codes[name], classes) for name in ("label", "prediction"))
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        raise MercError(f"{path} cannot be read: {error}. Train the run again with overwrite=true.") from error
    (split_names, split), (dialogue_names, dialogue) = codes["split"], codes["dialogue"]
    splits = {}
    for code, name in enumerate(split_names):
        rows = split == code
        present, index = np.unique(dialogue[rows], return_inverse=True)
        there = tuple(dialogue_names[number] for number in present)
        splits[name] = Predictions(classes, there, index, label[rows], prediction[rows])
    return splits


def _codes(column: pa.ChunkedArray) -> tuple[list[str], NDArray[np.int64]]:
    (chunk,) = column.chunks
    return chunk.dictionary.to_pylist(), chunk.indices.to_numpy(zero_copy_only=False).astype(np.int64)


def _class_ids(codes: tuple[list[str], NDArray[np.int64]], classes: tuple[str, ...]) -> NDArray[np.int64]:
    names, values = codes
    return np.array([classes.index(name) for name in names], np.int64)[values]


def _json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise MercError(f"{path} is damaged: {error}. Train the run again with overwrite=true.") from error
    return content
