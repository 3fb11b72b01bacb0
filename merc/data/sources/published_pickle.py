"""The pickles of multimodal features that the field passes on, for IEMOCAP and MELD.

A tuple of 12 items (MELD: and an ignored 13th): utterance ids, speakers, labels, four RoBERTa views of the text,
audio, visual, sentences (each a dict dialogue → one entry per utterance), then the ids of the training and of the test
dialogues. Dialogue and utterance ids of the store:

* IEMOCAP: as in the pickle (``Ses01F_impro01``, ``Ses01F_impro01_F000``); the speaker is M → 0, otherwise 1.
* MELD: the pickle numbers the dialogues of all splits, dev under 1039-1152, so ``1039`` and ``dia1039_utt0`` are
  unique; the speaker is the position of the 1 in its one-hot list.

The pickle knows training and test dialogues; those of the corpus' validation split are taken out of the training ones.
Dialogues that it has but names as neither are left out and reported.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from merc.data.completeness import EXAMPLES, Surplus
from merc.data.conversation import Conversations
from merc.data.corpora import CORPORA, Corpus
from merc.data.sources import safe_pickle
from merc.data.sources.extract import Extract
from merc.data.sources.progress import progress
from merc.errors import MercError, check_choice
from merc.files import sha256

ITEMS = (
    "ids", "speakers", "labels", "roberta1", "roberta2", "roberta3", "roberta4",
    "audio", "visual", "sentences", "train", "test",
)  # fmt: skip
ROBERTA = ("roberta1", "roberta2", "roberta3", "roberta4")
TEXT_VIEWS = (*ROBERTA, "mean", "concat")

Matrix = NDArray[np.float32]


@dataclass(frozen=True)
class PublishedPickle:
    """A published pickle as a source.

    Attributes:
        path: the pickle.
        corpus: ``meld`` or ``iemocap``.
        text_view: ``roberta1`` … ``roberta4``, their ``mean`` or their ``concat``.
    """

    path: str
    corpus: str | None
    text_view: str = "roberta1"

    def read(self) -> Extract:
        """Read the pickle; nothing in it is executed.

        Raises:
            MercError: the pickle is unsafe, damaged or of another layout, dialogues disagree about their number of
                utterances, features are ragged, or a label or speaker is outside its corpus.
        """
        if self.corpus is None:
            raise MercError("A published pickle does not say which corpus it holds: add corpus=meld or corpus=iemocap.")
        check_choice("text_view", self.text_view, TEXT_VIEWS)
        path = Path(self.path)
        try:
            with safe_pickle.bounded_memory(path):
                return _Reader(path, CORPORA[self.corpus], self.text_view, _items(path)).extract()
        except (AttributeError, TypeError, ValueError) as error:  # an untrusted file may hold anything anywhere
            raise MercError(
                f"{path} is not laid out as a published pickle ({error}). Other layouts come in as tables: "
                "source=tables."
            ) from error


def _items(path: Path) -> dict[str, Any]:
    value = safe_pickle.load(path)
    if not isinstance(value, tuple | list) or len(value) not in (12, 13):
        found = f"{len(value)} items" if isinstance(value, tuple | list) else f"a {type(value).__name__}"
        raise MercError(
            f"{path} holds {found}; a published pickle is a tuple of 12 or 13 items ({', '.join(ITEMS)}). "
            "Other layouts come in as tables: source=tables."
        )
    items = dict(zip(ITEMS, value, strict=False))
    for name in ITEMS[:-2]:
        if not isinstance(items[name], dict):
            raise MercError(f"{path}: '{name}' is a {type(items[name]).__name__}, not a dict of dialogues. Other "
                            "layouts come in as tables: source=tables.")  # fmt: skip
    return items


@dataclass(frozen=True)
class _Reader:
    path: Path
    corpus: Corpus
    text_view: str
    items: Mapping[str, Any]

    def extract(self) -> Extract:
        train, test = self._dialogues("train"), self._dialogues("test")
        dialogues = [*train, *test]
        lengths = tuple(len(self._entry("labels", dialogue)) for dialogue in dialogues)
        for dialogue, length in zip(dialogues, lengths, strict=True):
            if length == 0:
                raise MercError(f"{self.path}: dialogue '{dialogue}' is empty. Remove it, or add its utterances.")
        features = {
            "text": self._text(dialogues),
            "audio": self._rows("audio", dialogues),
            "visual": self._rows("visual", dialogues),
        }
        conversations = Conversations(
            features={modality: torch.from_numpy(rows) for modality, rows in features.items()},
            speakers=torch.tensor([i for dialogue in dialogues for i in self._speakers(dialogue)]),
            labels=torch.tensor([i for dialogue in dialogues for i in self._labels(dialogue)]),
            lengths=lengths,
            dialogue_ids=tuple(str(dialogue) for dialogue in dialogues),
            utterance_ids=tuple(name for dialogue in dialogues for name in self._utterance_ids(dialogue)),
            splits=tuple([self._training_split(dialogue) for dialogue in train] + ["test"] * len(test)),
            label_names=self.corpus.label_names,
        )
        return Extract(
            conversations=conversations,
            absent={m: torch.zeros(len(rows), dtype=torch.bool) for m, rows in features.items()},
            columns={},
            surplus=self._surplus(dialogues),
            files={str(self.path): sha256(self.path)},
            texts=tuple(str(text) for dialogue in dialogues for text in self._entry("sentences", dialogue)),
        )

    def _surplus(self, dialogues: list[Any]) -> tuple[Surplus, ...]:
        """The utterances of dialogues that are neither training nor test dialogues."""
        used = set(dialogues)
        unused = [dialogue for dialogue in self.items["labels"] if dialogue not in used]
        names = [name for dialogue in unused for name in self._utterance_ids(dialogue)]
        return (Surplus("all", str(self.path), len(names), tuple(names[:EXAMPLES])),) if names else ()

    def _dialogues(self, split: str) -> list[Any]:
        ids = self.items[split]
        if isinstance(ids, set | frozenset):  # a set has no order: the same file must give the same store
            return sorted(ids)
        return [name.item() if isinstance(name, np.generic) else name for name in ids]

    def _training_split(self, dialogue: Any) -> str:
        return "validation" if str(dialogue) in self.corpus.validation_dialogues else "train"

    def _entry(self, item: str, dialogue: Any) -> Any:
        """What an item holds for a dialogue: one entry per utterance."""
        entries = self.items[item]
        if dialogue not in entries:
            raise MercError(
                f"{self.path}: dialogue '{dialogue}' has no '{item}'. The pickle is incomplete: get it again."
            )
        entry = entries[dialogue]
        labels = self.items["labels"].get(dialogue, ())
        if len(entry) != len(labels):
            raise MercError(
                f"{self.path}: dialogue '{dialogue}' has {len(labels)} labels but {len(entry)} entries of '{item}'. "
                "Correct the pickle: every utterance needs one of each."
            )
        return entry

    def _labels(self, dialogue: Any) -> list[int]:
        labels = [int(label) for label in self._entry("labels", dialogue)]
        names = self.corpus.label_names
        for position, label in enumerate(labels):
            if not 0 <= label < len(names):
                raise MercError(
                    f"{self.path}: utterance {position} of dialogue '{dialogue}' has the label {label}; "
                    f"{self.corpus.name} has the classes 0 to {len(names) - 1} ({', '.join(names)}). "
                    "Is corpus=... the right one?"
                )
        return labels

    def _speakers(self, dialogue: Any) -> list[int]:
        """The speaker index of each utterance; IEMOCAP has letters, MELD one-hot rows."""
        entry = self._entry("speakers", dialogue)
        letters = all(isinstance(speaker, str) for speaker in entry)
        if letters != (self.corpus.name == "iemocap"):
            found = "letters" if letters else "one-hot rows"
            raise MercError(
                f"{self.path}: the speakers of dialogue '{dialogue}' are {found}, unlike those of {self.corpus.name}. "
                "Is corpus=... the right one?"
            )
        if letters:
            return [0 if speaker == "M" else 1 for speaker in entry]
        one_hot = self._matrix("speakers", dialogue)
        slots = self.corpus.speaker_slots
        if one_hot.shape[1] > slots or not ((one_hot == 1).sum(1) == 1).all():
            raise MercError(
                f"{self.path}: the speakers of dialogue '{dialogue}' are not one-hot rows of at most {slots} speaker "
                f"slots ({self.corpus.name}). Correct the pickle, or bring the data in as tables: source=tables."
            )
        return [int(index) for index in one_hot.argmax(1)]

    def _utterance_ids(self, dialogue: Any) -> list[str]:
        if self.corpus.name == "iemocap":
            return [str(name) for name in self._entry("ids", dialogue)]
        return [f"dia{dialogue}_utt{i}" for i in range(len(self._entry("labels", dialogue)))]

    def _text(self, dialogues: list[Any]) -> Matrix:
        if self.text_view in ROBERTA:
            return self._rows(self.text_view, dialogues)
        views = [self._rows(view, dialogues) for view in ROBERTA]
        if self.text_view == "concat":
            return np.concatenate(views, axis=1)
        return np.mean(views, axis=0, dtype=np.float32)

    def _rows(self, item: str, dialogues: list[Any]) -> Matrix:
        """(N, D) of all dialogues."""
        shown = progress(dialogues, f"Reading {item}", len(dialogues))
        tables = [self._matrix(item, dialogue) for dialogue in shown]
        for dialogue, table in zip(dialogues, tables, strict=True):
            if table.shape[1] != tables[0].shape[1]:
                raise self._ragged(item, dialogue, f"{table.shape[1]} features, other dialogues {tables[0].shape[1]}")
        return np.concatenate(tables)

    def _matrix(self, item: str, dialogue: Any) -> Matrix:
        """(utterances, D) of one dialogue."""
        entry = self._entry(item, dialogue)
        widths = _widths(entry)
        if len(widths) != 1:
            raise self._ragged(item, dialogue, f"rows of {' and '.join(map(str, sorted(widths)))} features")
        try:
            with np.errstate(over="ignore"):  # too large for float32 becomes infinite, which counts as missing
                table = np.stack([_vector(row) for row in entry])
        except (TypeError, ValueError) as error:
            raise self._ragged(item, dialogue, f"rows that are not numbers ({error})") from error
        if table.ndim != 2:
            raise self._ragged(item, dialogue, f"rows of shape {table.shape[1:]}")
        return table

    def _ragged(self, item: str, dialogue: Any, found: str) -> MercError:
        return MercError(
            f"{self.path}: '{item}' of dialogue '{dialogue}' has {found}. Correct the pickle: every utterance needs as "
            "many features."
        )


def _vector(row: Any) -> Matrix:
    if isinstance(row, list | tuple):  # unlike numpy.asarray, this never descends into what a bomb may have nested
        return np.fromiter(row, np.float32, len(row))
    return np.asarray(row, dtype=np.float32)


def _widths(rows: Iterable[Any]) -> set[int]:
    return {len(row) if hasattr(row, "__len__") else 0 for row in rows}
