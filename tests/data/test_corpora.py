import csv
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from merc.data.corpora import CORPORA, IEMOCAP, MELD, Corpus

MELD_ANNOTATIONS = Path(__file__).parents[2] / "../shared/data/meld"


@pytest.mark.parametrize("corpus", CORPORA.values(), ids=CORPORA)
def test_facts_agree_with_each_other(corpus: Corpus) -> None:
    assert list(corpus.splits) == ["train", "validation", "test"]
    assert len(corpus.speakers_per_dialogue) == corpus.speaker_slots
    for facts in corpus.splits.values():
        assert len(facts.class_counts) == len(corpus.label_names)
        shortest, median, longest = facts.length_range
        assert shortest < median < longest
        assert facts.dialogues * shortest <= facts.utterances <= facts.dialogues * longest


def test_meld_sums_to_the_published_totals() -> None:
    train, validation, test = MELD.splits.values()
    merged = tuple(map(sum, zip(train.class_counts, validation.class_counts, strict=True)))
    assert merged == (5180, 1355, 308, 794, 1906, 293, 1262)
    assert [sum(facts.class_counts) for facts in MELD.splits.values()] == [9989, 1109, 2610]
    assert [facts.utterances for facts in MELD.splits.values()] == [9989, 1109, 2610]
    assert test.class_counts[0] / test.utterances == pytest.approx(0.481226, abs=1e-6)
    assert sum(MELD.speakers_per_dialogue) == train.dialogues == 1038
    assert len(MELD.validation_dialogues) == validation.dialogues == 114


def test_iemocap_sums_to_the_published_totals() -> None:
    train, validation, test = IEMOCAP.splits.values()
    assert train.utterances + validation.utterances == sum(train.class_counts) == 5810
    assert test.utterances == sum(test.class_counts) == 1623
    assert [facts.dialogues for facts in IEMOCAP.splits.values()] == [108, 12, 31]
    assert len(IEMOCAP.validation_dialogues) == validation.dialogues
    assert not any(dialogue.startswith("Ses05") for dialogue in IEMOCAP.validation_dialogues)


@pytest.mark.skipif(not MELD_ANNOTATIONS.is_dir(), reason="the MELD annotations are not on this machine")
@pytest.mark.parametrize(("split", "file"), [("train", "train"), ("validation", "dev"), ("test", "test")])
def test_meld_facts_are_those_of_the_annotations(split: str, file: str) -> None:
    dialogues: dict[str, list[dict[str, str]]] = defaultdict(list)
    with (MELD_ANNOTATIONS / f"{file}_sent_emo.csv").open(encoding="utf-8", errors="replace") as table:
        for row in csv.DictReader(table):
            dialogues[row["Dialogue_ID"]].append(row)
    emotions = Counter(row["Emotion"] for rows in dialogues.values() for row in rows)
    lengths = sorted(len(rows) for rows in dialogues.values())
    facts = MELD.splits[split]

    assert (len(dialogues), sum(lengths)) == (facts.dialogues, facts.utterances)
    assert (lengths[0], lengths[len(lengths) // 2], lengths[-1]) == facts.length_range
    assert tuple(emotions[name] for name in MELD.label_names) == facts.class_counts
    if split == "train":
        speakers = Counter(len({row["Speaker"] for row in rows}) for rows in dialogues.values())
        assert tuple(speakers[n] for n in range(1, 10)) == MELD.speakers_per_dialogue
