from functools import cache
from itertools import pairwise
from statistics import median

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from merc.data.conversation import Conversations
from merc.data.corpora import CORPORA, IEMOCAP, MELD, Corpus
from merc.data.synthetic import generate
from merc.errors import MercError

SMALL = {"text": 32, "audio": 32, "visual": 32}
both = pytest.mark.parametrize("corpus", CORPORA.values(), ids=CORPORA)


@cache
def small(name: str) -> Conversations:
    return generate(CORPORA[name], seed=3, dims=SMALL)


def dialogues(conversations: Conversations) -> list[tuple[list[int], list[int]]]:
    """(speakers, labels) of each dialogue."""
    spans = pairwise(conversations.offsets)
    return [(conversations.speakers[a:b].tolist(), conversations.labels[a:b].tolist()) for a, b in spans]


def predecessors(conversations: Conversations) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """(earlier, present) labels: of the same speaker's last utterance, and of the last one of another speaker."""
    same, other = [], []
    for speakers, labels in dialogues(conversations):
        for i, speaker in enumerate(speakers):
            own = [j for j in range(i) if speakers[j] == speaker]
            others = [j for j in range(i) if speakers[j] != speaker]
            same += [(labels[own[-1]], labels[i])] if own else []
            other += [(labels[others[-1]], labels[i])] if others else []
    return same, other


def agreement(pairs: list[tuple[int, int]]) -> float:
    return float(np.mean([a == b for a, b in pairs]))


def split_lengths(conversations: Conversations, split: str) -> list[int]:
    return [n for n, s in zip(conversations.lengths, conversations.splits, strict=True) if s == split]


@both
def test_full_size_has_the_published_shape(corpus: Corpus) -> None:
    conversations = generate(corpus, seed=3)
    assert conversations.dims == corpus.dims
    for split, facts in corpus.splits.items():
        lengths = split_lengths(conversations, split)
        shortest, middle, longest = facts.length_range
        assert (len(lengths), sum(lengths)) == (facts.dialogues, facts.utterances)
        assert (min(lengths), max(lengths)) == (shortest, longest)
        assert abs(median(lengths) - middle) <= 1
    assert len(set(conversations.utterance_ids)) == sum(conversations.lengths) == len(conversations.labels)
    for rows in conversations.features.values():
        assert rows.dtype == torch.float32
        assert rows.isfinite().all()
        assert 0.5 < rows.std() < 2


@both
def test_class_prior_is_the_published_one(corpus: Corpus) -> None:
    rows = [generate(corpus, seed=seed, dims={"text": 1}).labels for seed in range(10)]
    share = torch.bincount(torch.cat(rows), minlength=len(corpus.label_names)) / len(torch.cat(rows))
    counts = np.sum([facts.class_counts for facts in corpus.splits.values()], axis=0)
    weights = np.array([facts.utterances for facts in corpus.splits.values()])
    priors = np.array([np.array(f.class_counts) / sum(f.class_counts) for f in corpus.splits.values()])
    assert share.numpy() == pytest.approx(weights @ priors / weights.sum(), abs=0.02)
    assert share.argmax() == counts.argmax()


@both
def test_speakers_are_numbered_by_first_appearance_and_take_turns(corpus: Corpus) -> None:
    changes = []
    for speakers, _ in dialogues(small(corpus.name)):
        assert list(dict.fromkeys(speakers)) == list(range(max(speakers) + 1))
        assert max(speakers) < corpus.speaker_slots
        changes += [a != b for a, b in pairwise(speakers)]
    assert 0.6 < np.mean(changes) < 0.85


def test_number_of_speakers() -> None:
    assert {max(speakers) for speakers, _ in dialogues(small("iemocap"))} == {1}
    cast = [1 + max(speakers) for speakers, _ in dialogues(small("meld"))]
    assert np.mean([2 <= n <= 4 for n in cast]) > 0.7
    assert min(cast) == 1
    assert max(cast) > 5


@both
def test_emotions_persist_and_spread(corpus: Corpus) -> None:
    same, other = predecessors(small(corpus.name))
    chance = float((torch.bincount(small(corpus.name).labels).double() / len(small(corpus.name).labels)).square().sum())
    assert agreement(same) > chance + 0.2
    assert agreement(other) > chance + 0.1
    same, other = predecessors(generate(corpus, seed=3, dims={"text": 1}, inertia=0, contagion=0))
    assert agreement(same) == pytest.approx(chance, abs=0.04)
    assert agreement(other) == pytest.approx(chance, abs=0.04)


@both
def test_pure_inertia_and_pure_contagion(corpus: Corpus) -> None:
    same, _ = predecessors(generate(corpus, size=0.3, dims={"text": 1}, inertia=1, contagion=0))
    assert agreement(same) == 1
    _, other = predecessors(generate(corpus, size=0.3, dims={"text": 1}, inertia=0, contagion=1))
    assert agreement(other) == 1


@both
def test_text_beats_audio_beats_visual_and_context_helps(corpus: Corpus) -> None:
    conversations = small(corpus.name)
    lengths = torch.tensor(conversations.lengths)
    split = np.repeat(conversations.splits, lengths)
    dialogue = torch.arange(len(lengths)).repeat_interleave(lengths)
    labels = conversations.labels.numpy()
    train, test = split == "train", split == "test"

    def weighted_f1(rows: torch.Tensor) -> float:
        scaler = StandardScaler().fit(rows[train])
        with threadpool_limits(1):  # on a busy machine, threads make many small products slow
            classifier = LogisticRegression(C=0.05, max_iter=200).fit(scaler.transform(rows[train]), labels[train])
        predicted = classifier.predict(scaler.transform(rows[test]))
        return float(f1_score(labels[test], predicted, average="weighted"))

    def with_neighbours(rows: torch.Tensor) -> torch.Tensor:
        joined = (dialogue[1:] == dialogue[:-1])[:, None]
        nothing = torch.zeros(1, rows.shape[1])
        previous = torch.cat([nothing, rows[:-1] * joined])
        following = torch.cat([rows[1:] * joined, nothing])
        return torch.cat([rows, previous, following], dim=1)

    score = {modality: weighted_f1(rows) for modality, rows in conversations.features.items()}
    together = weighted_f1(torch.cat(list(conversations.features.values()), dim=1))
    majority = np.full(test.sum(), np.bincount(labels[train]).argmax())
    chance = float(f1_score(labels[test], majority, average="weighted"))
    assert together > score["text"] + 0.05
    assert score["text"] > score["audio"] + 0.05
    assert score["audio"] > score["visual"] + 0.05
    assert score["visual"] > chance + 0.03
    assert together < 0.95
    assert weighted_f1(with_neighbours(conversations.features["text"])) > score["text"] + 0.01


def test_same_arguments_same_conversations_whatever_the_global_state() -> None:
    first = generate(MELD, size=0.05, seed=1, dims=SMALL)
    torch.manual_seed(99)
    np.random.seed(99)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]
    again = generate(MELD, size=0.05, seed=1, dims=SMALL)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()  # type: ignore[index]
    assert again.lengths == first.lengths
    assert torch.equal(again.labels, first.labels)
    assert all(torch.equal(again.features[m], first.features[m]) for m in SMALL)
    assert not torch.equal(generate(MELD, size=0.05, seed=2, dims=SMALL).labels, first.labels)


def test_modalities_do_not_depend_on_each_other() -> None:
    whole = generate(IEMOCAP, size=0.1, seed=1, dims=SMALL)
    part = generate(IEMOCAP, size=0.1, seed=1, dims={"visual": 32})
    assert torch.equal(part.features["visual"], whole.features["visual"])
    assert torch.equal(part.labels, whole.labels)
    assert not torch.equal(whole.features["text"], whole.features["visual"])


@both
@pytest.mark.parametrize("size", [1e-6, 0.03, 0.5, 2.0])
def test_any_size(corpus: Corpus, size: float) -> None:
    conversations = generate(corpus, size=size, dims={"text": 2})
    for split, facts in corpus.splits.items():
        lengths = split_lengths(conversations, split)
        assert len(lengths) == max(4, round(size * facts.dialogues))
        assert facts.length_range[0] <= min(lengths)
        assert max(lengths) <= facts.length_range[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 0}, "data.size=0"),
        ({"size": float("nan")}, "data.size=nan"),
        ({"inertia": 0.8, "contagion": 0.4}, "must not exceed 1"),
        ({"inertia": -0.1}, "negative"),
        ({"dims": {}}, "data.dims"),
        ({"dims": {"text": 0}}, "data.dims"),
        ({"dims": {"smell": 3}}, "smell"),
    ],
)
def test_impossible_arguments(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(MercError, match=message):
        generate(MELD, **arguments)  # type: ignore[arg-type]
