"""Dropout whose masks cost little on the CPU.

PyTorch draws one mask entry after the other on the CPU, at ten times the cost of the product it serves. Here masks are
made of random bytes, so a dropout probability is rounded to the next multiple of 1/256, and survivors are scaled by
what was really kept. Other devices use PyTorch's own dropout.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEVELS = 256

BLOCK = 2**20
"""Most entries that a stream of masks makes at a time, unless more are asked for at once."""

AHEAD = 8
"""And how many times what is asked for."""


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
    if x.device.type != "cpu":
        return F.dropout(x, p)
    mask = draw_mask(x, p)
    return x if mask is None else x * mask


def draw_mask(like: Tensor, p: float) -> Tensor | None:
    """What to multiply a tensor with, in its shape and precision: 0 with probability p, else 1/(1 − p); None: p = 0."""
    streams = _streams.get()
    if streams is None:
        masks = Masks.draw(p, like)
        return None if masks is None else masks.take(like.shape)
    kind = (p, like.dtype, like.device)
    if kind not in streams:
        streams[kind] = Masks.draw(p, like)
    shared = streams[kind]
    return None if shared is None else shared.take(like.shape)


@contextmanager
def shared_masks() -> Iterator[None]:
    """Inside, masks of the same probability are cut from the same blocks: a few large operations make all of them."""
    token = _streams.set({})
    try:
        yield
    finally:
        _streams.reset(token)


class Masks:
    """A stream of dropout masks that starts again with the same ones.

    Args:
        p: probability of a 0; the other entries are 1/(1 − p), p as rounded.
        like: of the precision that masks shall have, and where they are wanted.
        source: of the randomness.
    """

    def __init__(self, p: float, like: Tensor, source: "RandomBytes") -> None:
        self.dropped = round(p * LEVELS)
        self.options = {"dtype": like.dtype, "device": like.device}
        self.source = source
        self._block = torch.empty(0, **self.options)

    @classmethod
    def draw(cls, p: float, like: Tensor) -> "Masks | None":
        """A stream keyed by PyTorch's CPU generator, which moves on by two numbers; None where nothing is dropped."""
        return None if round(p * LEVELS) == 0 else cls(p, like, RandomBytes.draw(like.device))

    def again(self) -> "Masks":
        """The same stream from its start; it must be asked for the same shapes."""
        return Masks(self.dropped / LEVELS, self._block, self.source.again())

    def take(self, shape: Sequence[int]) -> Tensor:
        """The next mask."""
        count = math.prod(shape)
        if count > len(self._block):
            self._block = self._make(max(count, min(BLOCK, AHEAD * count)))
        mask, self._block = self._block[:count], self._block[count:]
        return mask.view(shape)

    def _make(self, count: int) -> Tensor:
        if self.dropped == LEVELS:
            return torch.zeros(count, **self.options)
        # Clamping and subtracting bytes is several times faster than a comparison, which yields bool.
        kept = self.source.take(count).clamp_(self.dropped - 1, self.dropped).sub_(self.dropped - 1)
        return kept.to(self.options["dtype"]).mul_(LEVELS / (LEVELS - self.dropped))


_streams: ContextVar[dict[tuple[float, torch.dtype, torch.device], Masks | None] | None] = ContextVar(
    "streams", default=None
)


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
