"""What is published about the corpora of the field: labels, speakers, official splits, sizes.

Counts of MELD are those of its official annotation files; the class counts of IEMOCAP are those of the six-class
setting that the field's feature files hold, its sizes and validation dialogues those of the split of COSMIC.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class SplitFacts:
    """Published size of one split.

    Attributes:
        dialogues: number of dialogues.
        utterances: number of utterances.
        length_range: utterances per dialogue: shortest, median, longest.
        class_counts: utterances of each class, in id order. For IEMOCAP's train and validation, only their sum is
            published; both hold it, so read it as a prior there.
    """

    dialogues: int
    utterances: int
    length_range: tuple[int, int, int]
    class_counts: tuple[int, ...]


@dataclass(frozen=True)
class Corpus:
    """A corpus of the field.

    Attributes:
        name: as in ``data=<name>`` and ``corpus.name``.
        label_names: the classes, in the id order of the published feature files.
        speaker_slots: most speakers that a dialogue may have.
        validation_dialogues: dialogue ids that are validation where a source only tells training from test.
        dims: modality → dimension of the published features.
        splits: published size of each split.
        speakers_per_dialogue: entry i: training dialogues with i+1 speakers.
    """

    name: str
    label_names: tuple[str, ...]
    speaker_slots: int
    validation_dialogues: frozenset[str]
    dims: Mapping[str, int]
    splits: Mapping[str, SplitFacts]
    speakers_per_dialogue: tuple[int, ...]


_IEMOCAP_SESSIONS_1_TO_4 = (504, 839, 1324, 933, 742, 1468)

IEMOCAP = Corpus(
    name="iemocap",
    label_names=("happy", "sad", "neutral", "angry", "excited", "frustrated"),
    speaker_slots=2,
    validation_dialogues=frozenset(
        {
            "Ses01M_impro01",
            "Ses01M_script03_1",
            "Ses02F_impro02",
            "Ses02F_impro07",
            "Ses02M_script01_2",
            "Ses03F_impro01",
            "Ses03M_impro02",
            "Ses03M_impro08a",
            "Ses03M_script02_2",
            "Ses03M_script03_2",
            "Ses04F_impro07",
            "Ses04F_script02_1",
        }
    ),
    dims={"text": 1024, "audio": 1582, "visual": 342},
    splits={
        "train": SplitFacts(108, 5163, (8, 47, 110), _IEMOCAP_SESSIONS_1_TO_4),
        "validation": SplitFacts(12, 647, (8, 47, 110), _IEMOCAP_SESSIONS_1_TO_4),
        "test": SplitFacts(31, 1623, (23, 52, 91), (144, 245, 384, 170, 299, 381)),
    },
    speakers_per_dialogue=(0, 120),
)

MELD = Corpus(
    name="meld",
    label_names=("neutral", "surprise", "fear", "sadness", "joy", "disgust", "anger"),
    speaker_slots=9,
    # The published feature file numbers the dialogues of all splits through: 0-1038, 1039-1152, 1153-1432.
    validation_dialogues=frozenset(str(dialogue) for dialogue in range(1039, 1153)),
    dims={"text": 1024, "audio": 300, "visual": 342},
    splits={
        "train": SplitFacts(1038, 9989, (1, 9, 24), (4710, 1205, 268, 683, 1743, 271, 1109)),
        "validation": SplitFacts(114, 1109, (1, 10, 23), (470, 150, 40, 111, 163, 22, 153)),
        "test": SplitFacts(280, 2610, (1, 9, 33), (1256, 281, 50, 208, 402, 68, 345)),
    },
    speakers_per_dialogue=(96, 463, 264, 122, 58, 25, 8, 1, 1),
)

CORPORA: Mapping[str, Corpus] = {corpus.name: corpus for corpus in (IEMOCAP, MELD)}
