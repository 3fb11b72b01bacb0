"""Any corpus: a table of utterances, and a table of features per modality.

Both are described in :mod:`merc.data.sources.table_files`. A row of features may stay without an utterance; it is
reported.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from merc.data.completeness import EXAMPLES, Surplus
from merc.data.conversation import Conversations
from merc.data.corpora import CORPORA
from merc.data.sources.extract import Extract, label_id
from merc.data.sources.table_files import FeatureTable, column_of, read_features, read_strings
from merc.errors import MercError, nearest
from merc.files import sha256

MEDIA_EXTENSION = re.compile(r"\.(wav|mp3|flac|mp4|avi|mkv|npy)$", re.IGNORECASE)
SPLIT_NAMES = {
    "train": "train", "training": "train",
    "validation": "validation", "val": "validation", "valid": "validation", "dev": "validation",
    "test": "test",
}  # fmt: skip
IEMOCAP_SESSION = re.compile(r"Ses0([1-5])")


@dataclass(frozen=True)
class Annotation:
    """One utterance of a corpus, as its table describes it.

    Attributes:
        dialogue: id of the dialogue.
        utterance: id of the utterance.
        speaker: name of the speaker.
        label: name of the class.
        split: one of ``merc.data.conversation.SPLITS``.
        text: what was said; None where it is unknown.
    """

    dialogue: str
    utterance: str
    speaker: str
    label: str
    split: str
    text: str | None


@dataclass(frozen=True)
class UtteranceTables:
    """A table of utterances and tables of features as a source.

    Attributes:
        utterances: CSV or Parquet, one row per utterance.
        features: modality → table of features; None leaves the modality out.
        columns: dialogue, position, utterance, speaker, label, split, text → name of the column in ``utterances``.
            None for position: the order of the rows; for split: the official one of IEMOCAP; for text: unknown.
        labels: the classes in id order; None: those of the corpus, else those of the table in alphabetical order.
        corpus: ``meld``, ``iemocap`` or None.
        id_column: of the feature tables, see :func:`merc.data.sources.table_files.read_features`.
        features_column: likewise; a mapping modality → name where they have different ones.
    """

    utterances: str
    features: Mapping[str, str | None]
    columns: Mapping[str, str | None]
    labels: Sequence[str] | None = None
    corpus: str | None = None
    id_column: str | None = None
    features_column: str | Mapping[str, str | None] | None = None

    def read(self) -> Extract:
        """Read all tables.

        Raises:
            MercError: a table is missing, damaged or lacks a column, positions are not finite or repeated, ids are
                ambiguous or match nothing, features are ragged, a label or split is unknown, or ``labels`` names a
                class twice.
        """
        path = Path(self.utterances)
        annotations = self._annotations(path)
        tables = {
            modality: [read_features(Path(file), self.id_column, column_of(modality, self.features_column))]
            for modality, file in self.features.items()
            if file is not None
        }
        return join([path], annotations, tables, self._label_names(annotations), letters=self.corpus == "iemocap")

    def _annotations(self, path: Path) -> list[Annotation]:
        """The utterances, dialogue after dialogue in order of first appearance, by position inside each."""
        values = self._columns(path, read_strings(path))
        dialogues = values["dialogue"]
        first = {name: row for row, name in reversed(list(enumerate(dialogues)))}
        positions = _positions(path, values) if "position" in values else range(len(dialogues))
        order = sorted(range(len(dialogues)), key=lambda row: (first[dialogues[row]], positions[row]))
        return [
            Annotation(
                dialogue=dialogues[row],
                utterance=values["utterance"][row],
                speaker=values["speaker"][row],
                label=values["label"][row],
                split=self._split(path, values, row),
                text=values["text"][row] if "text" in values else None,
            )
            for row in order
        ]

    def _columns(self, path: Path, table: Mapping[str, list[str]]) -> dict[str, list[str]]:
        """What → its cells, for the columns in use; all of them but the text are full."""
        values = {}
        for role, name in self.columns.items():
            default_is_absent = name == role and role in ("split", "text") and name not in table
            if default_is_absent or (name is None and role in ("position", "split", "text")):
                continue
            if name is None or name not in table:
                raise MercError(
                    f"{path} has no column '{name}' for the {role} of an utterance; it has {', '.join(table)}."
                    f"{nearest(str(name), table)} Name the column with columns.{role}=..."
                )
            if role != "text" and "" in table[name]:
                row = table[name].index("") + 1
                raise MercError(f"{path}: row {row} has no {role}. Fill the cell, or delete the row.")
            values[role] = table[name]
        return values

    def _split(self, path: Path, values: Mapping[str, Sequence[str]], row: int) -> str:
        dialogue = values["dialogue"][row]
        if "split" in values:
            name = values["split"][row].strip().lower()
            if name not in SPLIT_NAMES:
                raise MercError(
                    f"{path}: row {row + 1} has the split '{values['split'][row]}', which is none of "
                    f"{', '.join(SPLIT_NAMES)}.{nearest(name, SPLIT_NAMES)}"
                )
            return SPLIT_NAMES[name]
        session = IEMOCAP_SESSION.match(dialogue)
        if self.corpus != "iemocap" or session is None:
            raise MercError(
                f"{path} has no column '{self.columns['split']}' with the split of dialogue '{dialogue}'. Add one "
                "(train, validation, test) or name it with columns.split=...; only corpus=iemocap needs none, with "
                "dialogue ids such as Ses01F_impro01."
            )
        if session[1] == "5":
            return "test"
        return "validation" if dialogue in CORPORA["iemocap"].validation_dialogues else "train"

    def _label_names(self, annotations: Sequence[Annotation]) -> tuple[str, ...]:
        if self.labels is not None:
            return _distinct([str(label) for label in self.labels])
        if self.corpus is not None:
            return CORPORA[self.corpus].label_names
        return tuple(sorted({annotation.label.strip().lower() for annotation in annotations}))


def _distinct(labels: Sequence[str]) -> tuple[str, ...]:
    """The classes given, no two of which may be the same in lower case, as they are looked up."""
    for name, count in Counter(label.strip().lower() for label in labels).items():
        if count > 1:
            times = "twice" if count == 2 else f"{count} times"
            raise MercError(
                f"labels=[{','.join(labels)}] names '{name}' {times} (upper and lower case are the same). "
                "Give every class once."
            )
    return tuple(labels)


def _positions(path: Path, values: Mapping[str, Sequence[str]]) -> list[float]:
    """The position of every row, finite and its own in the dialogue."""
    rows: dict[tuple[str, float], int] = {}
    cells = zip(values["dialogue"], values["utterance"], values["position"], strict=True)
    for row, (dialogue, utterance, cell) in enumerate(cells):
        position = _number(cell)
        other = rows.setdefault((dialogue, position), row)
        if other != row or not math.isfinite(position):
            problem = f"which row {other + 1} has too" if other != row else "which is no finite number"
            raise MercError(
                f"{path}: row {row + 1} gives utterance '{utterance}' of dialogue '{dialogue}' the position "
                f"'{cell}', {problem}. Correct it, or use the order of the rows with columns.position=null."
            )
    return [position for _, position in rows]


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return math.nan


def join(
    files: Sequence[Path],
    annotations: Sequence[Annotation],
    tables: Mapping[str, Sequence[FeatureTable]],
    label_names: tuple[str, ...],
    letters: bool = False,
) -> Extract:
    """Put utterances and their features together.

    Args:
        files: where the annotations come from.
        annotations: dialogue after dialogue.
        tables: modality → its tables; together they have at most one row per utterance.
        label_names: the classes, in id order.
        letters: speakers named M and F are 0 and 1 in every dialogue, as in the published features of IEMOCAP.

    Raises:
        MercError: a dialogue is in two splits, a label is unknown, an id is ambiguous, or a modality fits no utterance.
    """
    where = " and ".join(map(str, files))
    if not tables:
        raise MercError("No table of features is given. Add at least one: features.text=..., features.audio=...")
    utterances = tuple(annotation.utterance for annotation in annotations)
    _refuse_duplicates(where, utterances)
    lengths = Counter(annotation.dialogue for annotation in annotations)
    splits: dict[str, str] = {}
    for annotation in annotations:
        if splits.setdefault(annotation.dialogue, annotation.split) != annotation.split:
            raise MercError(
                f"{where}: dialogue '{annotation.dialogue}' is in two splits, {splits[annotation.dialogue]} and "
                f"{annotation.split}. Put all its utterances in one, or give the dialogues of each split their own ids."
            )
    labels = [label_id(a.label, label_names, f"{where}: utterance '{a.utterance}'") for a in annotations]
    aligned = {modality: _align(modality, utterances, parts) for modality, parts in tables.items()}
    return Extract(
        conversations=Conversations(
            features={modality: torch.from_numpy(rows) for modality, (rows, _, _) in aligned.items()},
            speakers=torch.tensor(_speaker_indices(annotations, letters)),
            labels=torch.tensor(labels),
            lengths=tuple(lengths.values()),
            dialogue_ids=tuple(lengths),
            utterance_ids=utterances,
            splits=tuple(splits[dialogue] for dialogue in lengths),
            label_names=label_names,
        ),
        absent={modality: torch.from_numpy(absent) for modality, (_, absent, _) in aligned.items()},
        columns={modality: parts[0].columns for modality, parts in tables.items()},
        surplus=tuple(left for _, _, surplus in aligned.values() for left in surplus),
        files={str(file): sha256(file) for file in [*files, *(t.file for parts in tables.values() for t in parts)]},
        speaker_names=tuple(annotation.speaker for annotation in annotations),
        texts=_texts(annotations),
    )


def _texts(annotations: Sequence[Annotation]) -> tuple[str, ...] | None:
    texts = tuple(annotation.text for annotation in annotations if annotation.text is not None)
    return texts if len(texts) == len(annotations) else None


def _speaker_indices(annotations: Sequence[Annotation], letters: bool) -> list[int]:
    """The speaker's index inside the dialogue, in order of first appearance, or by letter."""
    if letters and {annotation.speaker for annotation in annotations} <= {"M", "F"}:
        return ["MF".index(annotation.speaker) for annotation in annotations]
    seen: dict[str, dict[str, int]] = {}
    indices = []
    for annotation in annotations:
        speakers = seen.setdefault(annotation.dialogue, {})
        indices.append(speakers.setdefault(annotation.speaker, len(speakers)))
    return indices


def _align(
    modality: str, utterances: Sequence[str], tables: Sequence[FeatureTable]
) -> tuple[NDArray[np.float32], NDArray[np.bool_], list[Surplus]]:
    """Features in the order of the utterances (N, D), NaN where absent; (N,) bool absent; the rows left over."""
    dims = {table.rows.shape[1]: table.file for table in tables}
    if len(dims) > 1:
        found = " and ".join(f"{dim} ({file})" for dim, file in dims.items())
        raise MercError(f"The tables of the modality {modality} have different numbers of features: {found}.")
    keys = {MEDIA_EXTENSION.sub("", name): row for row, name in enumerate(utterances)}
    features = np.full((len(utterances), next(iter(dims))), np.nan, dtype=np.float32)
    absent = np.ones(len(utterances), dtype=np.bool_)
    surplus = []
    for table in tables:
        names = [MEDIA_EXTENSION.sub("", name) for name in table.ids]
        _refuse_duplicates(str(table.file), names)
        targets = np.array([keys.get(name, -1) for name in names])
        used = targets >= 0
        if not used.any():
            raise MercError(
                f"No id in {table.file} matches an utterance: it has {_examples(names)}; the utterances are "
                f"{_examples(list(keys))}. Give both the same ids."
            )
        features[targets[used]] = table.rows[used]
        absent[targets[used]] = False
        unused = tuple(names[row] for row in np.flatnonzero(~used))
        if unused:
            surplus.append(Surplus(modality, str(table.file), len(unused), unused[:EXAMPLES]))
    return features, absent, surplus


def _examples(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names[:3]) + (" …" if len(names) > 3 else "")


def _refuse_duplicates(where: str, names: Iterable[str]) -> None:
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise MercError(f"{where} has the utterance id '{name}' {count} times. Keep one row of each utterance.")
