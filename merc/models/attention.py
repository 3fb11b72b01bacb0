"""Attention among the utterances of each dialogue, on packed rows.

It goes through the batch in tiles of dialogues of similar length (:attr:`ConversationBatch.tiles`), a long one in
pieces of :data:`PIECE` receiving utterances. No map is kept: the backward pass computes them again, so that memory
grows with the rows of a batch, not with the square of a dialogue's length.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from merc.data.conversation import TILE, ConversationBatch
from merc.models.dropout import Masks, apply_mask, keep_scale
from merc.models.precision import at_least_single, lower_precision

PIECE = 64
"""Receiving utterances that are treated at a time in dialogues with more pairs than a tile."""


def attend(
    query_NMQ: Tensor,
    key_NMQ: Tensor,
    value_NHV: Tensor,
    batch: ConversationBatch,
    dropout: float,
    *,
    difference: bool = False,
    to_padding: bool = False,
    window: int | None = None,
) -> Tensor:
    """Scaled dot-product attention, dropout(softmax(q kᵀ)) v, among the utterances of each dialogue.

    Args:
        query_NMQ: queries of M maps, already scaled.
        key_NMQ: keys.
        value_NHV: values of H heads.
        batch: the dialogues; if causal, no utterance receives from a later one.
        dropout: probability with which an entry of a head's attention is dropped.
        difference: a head is the difference of two maps, M = 2H: maps 2h minus 2h+1. Otherwise M = H.
        to_padding: rows of padding, if there are any, are attended to as well.
        window: utterances before and after that are attended to; None: the whole dialogue.

    Returns:
        (N, H, V).
    """
    query_NMQ, key_NMQ, value_NHV = lower_precision(query_NMQ, key_NMQ, value_NHV)
    layout = _Layout(batch, None if to_padding else batch.present, window)
    return cast(Tensor, _Attend.apply(query_NMQ, key_NMQ, value_NHV, layout, dropout, difference))  # type: ignore[no-untyped-call]


def attention_weights(
    query_NMQ: Tensor,
    key_NMQ: Tensor,
    batch: ConversationBatch,
    *,
    difference: bool = False,
    window: int | None = None,
) -> Tensor:
    """The attention of :func:`attend` itself, for inspection: what each receives where row j's value is unit vector j.

    Args: as those of :func:`attend`.

    Returns:
        (N, H, N), the receiving rows first; 0 between dialogues.
    """
    rows, maps = query_NMQ.shape[:2]
    units_NN = torch.eye(rows, dtype=query_NMQ.dtype, device=query_NMQ.device)
    values_NHN = units_NN[:, None].expand(-1, maps // 2 if difference else maps, -1)
    return attend(query_NMQ, key_NMQ, values_NHN, batch, dropout=0.0, difference=difference, window=window)


@dataclass(frozen=True)
class _Layout:
    batch: ConversationBatch
    present: Tensor | None
    window: int | None

    def pieces(self, tile: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
        """Receiving utterances of a tile, those they may receive from, and what to add to the scores.

        The last is (B', 1, Q or 1, K), 0 where something is received and a huge negative number elsewhere.
        """
        length = tile.shape[1]
        step = length if tile.numel() * length <= TILE else min(length, PIECE)
        past = length if self.window is None else self.window
        future = 0 if self.batch.causal else past
        for start in range(0, length, step):
            end = min(start + step, length)
            first, last = max(0, start - past), min(length, end + future)
            visible = self._present(tile[:, first:last])[:, None, None]
            if future < length:  # past is no shorter: not every pair is within reach
                distance = torch.arange(first, last, device=tile.device)
                distance = distance - torch.arange(start, end, device=tile.device)[:, None]
                visible = visible & (distance >= -past) & (distance <= future)
            absent = torch.zeros(visible.shape, device=tile.device)
            absent.masked_fill_(~visible, torch.finfo(torch.float32).min / 2)
            yield slice(start, end), slice(first, last), absent

    def _present(self, rows: Tensor) -> Tensor:
        """Bool in the shape of the row indices: whether there is an utterance to receive from."""
        there = rows < self.rows
        return there if self.present is None else there & self.present[rows.clamp_max(self.rows - 1)]

    @property
    def rows(self) -> int:
        """N."""
        return sum(self.batch.lengths)

    def gather(self, tile: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        """(N, H, D) tensors → (B', H, L', D): the rows of a tile, any row where there is none."""
        rows = tile.flatten().clamp_max(self.rows - 1)
        chosen = (x_NHD.index_select(0, rows).unflatten(0, tile.shape) for x_NHD in tensors)
        return tuple(x_BLHD.transpose(1, 2).contiguous() for x_BLHD in chosen)

    def scatter(self, x_BHLD: Tensor, tile: Tensor, out_NHD: Tensor) -> None:
        """Write a tile's rows where they belong; ``out_NHD`` has one row more than the batch, for the others."""
        out_NHD.index_copy_(0, tile.flatten(), x_BHLD.transpose(1, 2).flatten(0, 1))

    def like(self, x_NHD: Tensor) -> Tensor:
        """An empty tensor to scatter to."""
        return x_NHD.new_empty(self.rows + 1, *x_NHD.shape[1:])


class _Attend(Function):
    @staticmethod
    def forward(
        ctx: Any,
        query_NMQ: Tensor,
        key_NMQ: Tensor,
        value_NHV: Tensor,
        layout: _Layout,
        dropout: float,
        difference: bool,
    ) -> Tensor:
        masks, scale = Masks.draw(dropout, query_NMQ.device), keep_scale(dropout)
        ctx.layout, ctx.difference, ctx.masks, ctx.scale = layout, difference, masks, scale
        ctx.save_for_backward(query_NMQ, key_NMQ, value_NHV)
        out_NHV = layout.like(value_NHV)
        for tile in layout.batch.tiles:
            query, key, value = layout.gather(tile, query_NMQ, key_NMQ, value_NHV)
            out = torch.empty_like(value)
            for receivers, sources, absent in layout.pieces(tile):
                attention = _heads(_maps(query[:, :, receivers], key[:, :, sources], absent), difference)
                kept = apply_mask(attention, masks.take(attention.shape) if masks else None, scale)
                out[:, :, receivers] = kept.to(value.dtype) @ value[:, :, sources]
            layout.scatter(out, tile, out_NHV)
        return out_NHV[:-1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_NHV: Tensor) -> tuple[Tensor | None, ...]:
        layout: _Layout = ctx.layout
        masks: Masks | None = ctx.masks and ctx.masks.again()
        gradients = [layout.like(x) for x in ctx.saved_tensors]
        for tile in layout.batch.tiles:
            query, key, value, incoming = layout.gather(tile, *ctx.saved_tensors, gradient_NHV)
            # What is computed for receiving rows that are none must not reach their sources.
            incoming *= (tile < layout.rows)[:, None, :, None]
            of_query, of_key, of_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
            for receivers, sources, absent in layout.pieces(tile):
                queries, keys, values = query[:, :, receivers], key[:, :, sources], value[:, :, sources]
                maps = _maps(queries, keys, absent)
                attention = _heads(maps, ctx.difference)
                mask = masks.take(attention.shape) if masks else None
                kept = apply_mask(attention, mask, ctx.scale).to(value.dtype)
                of_value[:, :, sources].add_(kept.transpose(-1, -2) @ incoming[:, :, receivers])
                of_kept = (incoming[:, :, receivers] @ values.transpose(-1, -2)).to(maps.dtype)
                of_heads = apply_mask(of_kept, mask, ctx.scale)
                of_maps = torch.stack([of_heads, -of_heads], dim=2).flatten(1, 2) if ctx.difference else of_heads
                of_scores = torch._softmax_backward_data(of_maps, maps, -1, maps.dtype).to(query.dtype)
                of_query[:, :, receivers] = of_scores @ keys
                of_key[:, :, sources].add_(of_scores.transpose(-1, -2) @ queries)
            for x_BHLD, out_NHD in zip((of_query, of_key, of_value), gradients, strict=True):
                layout.scatter(x_BHLD, tile, out_NHD)
        of_query, of_key, of_value = (out_NHD[:-1] for out_NHD in gradients)
        return of_query, of_key, of_value, None, None, None


def _maps(query: Tensor, key: Tensor, absent: Tensor) -> Tensor:
    """(B', M, Q, K) softmax of the scores, at least in single precision."""
    return at_least_single(query @ key.transpose(-1, -2)).add_(absent).softmax(-1)


def _heads(maps: Tensor, difference: bool) -> Tensor:
    """(B', M, Q, K) maps → (B', H, Q, K) attention."""
    return maps[:, 0::2] - maps[:, 1::2] if difference else maps
