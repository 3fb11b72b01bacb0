"""Dropout whose masks cost little on the CPU.

PyTorch draws one mask entry after the other on the CPU, at ten times the cost of the product it serves. Here masks are
made of random bytes, so a dropout probability is rounded to the next multiple of 1/256, and survivors are scaled by
what was really kept. Other devices use PyTorch's own dropout.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from merc.models.plain import plain_form

LEVELS = 256

BLOCK = 2**20
"""Most entries that a stream of masks makes at a time, unless more are asked for at once."""

AHEAD = 8
"""Most times what is asked for."""


class Dropout(nn.Dropout):
    """``nn.Dropout`` with cheap masks on the CPU."""

    @property
    def rate(self) -> float:
        """The probability that counts now: p in training, else 0."""
        return self.p if self.training else 0.0

    def forward(self, x: Tensor) -> Tensor:
        """Drop entries with probability p in training, and scale the others by 1/(1 − p)."""
        return dropout(x, self.p) if self.training else x


def dropout(x: Tensor, p: float) -> Tensor:
    """Drop entries with probability p and scale the others by 1/(1 − p); p is rounded to a multiple of 1/256."""
    if x.device.type != "cpu" or plain_form():
        return F.dropout(x, p)
    mask = draw_mask(x, p)
    return x if mask is None else cast(Tensor, _Masked.apply(x, mask, keep_scale(p)))  # type: ignore[no-untyped-call]


class _Masked(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(mask)
        ctx.scale = scale
        return apply_mask(x, mask, scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (mask,) = ctx.saved_tensors
        return apply_mask(gradient, mask, ctx.scale), None, None


def apply_mask(x: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """X · mask · scale; x itself where there is no mask."""
    if mask is None:
        return x
    return torch.addcmul(_zero(x.dtype, x.device), x, mask.to(x.dtype), value=scale)


@cache
def _zero(dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.zeros((), dtype=dtype, device=device)


def keep_scale(p: float) -> float:
    """1/(1 − p) with p as rounded; 0 for p = 1."""
    kept = LEVELS - round(p * LEVELS)
    return LEVELS / kept if kept else 0.0


def draw_mask(like: Tensor, p: float) -> Tensor | None:
    """A mask in the shape of a tensor (:class:`Masks`); None where nothing is dropped."""
    streams = _streams.get()
    if streams is None:
        masks = Masks.draw(p, like.device)
    else:
        if (p, like.device) not in streams:
            streams[p, like.device] = Masks.draw(p, like.device)
        masks = streams[p, like.device]
    return None if masks is None else masks.take(like.shape)


@contextmanager
def shared_masks() -> Iterator[None]:
    """Inside, masks of the same probability are cut from the same blocks: a few large operations make all of them."""
    token = _streams.set({})
    try:
        yield
    finally:
        _streams.reset(token)


class Masks:
    """A stream of uint8 dropout masks, 0 with probability p, else 1, that starts again with the same ones.

    Args:
        p: rounded to a multiple of 1/256.
        source: of the randomness.
    """

    def __init__(self, p: float, source: "RandomBytes") -> None:
        self.p = p
        self.source = source
        self._block = torch.empty(0, dtype=torch.uint8, device=source.device)

    @classmethod
    def draw(cls, p: float, device: torch.device) -> "Masks | None":
        """A stream keyed by PyTorch's CPU generator, which moves on by two numbers; None where nothing is dropped."""
        return None if round(p * LEVELS) == 0 else cls(p, RandomBytes.draw(device))

    def again(self) -> "Masks":
        """The same stream from its start; it must be asked for the same shapes."""
        return Masks(self.p, self.source.again())

    def take(self, shape: Sequence[int]) -> Tensor:
        """The next mask."""
        count = math.prod(shape)
        if count > len(self._block):
            self._block = self._make(count * max(1, min(AHEAD, BLOCK // count)))
        mask, self._block = self._block[:count], self._block[count:]
        return mask.view(shape)

    def _make(self, count: int) -> Tensor:
        dropped = round(self.p * LEVELS)
        if dropped == LEVELS:
            return self._block.new_zeros(count)
        # Clamping and subtracting bytes is several times faster than a comparison, which yields bool.
        return self.source.take(count).clamp_(dropped - 1, dropped).sub_(dropped - 1)


_streams: ContextVar[dict[tuple[float, torch.device], Masks | None] | None] = ContextVar("streams", default=None)


def _round(shift: int, factor: int) -> tuple[Tensor, ...]:
    """A step of the hash; as tensors of its numbers' own kind, which need no conversion in every call."""
    return tuple(torch.tensor(number, dtype=torch.int32) for number in (shift, (1 << 32 - shift) - 1, factor))


_ROUNDS = (_round(16, 0x7FEB352D), _round(15, -0x7B935975), _round(16, 1))
_COUNTERS: dict[torch.device, Tensor] = {}


def _counters(count: int, device: torch.device) -> Tensor:
    """(count,) int32 multiples 0, w, 2w … of an odd w (Weyl sequence); computed once, for the longest seen."""
    if device not in _COUNTERS or len(_COUNTERS[device]) < count:
        _COUNTERS[device] = torch.arange(count, dtype=torch.int32, device=device).mul_(-0x61C88647)
    return _COUNTERS[device][:count]


class RandomBytes:
    """A stream of random bytes that starts again with the same numbers when it is made with the same key.

    A counter-based generator: a multiply-and-shift hash of 32-bit counters, whose steps run vectorised and on all
    threads.

    Args:
        key: two 32-bit numbers.
        device: where the bytes are wanted.
    """

    def __init__(self, key: tuple[int, int], device: torch.device) -> None:
        self.key = key
        self.device = device
        self._used = 0

    @classmethod
    def draw(cls, device: torch.device) -> "RandomBytes":
        """A stream keyed by PyTorch's CPU generator, which moves on by two numbers."""
        offset, key = torch.randint(-(2**31), 2**31, (2,)).tolist()
        return cls((offset, key), device)

    def again(self) -> "RandomBytes":
        """The same stream from its start."""
        return RandomBytes(self.key, self.device)

    def take(self, count: int) -> Tensor:
        """The next (count,) uint8 numbers, from 0 to 255."""
        start, length = self._used, -(-count // 4)
        self._used += length
        words = _counters(length, self.device).add((self.key[0] - 0x61C88647 * start + 2**31) % 2**32 - 2**31)
        shifted = torch.empty_like(words)
        for shift, low_bits, factor in _ROUNDS:
            torch.bitwise_right_shift(words, shift, out=shifted)  # arithmetic: the low bits make it logical
            words.bitwise_xor_(shifted.bitwise_and_(low_bits)).add_(self.key[1]).mul_(factor)
        return words.view(torch.uint8)[:count]
