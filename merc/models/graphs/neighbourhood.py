"""Windows over packed rows: the structure that every graph layer computes on.

An utterance is connected to utterances of its own dialogue at most ``past`` before and ``future`` after it. Packed rows
are cut into G blocks of S; the candidates of a block are the K = past + S + future rows around it. Everything a graph
layer needs is then a (G, S, K) band, whose size grows with N·window, not with the square of the dialogue's length.
"""

from dataclasses import dataclass
from enum import IntEnum

import torch
import torch.nn.functional as F
from torch import Tensor

from merc.data.cached import cached_property
from merc.data.conversation import ConversationBatch


class Relation(IntEnum):
    """How the source utterance (column) relates to the receiving one (row) (AMB-DSGDN Eq. 7-8)."""

    NONE = 0
    SELF = 1
    INTRA_PAST = 2
    INTRA_FUTURE = 3
    INTER_FUTURE = 4
    INTER_PAST = 5


SUBGRAPHS = ("inter_speaker", "intra_speaker")


@dataclass(frozen=True)
class Neighbourhood:
    """The windows of a batch.

    Attributes:
        rows: N, utterances of the batch.
        past: rows before a block among its candidates.
        future: rows after it.
        size: S, rows per block.
    """

    rows: int
    past: int
    future: int
    size: int

    @classmethod
    def of(cls, batch: ConversationBatch, past: int, future: int) -> "Neighbourhood":
        """The neighbourhood of a batch, without a future if it is causal; windows beyond all dialogues cost nothing."""
        furthest = batch.longest - 1
        past, future = min(past, furthest), 0 if batch.causal else min(future, furthest)
        return cls(batch.rows, past, future, size=max(8, (past + future) // 2))

    @property
    def count(self) -> int:
        """G, the number of blocks."""
        return -(-self.rows // self.size)

    @property
    def width(self) -> int:
        """K, the number of candidates of a block."""
        return self.past + self.size + self.future

    def distance(self, device: torch.device) -> Tensor:
        """(S, K) int64: the position of each candidate minus that of the receiving row."""
        return torch.arange(self.width, device=device) - self.past - torch.arange(self.size, device=device)[:, None]

    def blocks(self, x: Tensor, fill: float = 0) -> Tensor:
        """(N, ...) rows → (G, S, ...), the rows behind the last one being ``fill``."""
        tail = self.count * self.size - self.rows
        padding = [0, 0] * (x.ndim - 1) + [0, tail]
        return F.pad(x, padding, value=fill).unflatten(0, (self.count, self.size))

    def windows(self, x: Tensor, fill: float = 0) -> Tensor:
        """(N, ...) rows → (G, K, ...), an overlapping view of the candidates of each block."""
        tail = self.count * self.size - self.rows
        padding = [0, 0] * (x.ndim - 1) + [self.past, tail + self.future]
        return F.pad(x, padding, value=fill).unfold(0, self.width, self.size).movedim(-1, 1)

    def unblock(self, x: Tensor) -> Tensor:
        """(G, S, ...) → (N, ...), the inverse of :meth:`blocks`."""
        return x.flatten(0, 1)[: self.rows]


@dataclass(frozen=True)
class RelationGraph:
    """One relation graph over a neighbourhood.

    Attributes:
        batch: the dialogues.
        neighbourhood: the windows.
        connected: (G, S, K) bool, where there is an edge. Rows of padding have none; every utterance has that to
            itself, unless there are no self-loops.
        kinds: the :class:`Relation` of an edge from an earlier utterance, the same and a later one.
        self_loops: whether utterances have edges to themselves.
    """

    batch: ConversationBatch
    neighbourhood: Neighbourhood
    connected: Tensor
    kinds: tuple[Relation, Relation, Relation]
    self_loops: bool = True

    @property
    def has_isolated_rows(self) -> bool:
        """Whether there may be rows without any edge."""
        return not self.self_loops or self.batch.present is not None

    @cached_property
    def absent(self) -> Tensor:
        """(G, S, K) float: what to add to the score of a candidate, a huge negative number where there is no edge."""
        # Half of the smallest number, so that the sum with a score remains finite.
        return torch.zeros(self.connected.shape, device=self.connected.device).masked_fill(
            ~self.connected, torch.finfo(torch.float32).min / 2
        )

    @cached_property
    def relation(self) -> Tensor:
        """(S, K) int64 :class:`Relation` of the candidates of each row, those to which there is an edge."""
        earlier, same, later = (int(kind) for kind in self.kinds)
        distance = self.neighbourhood.distance(self.connected.device)
        return torch.full_like(distance, same).masked_fill_(distance < 0, earlier).masked_fill_(distance > 0, later)

    @cached_property
    def relation_is(self) -> Tensor:
        """(R, S·K) float: 1 where :attr:`relation` is that of the first index."""
        kinds_R = torch.arange(len(Relation), device=self.connected.device)
        return (self.relation.flatten() == kinds_R[:, None]).float()

    @property
    def relations(self) -> Tensor:
        """(G, S, K) int64 :class:`Relation` of every candidate to its receiving row; NONE where there is no edge."""
        return self.relation.where(self.connected, int(Relation.NONE))

    def dense(self) -> Tensor:
        """(B, L, L) int64 adjacency in the padded layout of the literature; for inspection and tests."""
        batch, hood = self.batch, self.neighbourhood
        candidates = hood.windows(torch.arange(hood.rows, device=batch.device), fill=-1)
        block, row, column = self.connected.nonzero(as_tuple=True)
        receiving, source = block * hood.size + row, candidates[block, column]
        adjacency = torch.zeros(batch.count, batch.longest, batch.longest, dtype=torch.int64, device=batch.device)
        index = (batch.dialogues[receiving], batch.positions[receiving], batch.positions[source])
        return adjacency.index_put(index, self.relations[block, row, column])


def window_mask(batch: ConversationBatch, hood: Neighbourhood) -> Tensor:
    """(G, S, K) bool: utterances of the receiving row's dialogue inside its window, itself included."""
    distance = hood.distance(batch.device)
    near = (distance >= -hood.past) & (distance <= hood.future)
    return _equal(batch, hood, batch.dialogues) & near


def _equal(batch: ConversationBatch, hood: Neighbourhood, x_N: Tensor) -> Tensor:
    """(G, S, K) bool: where receiving row and candidate are utterances with the same value."""
    receivers, sources = x_N, x_N
    if batch.present is not None:
        receivers, sources = x_N.where(batch.present, -1), x_N.where(batch.present, -2)
    return hood.blocks(receivers, fill=-1)[:, :, None] == hood.windows(sources, fill=-2)[:, None, :]


def relation_graphs(
    batch: ConversationBatch, past: int, future: int, self_loops: bool = True
) -> dict[str, RelationGraph]:
    """The inter- and the intra-speaker graph of a batch (AMB-DSGDN Eq. 7-8).

    Args:
        batch: the dialogues.
        past: an utterance receives from at most this many utterances before it.
        future: and after it, unless the batch is causal.
        self_loops: and from itself.
    """
    hood = Neighbourhood.of(batch, past, future)
    inside = window_mask(batch, hood)
    same_speaker = _equal(batch, hood, batch.speakers)
    itself = hood.distance(batch.device) == 0

    def graph(edges: Tensor, before: Relation, after: Relation) -> RelationGraph:
        connected = (edges & ~itself) | (inside & itself & self_loops)
        return RelationGraph(batch, hood, connected, (before, Relation.SELF, after), self_loops)

    return {
        "inter_speaker": graph(inside & ~same_speaker, Relation.INTER_PAST, Relation.INTER_FUTURE),
        "intra_speaker": graph(inside & same_speaker, Relation.INTRA_PAST, Relation.INTRA_FUTURE),
    }
