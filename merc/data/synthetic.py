"""Synthetic conversations with the published shape of a corpus, for trials and tests without any download.

Emotions follow a process with memory: an utterance repeats its speaker's last emotion (inertia), or takes over that of
the last utterance of somebody else (contagion), or is drawn from the corpus's class prior. Copying does not favour any
class, so the prior stays the marginal distribution. Each modality shows the emotion as a point in a space of few
dimensions, displaced by noise and embedded in the feature space: the further apart the classes lie, the stronger the
modality. Since the noise of an utterance cannot be seen through but its neighbours share its emotion, context helps.
"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from merc.data.conversation import SPLITS, Conversations
from merc.data.corpora import Corpus, SplitFacts
from merc.errors import MercError

SIGNAL: Mapping[str, float] = {"text": 1.6, "audio": 1.2, "visual": 0.6}
"""Default signal of each modality: distance of a class from the centre, in standard deviations of the noise."""

INERTIA = 0.45
"""Default probability that a speaker keeps their emotion."""

CONTAGION = 0.25
"""Default probability that an utterance takes over the emotion of the last utterance of another speaker."""

_TURN_CHANGE = 0.75  # probability that the next utterance is another speaker's; 0.76-0.79 in MELD
_LATENT_DIM = 16  # dimension of the space in which the classes lie
_BACKGROUND = 0.3  # sd of the white noise in every feature, that of the embedded signal being about 1
_FEWEST_DIALOGUES = 4  # per split, however small the size

IntArray = NDArray[np.int64]


def generate(
    corpus: Corpus,
    size: float = 1.0,
    seed: int = 0,
    dims: Mapping[str, int] | None = None,
    signal: Mapping[str, float] = SIGNAL,
    inertia: float = INERTIA,
    contagion: float = CONTAGION,
) -> Conversations:
    """Conversations of the corpus's published shape.

    With ``size=1`` every split has exactly the published numbers of dialogues and utterances and the published
    shortest, median and longest dialogue. The result is a function of the arguments alone; the dialogues, speakers and
    labels do not depend on ``dims`` and ``signal``, nor the features of a modality on the other modalities.

    Args:
        corpus: whose sizes, class prior, speakers and dimensions to take.
        size: share of the published number of dialogues; at least four dialogues per split are made.
        seed: of everything random.
        dims: modality → feature dimension D_m; default: the corpus's.
        signal: modality → distance of each class from the centre, in standard deviations of the noise.
        inertia: probability that an utterance repeats its speaker's last emotion.
        contagion: probability that it takes over the emotion of the last utterance of another speaker.

    Returns:
        Features of shape (N, D_m) per modality, with the splits train, validation and test.

    Raises:
        MercError: an argument is out of range, or a modality has no signal.
    """
    dims = corpus.dims if dims is None else dims
    _check(size, dims, signal, inertia, contagion)
    rng = np.random.default_rng(seed)

    per_split = {split: _lengths(corpus.splits[split], size, rng) for split in SPLITS}
    lengths = np.concatenate(list(per_split.values()))
    dialogues = np.repeat(np.arange(len(lengths)), lengths)
    speakers = _speakers(corpus, lengths, rng)
    fresh = np.concatenate([_draw(corpus.splits[split], int(per_split[split].sum()), rng) for split in SPLITS])
    labels = fresh[_origins(dialogues, speakers, inertia, contagion, rng)]

    splits = tuple(split for split in SPLITS for _ in per_split[split])
    names = [f"{split}_{i}" for i, split in enumerate(splits)]
    streams = {modality: np.random.default_rng([seed, *modality.encode()]) for modality in dims}
    return Conversations(
        features={
            modality: _embed(labels, len(corpus.label_names), dim, signal[modality], streams[modality])
            for modality, dim in dims.items()
        },
        speakers=torch.from_numpy(speakers),
        labels=torch.from_numpy(labels),
        lengths=tuple(lengths.tolist()),
        dialogue_ids=tuple(names),
        utterance_ids=tuple(f"{name}_{i}" for name, n in zip(names, lengths, strict=True) for i in range(n)),
        splits=splits,
        label_names=corpus.label_names,
    )


def _check(size: float, dims: Mapping[str, int], signal: Mapping[str, float], inertia: float, contagion: float) -> None:
    if not size > 0:
        raise MercError(f"data.size={size}: the size of synthetic data must be above 0; 1 is the published size.")
    if inertia < 0 or contagion < 0 or inertia + contagion > 1:
        raise MercError(
            f"data.inertia={inertia} and data.contagion={contagion} are probabilities of two exclusive events: "
            "neither may be negative, and their sum must not exceed 1."
        )
    if not dims or min(dims.values()) < 1:
        raise MercError(f"data.dims={dict(dims)}: synthetic data needs modalities with at least one dimension each.")
    if silent := [modality for modality in dims if modality not in signal]:
        raise MercError(
            f"data.dims names {silent}, for which data.signal has no strength. "
            f"Add +data.signal.{silent[0]}=1.0, for example."
        )


def _lengths(facts: SplitFacts, size: float, rng: np.random.Generator) -> IntArray:
    """(dialogues,) lengths at equidistant quantiles, shuffled: uniform up to the median, a Beta(1, b) law above it.

    b is the value with which the mean is the published one.
    """
    dialogues = max(_FEWEST_DIALOGUES, round(size * facts.dialogues))
    shortest, median, longest = facts.length_range
    mean = facts.utterances / facts.dialogues
    quantile = np.linspace(0, 1, dialogues)
    b = (longest - median) / (2 * mean - (shortest + median) / 2 - median) - 1
    lower = shortest + (median - shortest) * 2 * quantile
    upper = longest - (longest - median) * (2 * (1 - quantile)).clip(max=1) ** (1 / b)
    lengths = np.rint(np.where(quantile < 0.5, lower, upper)).astype(np.int64)

    # Rounding moves the total a little. Dialogues somewhat longer than the median make up for it, by two utterances
    # at most: enough at the published size, whereas a handful of dialogues cannot have that total.
    adjustable = np.flatnonzero((quantile > 0.6) & (quantile < 0.9))
    most = 2 * len(adjustable)
    missing = np.clip(round(mean * dialogues) - lengths.sum(), -most, most)
    shares = np.linspace(0, missing, len(adjustable) + 1).round()
    lengths[adjustable] += np.diff(shares).astype(np.int64)
    return rng.permutation(lengths)


def _draw(facts: SplitFacts, utterances: int, rng: np.random.Generator) -> IntArray:
    """(utterances,) labels, each drawn from the split's class prior on its own."""
    prior = np.array(facts.class_counts) / sum(facts.class_counts)
    return rng.choice(len(prior), size=utterances, p=prior)


def _speakers(corpus: Corpus, lengths: IntArray, rng: np.random.Generator) -> IntArray:
    """(N,) speaker of each utterance, numbered in order of first appearance inside the dialogue.

    The number of speakers follows the corpus; they enter at random places early in the dialogue, and the turn changes
    to any other speaker present.
    """
    longest = int(lengths.max())
    shape = (len(lengths), longest)
    counts = np.array(corpus.speakers_per_dialogue)
    cast = 1 + np.sort(rng.choice(len(counts), size=len(lengths), p=counts / counts.sum()))
    by_length = (lengths * rng.random(len(lengths))).argsort().argsort()  # long dialogues tend to have more speakers
    cast = np.minimum(cast[by_length], lengths)[:, None]

    position = np.arange(longest)
    key = rng.random(shape)
    key[(position >= np.minimum(lengths[:, None], 2 * cast)) | (position == 0)] = np.inf
    enters = key.argsort(axis=1).argsort(axis=1) < cast - 1
    present = 1 + enters.cumsum(axis=1)

    changes = rng.random(shape) < _TURN_CHANGE
    choice = rng.random(shape)
    speaker = np.zeros(shape, dtype=np.int64)
    for t in range(1, longest):
        others = present[:, t] - 1
        step = np.where(changes[:, t] & (others > 0), 1 + (choice[:, t] * others).astype(np.int64), 0)
        speaker[:, t] = np.where(enters[:, t], others, (speaker[:, t - 1] + step) % present[:, t])
    return speaker[position < lengths[:, None]]


def _origins(
    dialogues: IntArray, speakers: IntArray, inertia: float, contagion: float, rng: np.random.Generator
) -> IntArray:
    """(N,) the row from which each utterance has its emotion in the end: its own, or an earlier one of the dialogue."""
    rows = np.arange(len(dialogues))
    by_speaker = np.lexsort((rows, speakers, dialogues))
    own = _previous_in_run(by_speaker, dialogues, speakers)
    other = _last_of_another(dialogues, speakers)

    chance = rng.random(len(rows))
    origin = np.where(chance < inertia, own, np.where(chance < inertia + contagion, other, rows))
    while not np.array_equal(origin[origin], origin):
        origin = origin[origin]
    return origin


def _previous_in_run(by_speaker: IntArray, dialogues: IntArray, speakers: IntArray) -> IntArray:
    """(N,) the row of the same speaker's previous utterance; the row itself where there is none."""
    previous = np.arange(len(dialogues))
    before, after = by_speaker[:-1], by_speaker[1:]
    same = (dialogues[before] == dialogues[after]) & (speakers[before] == speakers[after])
    previous[after[same]] = before[same]
    return previous


def _last_of_another(dialogues: IntArray, speakers: IntArray) -> IntArray:
    """(N,) the last earlier row of the dialogue that another speaker has; the row itself where there is none."""
    rows = np.arange(len(dialogues))
    new_dialogue = np.diff(dialogues, prepend=-1) != 0
    new_turn = new_dialogue | (np.diff(speakers, prepend=-1) != 0)
    turn_start = np.maximum.accumulate(np.where(new_turn, rows, 0))
    return np.where(new_dialogue[turn_start], rows, turn_start - 1)


def _embed(labels: IntArray, classes: int, dim: int, signal: float, rng: np.random.Generator) -> torch.Tensor:
    """(N, dim) float32 features in which the classes lie ``signal`` standard deviations from their centre."""
    centres = rng.standard_normal((classes, _LATENT_DIM), dtype=np.float32)
    centres *= signal / np.linalg.norm(centres, axis=1, keepdims=True)
    latent = centres[labels] + rng.standard_normal((len(labels), _LATENT_DIM), dtype=np.float32)
    embedding = rng.standard_normal((_LATENT_DIM, dim), dtype=np.float32) / np.float32(np.sqrt(_LATENT_DIM))
    background = rng.standard_normal((len(labels), dim), dtype=np.float32)
    return torch.from_numpy(latent @ embedding + np.float32(_BACKGROUND) * background)
