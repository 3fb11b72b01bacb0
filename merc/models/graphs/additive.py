"""Graph attention with additive scores, as one operation."""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from merc.kernels import drops, native
from merc.models.graphs.banded import SLOPE, attention_band, ends, receive
from merc.models.graphs.neighbourhood import RelationGraph
from merc.models.linear import Engine, engine_of
from merc.models.precision import at_least_single


@dataclass(frozen=True)
class Scores:
    """What makes the additive scores of M maps.

    Attributes:
        vectors: (M, 2·C + V): of every map what the receiving end, the source end and the relation are multiplied with.
        tables: (T, R, V), a vector for each kind of relation; map m reads table m·T/M. None: relations do not matter,
            and V = 0.
    """

    vectors: Tensor
    tables: Tensor | None = None

    @property
    def of_ends(self) -> Tensor:
        """(M, 2, C)."""
        return self._split()[0].unflatten(1, (2, -1))

    @property
    def of_relations(self) -> Tensor:
        """(M, V)."""
        return self._split()[1]

    def relations(self) -> Tensor | None:
        """(M, R) score of an edge of each kind of relation."""
        if self.tables is None:
            return None
        tables_MRV = self.tables.repeat_interleave(len(self.vectors) // len(self.tables), 0)
        return (tables_MRV @ self.of_relations[..., None]).squeeze(-1)

    def _split(self) -> tuple[Tensor, ...]:
        width = 0 if self.tables is None else self.tables.shape[2]
        return self.vectors.split([self.vectors.shape[1] - width, width], dim=1)


def attend_neighbours(
    x_NI: Tensor,
    weight_HID: Tensor,
    scores: Scores,
    coefficients_H: Tensor | None,
    graph: RelationGraph,
    dropout: float,
) -> Tensor:
    """Every head's sum of the sources' mapped rows, weighted by :func:`attention_band`: Σ_j A_ij W_h x_j, (N, H·D).

    Args:
        x_NI: rows, and
        weight_HID: W of each head, both as :func:`merc.models.linear.ready_to_multiply` returns them.
        scores: of M maps, which share out the channels of W x: C = H·D/M.
        coefficients_H: see :func:`attention_band`.
        graph: where there are edges; a row of padding receives the mean of its dialogue, see :func:`receive`.
        dropout: see :func:`attention_band`.
    """
    inputs = (x_NI, weight_HID, scores.vectors, scores.tables, coefficients_H)
    if native(*inputs):
        singles = (x if x is None else at_least_single(x) for x in inputs[2:])
        batch, hood = graph.batch, graph.neighbourhood
        edges = (graph.connected, hood.past, [int(kind) for kind in graph.kinds], SLOPE, *drops(dropout))
        rest = (*edges, batch.present, batch.longest, engine_of(x_NI, weight_HID[0]) is Engine.MERC)
        return cast(Tensor, torch.ops.merc.attend_neighbours(*inputs[:2], *singles, *rest))
    heads, in_dim, out_dim = weight_HID.shape
    map_first = heads == 1 and in_dim > out_dim  # of two orders the one that moves the narrower rows
    if map_first:
        values = x_NI @ weight_HID[0]
        ends_NM2 = ends(values[:, None], scores.of_ends)
    else:  # ⟨a, W x⟩ = ⟨Wᵀ a, x⟩: rows of all heads are made only where they are summed
        values = x_NI
        vectors_IM2 = ends(weight_HID.transpose(0, 1), scores.of_ends)
        ends_NM2 = torch.einsum("ni,ime->nme", x_NI, vectors_IM2.to(x_NI.dtype))
    received = receive(attention_band(ends_NM2, scores.relations(), coefficients_H, graph, dropout), values, graph)
    return (received if map_first else torch.einsum("nhi,hid->nhd", received, weight_HID)).flatten(1)
