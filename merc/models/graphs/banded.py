"""The operations that graph attention spends its time in, each with a backward pass of its own.

They compute on the (G, S, K) bands of a :class:`merc.models.graphs.neighbourhood.Neighbourhood`: G blocks of S
receiving rows with K candidates each. H heads share the rows; M maps of attention make the heads, two per head where
the maps are subtracted. What BLAS can read where it lies is not copied.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from merc.models.dropout import apply_mask, draw_mask, keep_scale
from merc.models.graphs.neighbourhood import Neighbourhood, RelationGraph
from merc.models.linear import multiply
from merc.models.plain import plain_form
from merc.models.precision import at_least_single

SLOPE = 0.2


def ends(z_LHD: Tensor, vectors_M2C: Tensor) -> tuple[Tensor, Tensor]:
    """What rows contribute to scores as receiving and as source end: two inner products per map.

    Args:
        z_LHD: rows of H heads, whose H·D channels the M maps share out, C = H·D/M for each.
        vectors_M2C: what to multiply them with.

    Returns:
        (L, M, 2), and z_LHD itself. Whatever else is computed from the rows should take these: the gradient from there
        is then added to, not copied and summed. It must be nobody else's.
    """
    vectors_M2C = vectors_M2C.to(z_LHD.dtype)
    if plain_form():
        parts_LMC = z_LHD.flatten(1).unflatten(1, vectors_M2C.shape[::2])
        return torch.einsum("lmc,mec->lme", parts_LMC, vectors_M2C), z_LHD
    ends_LM2, z_LHD = _Ends.apply(z_LHD, vectors_M2C)  # type: ignore[no-untyped-call]
    return ends_LM2, z_LHD


class _Ends(Function):
    @staticmethod
    def forward(ctx: Any, z_LHD: Tensor, vectors_M2C: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(z_LHD, vectors_M2C)
        # The few vectors on the left: products with a matrix of two columns are slow.
        parts = zip(vectors_M2C, _parts(z_LHD, vectors_M2C), strict=True)
        return torch.stack([vectors_2C @ z_LC.T for vectors_2C, z_LC in parts]).permute(2, 0, 1), z_LHD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_ends_LM2: Tensor, of_z_LHD: Tensor) -> tuple[Tensor, Tensor]:
        z_LHD, vectors_M2C = ctx.saved_tensors
        of_ends_M2L = of_ends_LM2.permute(1, 2, 0).to(z_LHD.dtype).contiguous()
        parts = zip(of_ends_M2L, _parts(z_LHD, vectors_M2C), strict=True)
        of_vectors_M2C = torch.stack([of_ends_2L @ z_LC for of_ends_2L, z_LC in parts])
        split = (len(vectors_M2C) // z_LHD.shape[1], vectors_M2C.shape[2])
        of_parts_LHPC = of_z_LHD.unflatten(2, split)
        for of_end_ML, vectors_MC in zip(of_ends_M2L.unbind(1), vectors_M2C.unbind(1), strict=True):
            of_end_LHP1 = of_end_ML.T.unflatten(1, (-1, split[0]))[..., None]
            of_parts_LHPC.addcmul_(of_end_LHP1, vectors_MC.unflatten(0, (-1, split[0])))
        return of_z_LHD, of_vectors_M2C


def _parts(z_LHD: Tensor, vectors_M2C: Tensor) -> tuple[Tensor, ...]:
    """Views (L, C) of each map's channels."""
    return tuple(part_LC for head_LD in z_LHD.unbind(1) for part_LC in head_LD.split(vectors_M2C.shape[2], dim=1))


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
        (G, S, H, K), 0 where there is no edge.
    """
    relation_MR, coefficients_H = (x if x is None else at_least_single(x) for x in (relation_MR, coefficients_H))
    inputs = (at_least_single(ends_NM2), relation_MR, coefficients_H)
    if plain_form():
        return _plain_attention_band(*inputs, graph, dropout)
    return cast(Tensor, _AttentionBand.apply(*inputs, graph, dropout))  # type: ignore[no-untyped-call]


def _plain_attention_band(
    ends_NM2: Tensor, relation_MR: Tensor | None, coefficients_H: Tensor | None, graph: RelationGraph, dropout: float
) -> Tensor:
    maps = (_scores(ends_NM2, relation_MR, graph) + graph.absent[:, :, None]).softmax(-1)
    if graph.has_isolated_rows:
        maps = maps * graph.connected[:, :, None]
    attention = maps if coefficients_H is None else _difference(maps, coefficients_H)
    return F.dropout(attention, dropout) if dropout else attention


def _scores(ends_NM2: Tensor, relation_MR: Tensor | None, graph: RelationGraph) -> Tensor:
    """(G, S, M, K) additive scores of all candidates."""
    hood = graph.neighbourhood
    left_GSM, right_GKM = hood.blocks(ends_NM2[..., 0]), hood.windows(ends_NM2[..., 1])
    scores = left_GSM[..., None] + right_GKM.transpose(1, 2).contiguous()[:, None]
    if relation_MR is not None:
        scores += relation_MR[:, graph.relation].transpose(0, 1)
    return F.leaky_relu(scores, SLOPE, inplace=True)


class _AttentionBand(Function):
    """Keeps no scores: few operators make them again."""

    @staticmethod
    def forward(
        ctx: Any,
        ends_NM2: Tensor,
        relation_MR: Tensor | None,
        coefficients_H: Tensor | None,
        graph: RelationGraph,
        dropout: float,
    ) -> Tensor:
        maps = _scores(ends_NM2, relation_MR, graph).add_(graph.absent[:, :, None]).softmax(-1)
        if graph.has_isolated_rows:  # only there does the softmax leave anything where there is no edge
            maps *= graph.connected[:, :, None]
        attention = maps if coefficients_H is None else _difference(maps, coefficients_H)
        mask = draw_mask(attention, dropout)
        ctx.graph, ctx.scale = graph, keep_scale(dropout)
        ctx.save_for_backward(ends_NM2, maps, mask, relation_MR, coefficients_H)
        return apply_mask(attention, mask, ctx.scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        ends_NM2, maps, mask, relation_MR, coefficients_H = ctx.saved_tensors
        hood: Neighbourhood = ctx.graph.neighbourhood
        gradient = apply_mask(gradient, mask, ctx.scale)
        of_coefficients = None
        if coefficients_H is not None:
            of_coefficients = -(gradient * maps[:, :, 1::2]).sum((0, 1, 3))
            gradient = torch.stack([gradient, gradient * -coefficients_H[:, None]], dim=3).flatten(2, 3)
        gradient = torch._softmax_backward_data(gradient, maps, -1, maps.dtype)
        gradient = torch.ops.aten.leaky_relu_backward(gradient, _scores(ends_NM2, relation_MR, ctx.graph), SLOPE, True)
        left_NM = hood.unblock(gradient.sum(-1))
        right_NM = hood.fold(gradient.sum(1).transpose(1, 2))
        of_relation = None
        if relation_MR is not None:
            per_offset_MSK = gradient.sum(0).transpose(0, 1)
            of_relation = torch.zeros_like(relation_MR).index_add_(
                1, ctx.graph.relation.flatten(), per_offset_MSK.flatten(1)
            )
        return torch.stack([left_NM, right_NM], dim=-1), of_relation, of_coefficients, None, None


def _difference(maps: Tensor, coefficients_H: Tensor) -> Tensor:
    """(G, S, 2H, K) maps → (G, S, H, K): the first of each pair minus λ times the second."""
    return torch.addcmul(maps[:, :, 0::2], maps[:, :, 1::2], coefficients_H[:, None], value=-1)


def mix(attention: Tensor, values_ND: Tensor, hood: Neighbourhood) -> Tensor:
    """Sum of the sources' values: (G, S, H, K) attention and (N, D) values, the same for all heads → (N, H, D)."""
    if plain_form():
        weights = attention.to(values_ND.dtype)
        return hood.unblock(torch.einsum("gshk,gkd->gshd", weights, hood.windows(values_ND)))
    return cast(Tensor, _Mix.apply(attention.to(values_ND.dtype), values_ND, hood))  # type: ignore[no-untyped-call]


class _Mix(Function):
    """One product per block, which reads its window out of the rows where they lie."""

    @staticmethod
    def forward(ctx: Any, attention: Tensor, values_ND: Tensor, hood: Neighbourhood) -> Tensor:
        ctx.hood = hood
        heads = attention.shape[2]
        out_NHD = values_ND.new_empty(hood.rows, heads, values_ND.shape[1])
        windows_GKD = hood.windows(values_ND)
        ctx.save_for_backward(attention, values_ND)  # not the windows, which are a copy
        for blocks, rows, size in hood.spans():
            weights = attention[blocks, :size].flatten(1, 2)
            torch.bmm(weights, windows_GKD[blocks], out=out_NHD[rows].view(-1, size * heads, values_ND.shape[1]))
        return out_NHD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_NHD: Tensor) -> tuple[Tensor, Tensor, None]:
        attention, values_ND = ctx.saved_tensors
        hood: Neighbourhood = ctx.hood
        windows_GKD = hood.windows(values_ND)
        heads, dim = attention.shape[2], windows_GKD.shape[2]
        of_attention = torch.zeros_like(attention)
        of_windows_GKD = windows_GKD.new_empty(windows_GKD.shape)
        gradient_NHD = gradient_NHD.contiguous()
        for blocks, rows, size in hood.spans():
            incoming = gradient_NHD[rows].view(-1, size * heads, dim)
            weights = attention[blocks, :size].flatten(1, 2)
            torch.bmm(weights.transpose(1, 2), incoming, out=of_windows_GKD[blocks])
            # The windows, which overlap, on the left: on the right some kernels would copy them.
            of_weights_GKM = torch.bmm(windows_GKD[blocks], incoming.transpose(1, 2))
            of_attention[blocks, :size] = of_weights_GKM.transpose(1, 2).unflatten(1, (size, heads))
        return of_attention, hood.fold(of_windows_GKD), None


def receive(attention: Tensor, values_ND: Tensor, graph: RelationGraph) -> Tensor:
    """Sum of the sources' values: (G, S, H, K) attention and (N, D) values → (N, H, D).

    A row of padding has no edge; a softmax over none is uniform, so it receives the mean of its dialogue's rows.
    """
    sums_NHD = mix(attention, values_ND, graph.neighbourhood)
    batch = graph.batch
    if batch.present is None:
        return sums_NHD
    means_ND = batch.pad(values_ND).mean(1)[batch.dialogues]
    return torch.where(batch.present[:, None, None], sums_NHD, means_ND[:, None])


def receive_mapped(attention: Tensor, values_NI: Tensor, weight_HID: Tensor, graph: RelationGraph) -> Tensor:
    """What each head receives, through its own linear map: (N, H, D)."""
    if plain_form():
        return torch.einsum("nhi,hid->nhd", receive(attention, values_NI, graph), weight_HID)
    return cast(Tensor, _ReceiveMapped.apply(attention, values_NI, weight_HID, graph))  # type: ignore[no-untyped-call]


class _ReceiveMapped(Function):
    """Keeps no sums, the largest rows of a model: H of width I per utterance. They are computed again."""

    @staticmethod
    def forward(ctx: Any, attention: Tensor, values_NI: Tensor, weight_HID: Tensor, graph: RelationGraph) -> Tensor:
        ctx.graph = graph
        ctx.save_for_backward(attention, values_NI, weight_HID)
        sums_NHI = receive(attention, values_NI, graph)
        out_NHD = sums_NHI.new_empty(len(values_NI), weight_HID.shape[0], weight_HID.shape[2])
        for sums_NI, weight_ID, out_ND in zip(sums_NHI.unbind(1), weight_HID, out_NHD.unbind(1), strict=True):
            multiply(sums_NI, weight_ID, out_ND)
        return out_NHD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_out_NHD: Tensor) -> tuple[Tensor | None, ...]:
        attention, values_NI, weight_HID = ctx.saved_tensors
        inputs = (attention.detach().requires_grad_(), values_NI.detach().requires_grad_())
        with torch.enable_grad():
            sums_NHI = receive(*inputs, ctx.graph)
        of_sums_NHI, of_weight_HID = torch.empty_like(sums_NHI), weight_HID.new_empty(weight_HID.shape)
        for head, of_out_ND in enumerate(of_out_NHD.unbind(1)):
            multiply(of_out_ND, weight_HID[head].T, of_sums_NHI[:, head])
            multiply(sums_NHI.detach()[:, head].T, of_out_ND, of_weight_HID[head])
        of_attention, of_values_NI = torch.autograd.grad(sums_NHI, inputs, of_sums_NHI)
        return of_attention, of_values_NI, of_weight_HID, None
