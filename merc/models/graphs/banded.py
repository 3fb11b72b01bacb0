"""The operations that graph attention spends its time in.

They compute on the (G, S, K) bands of a :class:`merc.models.graphs.neighbourhood.Neighbourhood`: G blocks of S
receiving rows with K candidates each. H heads share the rows; M maps of attention make the heads, two per head where
the maps are subtracted.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from merc.kernels import native
from merc.models.graphs.neighbourhood import Neighbourhood, RelationGraph
from merc.models.precision import at_least_single

SLOPE = 0.2


def ends(z_LHD: Tensor, vectors_M2C: Tensor) -> Tensor:
    """What rows contribute to scores as receiving and as source end, (L, M, 2): two inner products per map.

    Args:
        z_LHD: rows of H heads, whose H·D channels the M maps share out, C = H·D/M for each.
        vectors_M2C: what to multiply them with.
    """
    if native(z_LHD, vectors_M2C):
        return cast(Tensor, torch.ops.merc.ends(z_LHD, at_least_single(vectors_M2C)))
    parts_LMC = z_LHD.flatten(1).unflatten(1, vectors_M2C.shape[::2])
    return torch.einsum("lmc,mec->lme", parts_LMC, vectors_M2C.to(z_LHD.dtype))


def attention_band(
    ends_NM2: Tensor, relation_MR: Tensor | None, coefficients_H: Tensor | None, graph: RelationGraph, dropout: float
) -> Tensor:
    """Attention from additive scores, A = dropout(P) or, with coefficients, dropout(P_1 − λ·P_2).

    P = softmax over the sources j of LeakyReLU(left_i + right_j + score of the relation of i and j).

    Args:
        ends_NM2: what each row contributes to the score of an edge as its receiving and as its source end.
        relation_MR: score of an edge of each kind of relation; None: all 0.
        coefficients_H: λ; maps 2h and 2h+1 make head h. None: every map is a head.
        graph: where there are edges.
        dropout: probability with which an entry of A is dropped.

    Returns:
        (G, S, H, K), 0 where there is no edge; what is behind the last row means nothing.
    """
    maps = (_scores(at_least_single(ends_NM2), relation_MR, graph) + graph.absent[:, :, None]).softmax(-1)
    if graph.has_isolated_rows:  # only there does the softmax leave anything where there is no edge
        maps = maps * graph.connected[:, :, None]
    attention = maps if coefficients_H is None else _difference(maps, coefficients_H)
    return F.dropout(attention, dropout) if dropout else attention


def _scores(ends_NM2: Tensor, relation_MR: Tensor | None, graph: RelationGraph) -> Tensor:
    """(G, S, M, K) additive scores of all candidates."""
    hood = graph.neighbourhood
    left_GSM, right_GKM = hood.blocks(ends_NM2[..., 0]), hood.windows(ends_NM2[..., 1])
    scores = left_GSM[..., None] + right_GKM.transpose(1, 2).contiguous()[:, None]
    if relation_MR is not None:
        # A product with zeros and ones: a GPU adds up the gradient of an index entry by entry.
        scores += (relation_MR @ graph.relation_is.to(relation_MR.dtype)).unflatten(1, (hood.size, -1)).transpose(0, 1)
    return F.leaky_relu(scores, SLOPE, inplace=True)


def _difference(maps: Tensor, coefficients_H: Tensor) -> Tensor:
    """(G, S, 2H, K) maps → (G, S, H, K): the first of each pair minus λ times the second."""
    return torch.addcmul(maps[:, :, 0::2], maps[:, :, 1::2], coefficients_H[:, None], value=-1)


def mix(attention: Tensor, values_ND: Tensor, hood: Neighbourhood) -> Tensor:
    """Sum of the sources' values: (G, S, H, K) attention and (N, D) values, the same for all heads → (N, H, D).

    The attention to candidates of a block that are not in a row's own window is 0.
    """
    if native(attention, values_ND):
        return cast(Tensor, torch.ops.merc.mix(at_least_single(attention), values_ND, hood.past))
    weights = attention.to(values_ND.dtype)
    return hood.unblock(torch.einsum("gshk,gkd->gshd", weights, hood.windows(values_ND)))


def receive(attention: Tensor, values_ND: Tensor, graph: RelationGraph) -> Tensor:
    """Sum of the sources' values, those of :func:`mix`: (N, H, D).

    A row of padding has no edges; it receives the mean of its dialogue, since a softmax over nothing is uniform.
    """
    batch, sums_NHD = graph.batch, mix(attention, values_ND, graph.neighbourhood)
    if batch.present is None:
        return sums_NHD
    means_ND = batch.pad(values_ND).mean(1)[batch.dialogues]
    return torch.where(batch.present[:, None, None], sums_NHD, means_ND[:, None])
