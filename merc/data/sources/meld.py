"""MELD's official annotations (``train_sent_emo.csv``, ``dev_…``, ``test_…``) with one feature table per modality.

MELD numbers its dialogues from 0 in every split. The ids of the store start with the split, so that they are unique:
dialogue ``train/dia0``, utterance ``train/dia0_utt3``; features are keyed by ``dia0_utt3`` in one file per split. The
official dev split is ``validation``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from merc.data.corpora import MELD
from merc.data.sources.extract import Extract
from merc.data.sources.table_files import FeatureTable, column_of, read_features, read_strings
from merc.data.sources.tables import Annotation, join
from merc.errors import MercError, nearest

OFFICIAL_SPLITS = {"train": "train", "dev": "validation", "test": "test"}
"""Name in MELD's files → name in the store."""

COLUMNS = ("Utterance", "Speaker", "Emotion", "Dialogue_ID", "Utterance_ID")


@dataclass(frozen=True)
class MeldCsv:
    """MELD's annotation files as a source.

    Attributes:
        annotations: folder of the three CSV files.
        features: modality → path of its tables, with ``{split}`` or ``*`` where train, dev and test go; None leaves the
            modality out.
        id_column: of the feature tables, see :func:`merc.data.sources.table_files.read_features`.
        features_column: likewise; a mapping modality → name where they have different ones.
    """

    annotations: str
    features: Mapping[str, str | None]
    id_column: str | None = None
    features_column: str | Mapping[str, str | None] | None = None

    def read(self) -> Extract:
        """Read annotations and features of the three splits.

        Raises:
            MercError: as :meth:`merc.data.sources.tables.UtteranceTables.read`.
        """
        folder = Path(self.annotations)
        files = {split: folder / f"{split}_sent_emo.csv" for split in OFFICIAL_SPLITS}
        annotations = [row for split, file in files.items() for row in _annotations(file, split)]
        tables = {
            modality: [self._table(modality, template, split) for split in OFFICIAL_SPLITS]
            for modality, template in self.features.items()
            if template is not None
        }
        return join(list(files.values()), annotations, tables, MELD.label_names)

    def _table(self, modality: str, template: str, split: str) -> FeatureTable:
        path = template.replace("{split}", split).replace("*", split)
        if path == template:
            raise MercError(
                f"features.{modality}={template} is one file, but MELD's utterance ids are unique in a split only. "
                "Give one file per split, with * where train, dev and test go."
            )
        column = column_of(modality, self.features_column)
        return read_features(Path(path), self.id_column, column).prefixed(f"{split}/")


def _annotations(path: Path, split: str) -> list[Annotation]:
    """The utterances of one split, dialogue after dialogue."""
    table = read_strings(path)
    for name in COLUMNS:
        if name not in table:
            raise MercError(
                f"{path} has no column '{name}'; MELD's official files have {', '.join(COLUMNS)}.{nearest(name, table)}"
            )
    rows = zip(*(table[name] for name in COLUMNS), strict=True)
    try:
        ordered = sorted(((int(d), int(u), *row) for *row, d, u in rows), key=lambda row: row[:2])
    except ValueError as error:
        raise MercError(f"{path}: Dialogue_ID and Utterance_ID must be whole numbers ({error}).") from error
    return [
        Annotation(
            dialogue=f"{split}/dia{dialogue}",
            utterance=f"{split}/dia{dialogue}_utt{utterance}",
            speaker=speaker.strip(),
            label=label,
            split=OFFICIAL_SPLITS[split],
            text=text,
        )
        for dialogue, utterance, text, speaker, label in ordered
    ]
