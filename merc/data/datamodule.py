"""The data modules: splits, standardisation and batches of conversations.

A feature store or the synthetic generator yields :class:`Conversations`; a data module divides them into parts and
serves batches (:class:`ConversationBatch`) of whole dialogues.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from merc.data.conversation import MODALITIES, Conversations, CorpusInfo, Features, Scales
from merc.data.corpora import CORPORA, IEMOCAP, MELD, Corpus
from merc.data.store import fingerprint, read_store
from merc.data.synthetic import generate
from merc.errors import MercError, check_choice, nearest

SPLIT_RULES = ("official", "merged")
STANDARDIZERS = ("none", "zscore")

BoolArray = NDArray[np.bool_]


class EpochShuffle(Sampler[int]):
    """The dialogues in an order that is a function of seed and epoch alone.

    So a resumed run meets the same batches as an uninterrupted one. Lightning calls :meth:`set_epoch` before each
    epoch.

    Args:
        dialogues: their number B.
        seed: together with the epoch it fixes the order.
    """

    def __init__(self, dialogues: int, seed: int) -> None:
        self.dialogues = dialogues
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of this epoch, counted from 0."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        yield from np.random.default_rng((self.seed, self.epoch)).permutation(self.dialogues).tolist()

    def __len__(self) -> int:
        return self.dialogues


class _DialogueIndices(Dataset[int]):
    """0 … B-1: the loaders sample dialogues by index; the features stay in one table."""

    def __init__(self, dialogues: int) -> None:
        self.dialogues = dialogues

    def __getitem__(self, index: int) -> int:
        return index

    def __len__(self) -> int:
        return self.dialogues


class ConversationDataModule(L.LightningDataModule, ABC):
    """Conversations, divided into parts and served in batches of dialogues.

    The arguments are the keys of ``conf/data/_base.yaml``.

    Args:
        modalities: which to use, in the order in which they are processed.
        split: ``official``: train, validation and test of the source, or of the corpus where the source has no
            validation; ``merged``: train and validation together are the training part, and there is no validation.
        validation_fraction: take this share of the train and validation dialogues, drawn with ``seed``, as validation
            instead of the official ones; None: the official ones.
        standardize: ``zscore`` makes every feature dimension zero-mean, unit-variance on the training part; ``none``.
        batch_size: dialogues per training batch.
        evaluation_batch_size: dialogues per batch of the other loaders.
        speaker_slots: most speakers that a dialogue may have; None: what the corpus fixes, else the most found.
        test_lengths: fewest and most utterances of the test dialogues that are kept; None: all are.
        seed: of the order of dialogues and of ``validation_fraction``.

    Attributes:
        scales: modality → what ``zscore`` subtracts from its features and divides them by; set before :meth:`setup`
            where a model was trained with others than those of this training part.
        parts: train, validation (unless merged) and test; after :meth:`setup`.
        info: what a model must know of the corpus; after :meth:`setup`.

    Raises:
        MercError: an argument is not valid.
    """

    corpus: Corpus | None = None
    scales: Scales | None = None
    parts: dict[str, Conversations]
    info: CorpusInfo

    def __init__(
        self,
        modalities: Sequence[str] = MODALITIES,
        split: str = "official",
        validation_fraction: float | None = None,
        standardize: str = "none",
        batch_size: int = 16,
        evaluation_batch_size: int = 512,
        speaker_slots: int | None = None,
        test_lengths: Sequence[int] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.modalities = _distinct(modalities)
        check_choice("data.split", split, SPLIT_RULES)
        check_choice("data.standardize", standardize, STANDARDIZERS)
        self.split = split
        self.validation_fraction = _fraction(validation_fraction, split)
        self.standardize = standardize
        self.batch_size = _positive("data.batch_size", batch_size)
        self.evaluation_batch_size = _positive("data.evaluation_batch_size", evaluation_batch_size)
        self.speaker_slots = speaker_slots
        self.test_lengths = None if test_lengths is None else _span("data.test_lengths", test_lengths)
        self.seed = seed
        self._resident: dict[str, Conversations] = {}

    @abstractmethod
    def read(self) -> Conversations:
        """All conversations of the source, with the features of ``self.modalities`` in that order."""

    def setup(self, stage: str | None = None) -> None:
        """Read, check, divide and standardise; a second call does nothing.

        Raises:
            MercError: the source is missing or does not fit the corpus, or a part would be empty.
        """
        if hasattr(self, "parts"):
            return
        conversations = self.read()
        self._check_labels(conversations)
        speaker_slots = self._speaker_slots(conversations)
        parts = self._divide(conversations)
        if self.standardize == "zscore":
            self.scales = self.scales or scales_of(parts["train"])
            parts = _scaled(parts, self.scales)
        class_counts = torch.bincount(parts["train"].labels, minlength=len(conversations.label_names))
        self.info = CorpusInfo(
            dims=conversations.dims,
            label_names=conversations.label_names,
            speaker_slots=speaker_slots,
            class_counts=tuple(class_counts.tolist()),
            scales=self.scales,
            fingerprint=self.fingerprint,
        )
        self.parts = parts

    def reside(self, device: torch.device) -> None:
        """Keep all parts on a device, where loaders made from now on make their batches: nothing is copied there again.

        Args:
            device: with room for all features.
        """
        self._resident = {split: part.to(device) for split, part in self.parts.items()}

    @property
    def fingerprint(self) -> str | None:
        """What tells the data from others of the same configuration; None: nothing need."""
        return None

    @property
    def feature_bytes(self) -> int:
        """Bytes of the features of all parts."""
        rows = sum(sum(part.lengths) for part in self.parts.values())
        return rows * sum(self.info.dims.values()) * torch.float32.itemsize

    @property
    def evaluation_splits(self) -> tuple[str, ...]:
        """The parts that are evaluated, in the order of :meth:`val_dataloader`."""
        return ("test",) if self.split == "merged" else ("validation", "test")

    def train_dataloader(self) -> DataLoader[int]:
        """Batches of the training part (:class:`ConversationBatch`), in a new order each epoch."""
        order = EpochShuffle(len(self.parts["train"].lengths), self.seed)
        return self._loader("train", self.batch_size, order)

    def val_dataloader(self) -> list[DataLoader[int]]:
        """One loader for each of :attr:`evaluation_splits`."""
        return [self.loader(split) for split in self.evaluation_splits]

    def test_dataloader(self) -> DataLoader[int]:
        """Batches of the test part, in corpus order."""
        return self.loader("test")

    def loader(self, split: str) -> DataLoader[int]:
        """Batches (:class:`ConversationBatch`) of any part, in corpus order."""
        return self._loader(split, self.evaluation_batch_size, None)

    def _loader(self, split: str, batch_size: int, sampler: Sampler[int] | None) -> DataLoader[int]:
        part = self._resident.get(split, self.parts[split])
        return DataLoader(
            _DialogueIndices(len(part.lengths)),
            batch_size=batch_size,
            sampler=sampler,
            collate_fn=part.batch,
            # Without a generator every pass over a loader would draw from, and so advance, the global one.
            generator=torch.Generator().manual_seed(self.seed),
        )

    def _check_labels(self, conversations: Conversations) -> None:
        if self.corpus and conversations.label_names != self.corpus.label_names:
            raise MercError(
                f"The classes of the data are {', '.join(conversations.label_names)}, but those of "
                f"{self.corpus.name} are {', '.join(self.corpus.label_names)}, in this order. "
                "Name the right corpus, or choose data=custom, which takes the classes of the store."
            )

    def _speaker_slots(self, conversations: Conversations) -> int:
        most = [
            int(speakers.max()) + 1 for speakers in torch.split(conversations.speakers, list(conversations.lengths))
        ]
        slots = self.speaker_slots or (self.corpus.speaker_slots if self.corpus else max(most))
        if max(most) > slots:
            dialogue = conversations.dialogue_ids[most.index(max(most))]
            raise MercError(
                f"Dialogue '{dialogue}' has {max(most)} speakers, but there are only {slots} speaker slots. "
                f"Correct its speakers, or set data.speaker_slots={max(most)}."
            )
        return slots

    def _divide(self, conversations: Conversations) -> dict[str, Conversations]:
        members = self._members(conversations)
        for split, dialogues in members.items():
            if not dialogues:
                raise MercError(f"The {split} split is empty. {_EMPTY_SPLIT[split]}")
        return {split: conversations.select(dialogues) for split, dialogues in members.items()}

    def _members(self, conversations: Conversations) -> dict[str, list[int]]:
        """Split → its dialogues, in corpus order."""
        test = np.array(conversations.splits) == "test"
        if self.split == "merged":
            members = {"train": ~test}
        else:
            validation = self._validation(conversations, ~test)
            members = {"train": ~test & ~validation, "validation": validation}
        members["test"] = test & self._of_test_length(conversations)
        return {split: np.flatnonzero(mask).tolist() for split, mask in members.items()}

    def _of_test_length(self, conversations: Conversations) -> BoolArray:
        """(B,) whether a dialogue is as long as test dialogues must be."""
        lengths = np.array(conversations.lengths)
        shortest, longest = self.test_lengths or (0, np.inf)
        within: BoolArray = (shortest <= lengths) & (lengths <= longest)
        return within

    def _validation(self, conversations: Conversations, pool: BoolArray) -> BoolArray:
        """(B,) whether a dialogue is validation; ``pool`` says which may be."""
        if self.validation_fraction is not None:
            candidates = np.random.default_rng(self.seed).permutation(np.flatnonzero(pool))
            drawn = candidates[: max(1, round(self.validation_fraction * len(candidates)))]
            return np.isin(np.arange(len(pool)), drawn)
        validation: BoolArray = np.array(conversations.splits) == "validation"
        if self.corpus is None or validation.any():
            return validation
        return pool & np.isin(conversations.dialogue_ids, list(self.corpus.validation_dialogues))


class CustomDataModule(ConversationDataModule):
    """Any feature store: classes, splits and speakers are those of the store.

    Args:
        store: folder that ``python -m merc.prepare`` wrote.
        verify: compare the store with its checksums.
        arguments: those of :class:`ConversationDataModule`.
    """

    def __init__(self, store: str | Path, verify: bool = True, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.store = Path(store)
        self.verify = verify

    def read(self) -> Conversations:
        """Read the store.

        Raises:
            MercError: there is no store, or it cannot be read; see :func:`merc.data.store.read_store`.
        """
        if not self.store.exists():
            raise MercError(
                f"There is no feature store at {self.store}. `python -m merc.prepare --help` says how to prepare one; "
                "data.store=... names one elsewhere; data=synthetic_meld needs none."
            )
        return read_store(self.store, self.modalities, verify=self.verify)

    @property
    def fingerprint(self) -> str | None:
        """That of the store."""
        return fingerprint(self.store)


class MELDDataModule(CustomDataModule):
    """MELD from a feature store; arguments as :class:`CustomDataModule`."""

    corpus = MELD


class IEMOCAPDataModule(CustomDataModule):
    """IEMOCAP, in six classes, from a feature store; arguments as :class:`CustomDataModule`."""

    corpus = IEMOCAP


class SyntheticDataModule(ConversationDataModule):
    """Generated conversations with the published shape of a corpus; see :func:`merc.data.synthetic.generate`.

    Args:
        imitate: name of the corpus, a key of :data:`merc.data.corpora.CORPORA`.
        size: share of the published number of dialogues.
        dims: modality → feature dimension D_m.
        signal: modality → how clearly it shows the emotion.
        inertia: probability that a speaker keeps their emotion.
        contagion: probability that the last other speaker's emotion is taken over.
        seed: of the generator too.
        arguments: the others of :class:`ConversationDataModule`.

    Raises:
        MercError: the corpus is unknown.
    """

    corpus: Corpus

    def __init__(
        self,
        imitate: str,
        size: float,
        dims: Mapping[str, int],
        signal: Mapping[str, float],
        inertia: float,
        contagion: float,
        **arguments: Any,
    ) -> None:
        super().__init__(**arguments)
        check_choice("data.imitate", imitate, CORPORA)
        self.corpus = CORPORA[imitate]
        self.size = size
        self.dims = dict(dims)
        self.signal = signal
        self.inertia = inertia
        self.contagion = contagion

    def read(self) -> Conversations:
        """Generate the conversations.

        Raises:
            MercError: a modality has no dimension, or an argument of the generator is out of range.
        """
        for modality in self.modalities:
            if modality not in self.dims:
                raise MercError(
                    f"The synthetic data has no modality '{modality}', only {', '.join(self.dims)}."
                    f"{nearest(modality, self.dims)} Choose from these with data.modalities=[...]."
                )
        return generate(
            self.corpus,
            size=self.size,
            seed=self.seed,
            dims={modality: self.dims[modality] for modality in self.modalities},
            signal=self.signal,
            inertia=self.inertia,
            contagion=self.contagion,
        )


def scales_of(train: Conversations) -> Scales:
    """Modality → the D_m means of its features and the D_m standard deviations; 1 where a dimension is constant."""
    features = Features.of(train.features)
    moments = {modality: _mean_and_scale(features, modality) for modality in features}
    return {modality: (mean.tolist(), divisor.tolist()) for modality, (mean, divisor) in moments.items()}


def _scaled(parts: Mapping[str, Conversations], scales: Scales) -> dict[str, Conversations]:
    """Every feature minus its mean, over its divisor."""
    doubles = {m: (_doubles(mean), _doubles(divisor)) for m, (mean, divisor) in scales.items()}
    return {split: replace(part, features=Features.of(part.features).scaled(doubles)) for split, part in parts.items()}


def _doubles(numbers: Sequence[float]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def _mean_and_scale(features: Features, modality: str) -> tuple[Tensor, Tensor]:
    """(D_m,) float64 mean and standard deviation over all rows; the latter 1 for constant dimensions."""
    mean, deviation = features.moments(modality)
    # Below the resolution of float32, what looks like variation is rounding.
    constant = deviation <= torch.finfo(torch.float32).eps * mean.abs()
    return mean, deviation.masked_fill(constant, 1.0)


_EMPTY_SPLIT = {
    "train": "Check the splits of the source: it needs dialogues for training.",
    "validation": "Take a share of the training dialogues with data.validation_fraction=0.1, or do without and "
    "train on all of them with data.split=merged.",
    "test": "Check the splits of the source: it needs dialogues marked as test, of the lengths that data.test_lengths "
    "asks for.",
}


def _positive(key: str, value: int) -> int:
    if value < 1:
        raise MercError(f"{key}={value}: give a number of at least 1.")
    return value


def _span(key: str, value: Sequence[int]) -> tuple[int, int]:
    """Two whole numbers, 1 ≤ first ≤ second."""
    match value:
        case [int(first), int(last)] if 1 <= first <= last:
            return first, last
    raise MercError(f"{key}={value}: give two whole numbers, the smallest and the largest, as in [20,50].")


def _distinct(modalities: Sequence[str]) -> tuple[str, ...]:
    if not modalities or len(set(modalities)) < len(modalities):
        raise MercError(f"data.modalities=[{','.join(modalities)}]: name at least one modality, and each only once.")
    return tuple(modalities)


def _fraction(fraction: float | None, split: str) -> float | None:
    if fraction is None:
        return None
    if not 0 < fraction < 1:
        raise MercError(f"data.validation_fraction={fraction}: it must lie between 0 and 1, or be null.")
    if split == "merged":
        raise MercError(
            "data.split=merged trains on all but the test dialogues, which leaves none for "
            f"data.validation_fraction={fraction}. Set only one of the two."
        )
    return fraction
