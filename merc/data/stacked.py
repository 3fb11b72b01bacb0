"""Batches of several seeds side by side, filled up to one size, for :func:`torch.func.vmap`.

S is the number of batches. Behind the utterances of a shorter batch come rows that stand for nothing, in dialogues of
their own (:meth:`ConversationBatch.with_filler`), and nobody counts them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from merc.data.cached import cached_property
from merc.data.conversation import ConversationBatch

DIALOGUES = 4
"""Steps in which frames of several sizes hold more dialogues."""


@dataclass(frozen=True)
class FramedBatch(ConversationBatch):
    """One batch of several, as vmap shows it: what follows from ``lengths`` elsewhere comes from a tensor, ``frame``.

    Attributes:
        lengths: empty, since the batches differ in them.
        frame: (B, L) bool, True where the padded layout holds a row; dialogues may be empty.
        real: (N,) bool, False in rows of filler.
    """

    frame: Tensor = field(kw_only=True)
    real: Tensor = field(kw_only=True)

    @property
    def rows(self) -> int:
        return self.labels.shape[0]

    @property
    def count(self) -> int:
        return self.frame.shape[0]

    @property
    def longest(self) -> int:
        return self.frame.shape[1]

    @cached_property
    def sizes(self) -> Tensor:
        return self.frame.sum(1)

    @cached_property
    def starts(self) -> Tensor:
        return self.sizes.cumsum(0) - self.sizes

    @cached_property
    def dialogues(self) -> Tensor:
        # As many dialogues end before a row as its own has predecessors.
        rows = torch.arange(self.rows, device=self.device)
        return (rows[:, None] >= self.sizes.cumsum(0)).sum(1)

    @cached_property
    def occupied(self) -> Tensor:
        return self.frame

    @property
    def counted(self) -> Tensor:
        return self.real


@dataclass(frozen=True)
class StackedBatches:
    """S batches of one size.

    Attributes:
        fields: arguments of :class:`FramedBatch`, tensors with S as their first dimension.
    """

    fields: dict[str, Any]

    @property
    def real(self) -> Tensor:
        """(S, N) bool, False in rows of filler."""
        real: Tensor = self.fields["real"]
        return real


@dataclass(frozen=True)
class Frame:
    """A size that batches are filled up to.

    Attributes:
        rows: N.
        longest: L.
        count: B.
    """

    rows: int
    longest: int
    count: int

    @classmethod
    def around(cls, batches: Sequence[ConversationBatch]) -> "Frame":
        """What holds these batches."""
        rows, longest = max(batch.rows for batch in batches), max(batch.longest for batch in batches)
        return cls(rows, longest, max(batch.count + _dialogues(rows - batch.rows, longest) for batch in batches))

    @classmethod
    def of_any(cls, lengths: Sequence[Sequence[int]], batch_size: int) -> "Frame":
        """What holds every batch of so many dialogues of one seed, or fewer, whatever their order.

        Args:
            lengths: rows of each dialogue that a seed has, of all seeds.
            batch_size: most dialogues of a batch.
        """
        ascending = [sorted(own) for own in lengths]
        rows, longest = max(sum(own[-batch_size:]) for own in ascending), max(own[-1] for own in ascending)
        # With a dialogue more there is at most one dialogue of filler less, so full batches have the most.
        counts = (len(own[:batch_size]) + _dialogues(rows - sum(own[:batch_size]), longest) for own in ascending)
        return cls(rows, longest, max(counts))

    def fitting(self, batches: Sequence[ConversationBatch], sizes: int) -> "Frame":
        """The smallest that holds these batches, of frames with fewer rows in so many equal steps.

        Their dialogues come by :data:`DIALOGUES`, so there are few more frames than steps.
        """
        if sizes == 1:
            return self
        step = -(-self.rows // sizes)
        rows = min(self.rows, -(-max(batch.rows for batch in batches) // step) * step)
        needed = max(batch.count + _dialogues(rows - batch.rows, self.longest) for batch in batches)
        return replace(self, rows=rows, count=min(self.count, -(-needed // DIALOGUES) * DIALOGUES))


def _dialogues(rows: int, longest: int) -> int:
    """How many dialogues so many rows of filler make."""
    return -(-rows // longest)


def stack_batches(batches: Sequence[ConversationBatch], frame: Frame | None = None) -> StackedBatches:
    """Fill up some batches to one size and put them side by side.

    Args:
        batches: one of each seed.
        frame: the size; None: as small as can be.
    """
    frame, device = frame or Frame.around(batches), batches[0].device
    rows, longest, count = frame.rows, frame.longest, frame.count
    filled = [batch.with_filler(rows - batch.rows, longest) for batch in batches]
    sizes = [[*batch.lengths, *[0] * (count - batch.count)] for batch in filled]
    sizes_SB = torch.tensor(sizes).to(device, non_blocking=True)
    real_S = torch.tensor([batch.rows for batch in batches]).to(device, non_blocking=True)
    fields = {
        "features": {m: torch.stack([batch.features[m] for batch in filled]) for m in batches[0].features},
        "speakers": torch.stack([batch.speakers for batch in filled]),
        "labels": torch.stack([batch.labels for batch in filled]),
        "frame": torch.arange(longest, device=device) < sizes_SB[..., None],
        "real": torch.arange(rows, device=device) < real_S[:, None],
    }
    return StackedBatches(fields)


def stack_rows(tables: Sequence[Tensor], rows: int) -> Tensor:
    """S tables of at most N rows, filled up with zeros → (S, N, ...)."""
    return torch.stack([F.pad(table, [0, 0] * (table.ndim - 1) + [0, rows - len(table)]) for table in tables])
