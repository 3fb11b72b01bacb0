"""The data type that every part passes on: conversations as packed rows.

The utterances of all dialogues lie one after another in one table, without padding. A tensor with one row per
utterance has shape ``(N, ...)``, N being the number of utterances; B is the number of dialogues and D_m the feature
dimension of modality m.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, Self

import torch
from torch import Tensor

from merc.data.cached import cached_property

MODALITIES = ("text", "audio", "visual")
"""Canonical order of the modalities of the field; any other names may be used as well."""

SPLITS = ("train", "validation", "test")

CHUNK = 2**21
"""Numbers of a table that are looked at together where all of them must be, however many there are."""

TILE = 2**15
"""Most pairs of utterances of a tile, where it holds more than one dialogue."""


@dataclass(frozen=True)
class ConversationBatch:
    """Some dialogues, as packed rows.

    Attributes:
        features: modality → (N, D_m) float features; modalities may be absent.
        speakers: (N,) int64, index of the speaker inside its dialogue, from 0.
        labels: (N,) int64 class ids.
        lengths: rows per dialogue, on the host, so that no shape ever waits for the device.
        present: (N,) bool, False in rows of padding; None, the rule: there are none. Only models that depend on
            padding, as some released ones do, ask for such rows: see :meth:`with_padding`.
        causal: no row may learn anything of a later row of its dialogue.
        filler: rows at the end, in dialogues of their own, that stand for nothing: see :meth:`with_filler`.
    """

    features: Mapping[str, Tensor]
    speakers: Tensor
    labels: Tensor
    lengths: tuple[int, ...]
    present: Tensor | None = None
    causal: bool = False
    filler: int = 0

    @property
    def device(self) -> torch.device:
        return self.labels.device

    @property
    def rows(self) -> int:
        """N."""
        return sum(self.lengths)

    @property
    def count(self) -> int:
        """B."""
        return len(self.lengths)

    @property
    def longest(self) -> int:
        """L, rows of the longest dialogue."""
        return max(self.lengths)

    @cached_property
    def sizes(self) -> Tensor:
        """(B,) int64: the lengths, on the device."""
        return self._upload(self.lengths)

    @cached_property
    def starts(self) -> Tensor:
        """(B,) int64: the first row of each dialogue."""
        return self._upload([0, *accumulate(self.lengths)][:-1])

    @cached_property
    def dialogues(self) -> Tensor:
        """(N,) int64: the dialogue of each row, 0 … B-1."""
        return torch.repeat_interleave(self.sizes, output_size=self.rows)

    @cached_property
    def positions(self) -> Tensor:
        """(N,) int64: position of each row in its dialogue, from 0."""
        return torch.arange(self.rows, device=self.device) - self.starts[self.dialogues]

    @cached_property
    def previous(self) -> Tensor:
        """(N,) int64: the row before each row in its dialogue; before the first stands the last, itself if causal."""
        rows = torch.arange(self.rows, device=self.device)
        lengths = self.sizes[self.dialogues]
        return torch.where(self.positions == 0, rows if self.causal else rows + lengths - 1, rows - 1)

    @cached_property
    def places(self) -> Tensor:
        """(N,) int64: where each row lies in the padded layout, whose B·L rows are counted dialogue after dialogue."""
        return self.dialogues * self.longest + self.positions

    def _upload(self, numbers: Sequence[int]) -> Tensor:
        # With device= in its place, torch.tensor would wait until the device has done all that was asked of it.
        return torch.tensor(numbers).to(self.device, non_blocking=True)

    def pad(self, rows: Tensor) -> Tensor:
        """(N, ...) packed rows → (B, L, ...) with zeros behind each dialogue, L the longest dialogue."""
        padded = rows.new_zeros(self.count, self.longest, *rows.shape[1:])
        return padded.index_put((self.dialogues, self.positions), rows)

    def unpad(self, padded: Tensor) -> Tensor:
        """(B, L, ...) → (N, ...), the inverse of :meth:`pad`."""
        return padded[self.dialogues, self.positions]

    @cached_property
    def tiles(self) -> tuple[Tensor, ...]:
        """Row indices of dialogues, longest first, in groups, each (B', L') int64 with N behind shorter dialogues.

        What is computed per pair of utterances is computed tile by tile: there are few of them, and what one needs fits
        into a cache.
        """
        starts = (0, *accumulate(self.lengths))
        order = sorted(range(len(self.lengths)), key=lambda dialogue: -self.lengths[dialogue])
        groups: list[list[int]] = []
        for dialogue in order:
            longest = self.lengths[groups[-1][0]] if groups else 0
            if groups and (len(groups[-1]) + 1) * longest**2 <= TILE:
                groups[-1].append(dialogue)
            else:
                groups.append([dialogue])
        return tuple(self._tile(group, starts) for group in groups)

    def _tile(self, group: Sequence[int], starts: Sequence[int]) -> Tensor:
        first = torch.tensor([starts[dialogue] for dialogue in group])[:, None]
        lengths = torch.tensor([self.lengths[dialogue] for dialogue in group])[:, None]
        offset = torch.arange(self.lengths[group[0]])
        return (first + offset).masked_fill(offset >= lengths, starts[-1]).to(self.device, non_blocking=True)

    @cached_property
    def derived(self) -> dict[Any, Any]:
        """What layers work out of the structure of the batch, for others to find; gone with the batch."""
        return {}

    @cached_property
    def occupied(self) -> Tensor:
        """(B, L) bool: True where the padded layout holds a row."""
        return torch.arange(self.longest, device=self.device) < self.sizes[:, None]

    @cached_property
    def mask(self) -> Tensor:
        """(B, L) bool: True where the padded layout holds an utterance."""
        return self.occupied if self.present is None else self.pad(self.present)

    def with_padding(self, speaker: int) -> Self:
        """The batch with rows of padding, so that all dialogues are as long as the longest.

        Args:
            speaker: index that the rows of padding get; their features and labels are 0.
        """
        layout = replace(self, lengths=(self.longest,) * self.count, present=self.occupied.flatten())

        def spread(rows: Tensor) -> Tensor:
            return self.pad(rows).flatten(0, 1)

        return replace(
            layout,
            features={modality: spread(rows) for modality, rows in self.features.items()},
            speakers=torch.where(self.occupied, self.pad(self.speakers), speaker).flatten(),
            labels=spread(self.labels),
        )

    def with_filler(self, rows: int, longest: int | None = None) -> Self:
        """The batch with further rows of zeros behind all others, in dialogues of their own.

        Args:
            rows: how many.
            longest: rows of these dialogues, but for the last; None: as many as the longest dialogue has.
        """
        if not rows:
            return self
        longest = longest or self.longest
        whole, rest = divmod(rows, longest)

        def extend(x: Tensor) -> Tensor:
            return torch.cat([x, x.new_zeros(rows, *x.shape[1:])])

        return replace(
            self,
            features={modality: extend(x_ND) for modality, x_ND in self.features.items()},
            speakers=extend(self.speakers),
            labels=extend(self.labels),
            lengths=(*self.lengths, *[longest] * whole, *[rest] * (rest > 0)),
            filler=rows,
        )

    @property
    def utterances(self) -> slice | Tensor:
        """Index of the rows that are utterances."""
        return slice(self.rows - self.filler) if self.present is None else self.present

    @property
    def counted(self) -> Tensor | None:
        """(N,) bool, True in rows that are utterances; None: all are."""
        if not self.filler:
            return self.present
        return torch.arange(self.rows, device=self.device) < self.rows - self.filler

    def to(self, device: Any, non_blocking: bool = False) -> Self:
        """The same batch on another device."""
        return replace(
            self,
            features={m: x.to(device, non_blocking=non_blocking) for m, x in self.features.items()},
            speakers=self.speakers.to(device, non_blocking=non_blocking),
            labels=self.labels.to(device, non_blocking=non_blocking),
            present=None if self.present is None else self.present.to(device, non_blocking=non_blocking),
        )


Scales = Mapping[str, tuple[list[float], list[float]]]
"""Modality → the D_m means that are subtracted from its features, and the D_m divisors."""


@dataclass(frozen=True)
class CorpusInfo:
    """What a model must know of the corpus it is built for; stored in checkpoints so that they rebuild themselves.

    Attributes:
        dims: modality → feature dimension D_m, in the order in which the modalities are processed.
        label_names: the classes, in id order.
        speaker_slots: most speakers that a dialogue may have.
        class_counts: utterances of each class in the training split.
        scales: of the features; None: they are as they came.
        fingerprint: of the feature store, see :func:`merc.data.store.fingerprint`; None: there is none.
    """

    dims: dict[str, int]
    label_names: tuple[str, ...]
    speaker_slots: int
    class_counts: tuple[int, ...]
    scales: Scales | None = None
    fingerprint: str | None = None

    @property
    def modalities(self) -> tuple[str, ...]:
        return tuple(self.dims)

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, for checkpoints."""
        return {
            "dims": dict(self.dims),
            "label_names": list(self.label_names),
            "speaker_slots": self.speaker_slots,
            "class_counts": list(self.class_counts),
            "scales": self.scales,
            "fingerprint": self.fingerprint,
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`to_dict`."""
        return cls(
            dims=dict(value["dims"]),
            label_names=tuple(value["label_names"]),
            speaker_slots=value["speaker_slots"],
            class_counts=tuple(value["class_counts"]),
            scales=value["scales"],
            fingerprint=value["fingerprint"],
        )


class Features(Mapping[str, Tensor]):
    """Modality → (N, D_m) float32 features: rows of larger tables, such as those of a feature store on disk.

    A whole modality is put together when it is asked for by its name; batches take only the rows that they need. Rows
    that follow each other in a table are a part of it, not a copy: nobody writes to them.

    Args:
        tables: modality → (N', D_m).
        rows: (N,) int64, which of their rows; None: all, in their order.
        scales: modality → (D_m,) float64 mean, which is subtracted, and divisor; None: features as in the tables.
    """

    def __init__(
        self,
        tables: Mapping[str, Tensor],
        rows: Tensor | None = None,
        scales: Mapping[str, tuple[Tensor, Tensor]] | None = None,
    ) -> None:
        self.tables = tables
        self.rows = rows
        self.scales = scales

    @classmethod
    def of(cls, features: Mapping[str, Tensor]) -> "Features":
        """The same features."""
        return features if isinstance(features, Features) else cls(features)

    @property
    def dims(self) -> dict[str, int]:
        """modality → feature dimension D_m."""
        return {modality: table.shape[1] for modality, table in self.tables.items()}

    def select(self, rows: Tensor) -> "Features":
        """The (N',) int64 rows; nothing is copied."""
        return Features(self.tables, rows if self.rows is None else self.rows[rows], self.scales)

    def scaled(self, scales: Mapping[str, tuple[Tensor, Tensor]]) -> "Features":
        """(features − mean)/divisor, in double precision, when they are read."""
        assert self.scales is None
        return Features(self.tables, self.rows, scales)

    def chunks(self, modality: str) -> Iterator[Tensor]:
        """All rows of a modality, some at a time."""
        for rows in torch.arange(self._count(modality)).split(max(1, CHUNK // self.dims[modality])):
            yield self.select(rows)[modality]

    def _count(self, modality: str) -> int:
        """N."""
        return len(self.tables[modality] if self.rows is None else self.rows)

    def moments(self, modality: str) -> tuple[Tensor, Tensor]:
        """(D_m,) float64 mean and standard deviation of a modality over all rows."""
        count, mean, squares = 0, torch.zeros(()), torch.zeros(())
        for x_ND in self.chunks(modality):
            deviation, here = torch.std_mean(x_ND.double(), dim=0, correction=0)
            added = len(x_ND)
            # Chan, Golub, LeVeque (1979): moments of what was seen and of what is added make those of both.
            squares = squares + added * deviation**2 + (here - mean) ** 2 * (count * added / (count + added))
            mean = mean + (here - mean) * (added / (count + added))
            count += added
        return mean, (squares / count).sqrt()

    def to(self, device: torch.device) -> "Features":
        """All of them on a device, put together and scaled; the host holds some rows at a time."""
        return Features({modality: self._together(modality, device) for modality in self})

    def _together(self, modality: str, device: torch.device) -> Tensor:
        x_ND = torch.empty(self._count(modality), self.dims[modality], device=device)
        start = 0
        for chunk in self.chunks(modality):
            x_ND[start : start + len(chunk)] = chunk
            start += len(chunk)
        return x_ND

    def __getitem__(self, modality: str) -> Tensor:
        x_ND = self._rows_of(self.tables[modality])
        if self.scales is None:
            return x_ND
        mean, divisor = self.scales[modality]
        return ((x_ND - mean) / divisor).float()

    def _rows_of(self, table: Tensor) -> Tensor:
        if self.rows is None:
            return table
        first = self._first_of_span
        return table.index_select(0, self.rows) if first is None else table[first : first + len(self.rows)]

    @cached_property
    def _first_of_span(self) -> int | None:
        """The first row where they follow each other in the tables, so that nothing need be copied; None elsewhere."""
        if self.rows is None or not self.rows.is_cpu or not len(self.rows):
            return None
        first = int(self.rows[0])
        return first if self.rows.equal(torch.arange(first, first + len(self.rows))) else None

    def __iter__(self) -> Iterator[str]:
        return iter(self.tables)

    def __len__(self) -> int:
        return len(self.tables)


@dataclass(frozen=True)
class Conversations:
    """A corpus (or a part of one): what a feature store or the synthetic generator yields.

    Attributes:
        features: modality → (N, D_m) float32 features, one row per utterance, dialogue after dialogue; parts of a
            corpus share its tables (:class:`Features`).
        speakers: (N,) int64, index of the speaker inside its dialogue, in order of first appearance unless the
            source fixes another.
        labels: (N,) int64 ids into ``label_names``.
        lengths: utterances per dialogue, B entries.
        dialogue_ids: B names.
        utterance_ids: N names.
        splits: B entries of :data:`SPLITS`, as the source assigns them.
        label_names: the classes, in id order.
    """

    features: Mapping[str, Tensor]
    speakers: Tensor
    labels: Tensor
    lengths: tuple[int, ...]
    dialogue_ids: tuple[str, ...]
    utterance_ids: tuple[str, ...]
    splits: tuple[str, ...]
    label_names: tuple[str, ...]

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """First row of each dialogue, and the number of rows at the end: B+1 entries."""
        return (0, *accumulate(self.lengths))

    @property
    def dims(self) -> dict[str, int]:
        """modality → feature dimension D_m."""
        return Features.of(self.features).dims

    def rows(self, dialogues: Sequence[int]) -> Tensor:
        """(N',) int64 row indices of the given dialogues, in the given order."""
        spans = [torch.arange(self.offsets[i], self.offsets[i + 1]) for i in dialogues]
        return torch.cat(spans) if spans else torch.empty(0, dtype=torch.int64)

    def to(self, device: torch.device) -> "Conversations":
        """The same conversations, whose batches are made on a device."""
        return replace(
            self,
            features=Features.of(self.features).to(device),
            speakers=self.speakers.to(device),
            labels=self.labels.to(device),
        )

    def batch(self, dialogues: Sequence[int]) -> ConversationBatch:
        """The given dialogues as one batch, on the device on which the conversations are."""
        rows = self.rows(dialogues).to(self.labels.device, non_blocking=True)
        return ConversationBatch(
            features=dict(Features.of(self.features).select(rows)),
            speakers=self.speakers[rows],
            labels=self.labels[rows],
            lengths=tuple(self.lengths[i] for i in dialogues),
        )

    def select(self, dialogues: Sequence[int]) -> "Conversations":
        """The given dialogues as a corpus of their own; the features are not copied."""
        rows = self.rows(dialogues)
        return replace(
            self,
            features=Features.of(self.features).select(rows),
            speakers=self.speakers[rows],
            labels=self.labels[rows],
            lengths=tuple(self.lengths[i] for i in dialogues),
            dialogue_ids=tuple(self.dialogue_ids[i] for i in dialogues),
            utterance_ids=tuple(self.utterance_ids[i] for i in rows.tolist()),
            splits=tuple(self.splits[i] for i in dialogues),
        )
