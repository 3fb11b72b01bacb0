"""Attention among the utterances of each dialogue, on packed rows.

Where there are no operators for it (:mod:`merc.kernels`), it goes through the batch in tiles of several dialogues
(:attr:`ConversationBatch.tiles`). Either way a long dialogue is treated in pieces of some receiving utterances, and no
map is kept: the backward pass computes them again, so that memory grows with the rows of a batch, not with the square
of a dialogue's length.
"""

from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from merc.data.conversation import TILE, ConversationBatch
from merc.kernels import drops, native
from merc.kernels.plain import plain_form
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
    scale: float = 1.0,
    difference: bool = False,
    to_padding: bool = False,
    window: int | None = None,
) -> Tensor:
    """Scaled dot-product attention, dropout(softmax(scale · q kᵀ)) v, among the utterances of each dialogue.

    Args:
        query_NMQ: queries of M maps.
        key_NMQ: keys.
        value_NHV: values of H heads.
        batch: the dialogues; if causal, no utterance receives from a later one.
        dropout: probability with which an entry of a head's attention is dropped.
        scale: of the scores.
        difference: a head is the difference of two maps, M = 2H: maps 2h minus 2h+1. Otherwise M = H.
        to_padding: rows of padding, if there are any, are attended to as well.
        window: utterances before and after that are attended to; None: the whole dialogue.

    Returns:
        (N, H, V).
    """
    query_NMQ, key_NMQ, value_NHV = rows = lower_precision(query_NMQ, key_NMQ, value_NHV)
    if native(*rows):
        visible_N = None if to_padding else batch.present
        starts, reach = (0, *accumulate(batch.lengths)), _reach(batch, batch.longest, window)
        rest = (starts, visible_N, *reach, difference, scale, *drops(dropout))
        return cast(Tensor, torch.ops.merc.attend(*rows, *rest))
    query_NMQ = scale * query_NMQ
    if plain_form():
        return _attend_padded(query_NMQ, key_NMQ, value_NHV, batch, dropout, difference, to_padding, window)
    tiles = _tiles(batch, to_padding, window)
    return cast(Tensor, _TiledAttend.apply(query_NMQ, key_NMQ, value_NHV, tiles, dropout, difference))  # type: ignore[no-untyped-call]


def _attend_padded(
    query_NMQ: Tensor,
    key_NMQ: Tensor,
    value_NHV: Tensor,
    batch: ConversationBatch,
    dropout: float,
    difference: bool,
    to_padding: bool,
    window: int | None,
) -> Tensor:
    every = (0, batch.longest)
    visible_BL = batch.occupied if to_padding else batch.mask
    absent_B1LL = _absent(visible_BL, every, every, _reach(batch, batch.longest, window))
    query, key, value = (batch.pad(x_NHD).transpose(1, 2) for x_NHD in (query_NMQ, key_NMQ, value_NHV))
    attention = _heads(_maps(query, key, absent_B1LL), difference)
    attention = F.dropout(attention, dropout) if dropout else attention
    return batch.unpad((attention.to(value.dtype) @ value).transpose(1, 2))


def attention_weights(
    query_NMQ: Tensor,
    key_NMQ: Tensor,
    batch: ConversationBatch,
    *,
    scale: float = 1.0,
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
    return attend(query_NMQ, key_NMQ, values_NHN, batch, 0.0, scale=scale, difference=difference, window=window)


class _Tile:
    """Some dialogues (:attr:`ConversationBatch.tiles`), and who may receive from whom in them.

    Args:
        rows_BL: (B', L') int64, as there.
        batch: the dialogues.
        to_padding: see :func:`attend`.
        window: likewise.
    """

    def __init__(self, rows_BL: Tensor, batch: ConversationBatch, to_padding: bool, window: int | None) -> None:
        self.shape = rows_BL.shape
        self.targets = rows_BL.flatten()
        self.sources = self.targets.clamp_max(batch.rows - 1)  # any row where there is none
        self.there_BL = rows_BL < batch.rows
        self.visible_BL = self.there_BL
        if not to_padding and batch.present is not None:
            self.visible_BL = self.there_BL & batch.present[self.sources].view(self.shape)
        self.reach = _reach(batch, self.shape[1], window)
        self._whole: list[tuple[slice, slice, Tensor]] | None = None

    def pieces(self) -> Iterable[tuple[slice, slice, Tensor]]:
        """Receiving utterances, those they may receive from, and what to add to the scores.

        The last is (B', 1, Q or 1, K), 0 where something is received and a huge negative number elsewhere.
        """
        length = self.shape[1]
        if self.shape.numel() * length > TILE:  # too much to be kept
            return (self._piece(start, min(start + PIECE, length)) for start in range(0, length, PIECE))
        if self._whole is None:
            self._whole = [self._piece(0, length)]
        return self._whole

    def _piece(self, start: int, end: int) -> tuple[slice, slice, Tensor]:
        past, future = self.reach
        first, last = max(0, start - past), min(self.shape[1], end + future)
        absent = _absent(self.visible_BL[:, first:last], (start, end), (first, last), self.reach)
        return slice(start, end), slice(first, last), absent

    def gather(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """(N, H, D) tensors → (B', H, L', D): the rows of the tile."""
        chosen = (x_NHD.index_select(0, self.sources).unflatten(0, self.shape) for x_NHD in tensors)
        return tuple(x_BLHD.transpose(1, 2).contiguous() for x_BLHD in chosen)

    def scatter(self, x_BHLD: Tensor, out_NHD: Tensor) -> None:
        """Write rows where they belong; ``out_NHD`` has one row more than the batch, for the others."""
        out_NHD.index_copy_(0, self.targets, x_BHLD.transpose(1, 2).flatten(0, 1))


def _reach(batch: ConversationBatch, length: int, window: int | None) -> tuple[int, int]:
    """How far before and after an utterance it may receive from, in dialogues of at most so many utterances."""
    past = length if window is None else min(window, length)
    return past, 0 if batch.causal else past


def _absent(visible_BK: Tensor, receivers: tuple[int, int], sources: tuple[int, int], reach: tuple[int, int]) -> Tensor:
    """What to add to scores: (B, 1, Q or 1, K), 0 where something is received and a huge negative number elsewhere.

    Args:
        visible_BK: bool, whether there is anybody to receive from.
        receivers: first position and the one behind the last.
        sources: likewise.
        reach: see :func:`_reach`.
    """
    past, future = reach
    device, visible = visible_BK.device, visible_BK[:, None, None]
    if future < sources[1]:  # past is no shorter: not every pair is within reach
        distance = torch.arange(*sources, device=device) - torch.arange(*receivers, device=device)[:, None]
        visible = visible & (distance >= -past) & (distance <= future)
    return torch.zeros(visible.shape, device=device).masked_fill(~visible, torch.finfo(torch.float32).min / 2)


def _tiles(batch: ConversationBatch, to_padding: bool, window: int | None) -> list[_Tile]:
    """The tiles of a batch; layers that attend alike, and their backward passes, share them."""
    key = ("tiles", to_padding, window)
    if key not in batch.derived:
        batch.derived[key] = [_Tile(rows_BL, batch, to_padding, window) for rows_BL in batch.tiles]
    tiles: list[_Tile] = batch.derived[key]
    return tiles


class _TiledAttend(Function):
    @staticmethod
    def forward(
        ctx: Any,
        query_NMQ: Tensor,
        key_NMQ: Tensor,
        value_NHV: Tensor,
        tiles: Sequence[_Tile],
        dropout: float,
        difference: bool,
    ) -> Tensor:
        masks, scale = Masks.draw(dropout, query_NMQ.device), keep_scale(dropout)
        ctx.tiles, ctx.difference, ctx.masks, ctx.scale = tiles, difference, masks and masks.again(), scale
        ctx.save_for_backward(query_NMQ, key_NMQ, value_NHV)
        out_NHV = _one_row_more(value_NHV)
        for tile in tiles:
            query, key, value = tile.gather(query_NMQ, key_NMQ, value_NHV)
            out = torch.empty_like(value)
            for receivers, sources, absent in tile.pieces():
                attention = _heads(_maps(query[:, :, receivers], key[:, :, sources], absent), difference)
                kept = apply_mask(attention, masks.take(attention.shape) if masks else None, scale)
                out[:, :, receivers] = kept.to(value.dtype) @ value[:, :, sources]
            tile.scatter(out, out_NHV)
        return out_NHV[:-1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_NHV: Tensor) -> tuple[Tensor | None, ...]:
        masks: Masks | None = ctx.masks and ctx.masks.again()
        gradients = [_one_row_more(x) for x in ctx.saved_tensors]
        for tile in ctx.tiles:
            query, key, value, incoming = tile.gather(*ctx.saved_tensors, gradient_NHV)
            # What is computed for receiving rows that are none must not reach their sources.
            incoming *= tile.there_BL[:, None, :, None]
            of_query, of_key, of_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
            for receivers, sources, absent in tile.pieces():
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
                tile.scatter(x_BHLD, out_NHD)
        of_query, of_key, of_value = (out_NHD[:-1] for out_NHD in gradients)
        return of_query, of_key, of_value, None, None, None


def _one_row_more(x_NHD: Tensor) -> Tensor:
    """An empty tensor to scatter to."""
    return x_NHD.new_empty(len(x_NHD) + 1, *x_NHD.shape[1:])


def _maps(query: Tensor, key: Tensor, absent: Tensor) -> Tensor:
    """(B', M, Q, K) softmax of the scores, at least in single precision."""
    return at_least_single(query @ key.transpose(-1, -2)).add_(absent).softmax(-1)


def _heads(maps: Tensor, difference: bool) -> Tensor:
    """(B', M, Q, K) maps → (B', H, Q, K) attention."""
    return maps[:, 0::2] - maps[:, 1::2] if difference else maps
