"""Dropout whose masks cost little on the CPU.

PyTorch draws one mask entry after the other on the CPU, at ten times the cost of the product it serves. Where there is
an operator for it (:mod:`merc.kernels`), random bytes are computed from their places, for the backward pass again, so a
dropout probability is rounded to the next multiple of 1/256, and survivors are scaled by what was really kept.
"""

import math
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from merc.kernels import LEVELS, drops, native


class Dropout(nn.Dropout):
    """``nn.Dropout`` by :func:`dropout`."""

    @property
    def rate(self) -> float:
        """The probability that counts now: p in training, else 0."""
        return self.p if self.training else 0.0

    def forward(self, x: Tensor) -> Tensor:
        """Drop entries with probability p in training, and scale the others by 1/(1 − p)."""
        return dropout(x, self.p) if self.training else x


def dropout(x: Tensor, p: float) -> Tensor:
    """Drop entries with probability p, rounded as above, and scale the others by 1/(1 − p)."""
    if not native(x):
        return F.dropout(x, p)
    seed, dropped = drops(p)
    return cast(Tensor, torch.ops.merc.dropout(x, seed, dropped)) if dropped else x


def add_dropped(x: Tensor, y: Tensor, p: float = 0.0) -> Tensor:
    """x + dropout(y), as around a layer of a Transformer, in the higher precision of both; shapes must be the same."""
    if not native(x, y):
        return x + (F.dropout(y, p) if p else y)
    return cast(Tensor, torch.ops.merc.add_dropped(x, y, *drops(p)))


def apply_mask(x: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """X · mask · scale; x itself where there is no mask."""
    return x if mask is None else x * mask.to(x.dtype) * scale


def keep_scale(p: float) -> float:
    """1/(1 − p) with p as rounded; 0 for p = 1."""
    kept = LEVELS - round(p * LEVELS)
    return LEVELS / kept if kept else 0.0


class Masks:
    """A stream of bool dropout masks, False with probability p, that starts again with the same ones.

    Args:
        p: rounded to a multiple of 1/256.
        source: of the randomness.
    """

    def __init__(self, p: float, source: "RandomBytes") -> None:
        self.p = p
        self.source = source

    @classmethod
    def draw(cls, p: float, device: torch.device) -> "Masks | None":
        """A stream keyed by PyTorch's CPU generator, which moves on by two numbers; None where nothing is dropped."""
        return None if round(p * LEVELS) == 0 else cls(p, RandomBytes.draw(device))

    def again(self) -> "Masks":
        """The same stream from its start; it must be asked for the same shapes."""
        return Masks(self.p, self.source.again())

    def take(self, shape: Sequence[int]) -> Tensor:
        """The next mask."""
        # As bytes none is 256.
        return (self.source.take(math.prod(shape)).int() >= round(self.p * LEVELS)).view(shape)


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
