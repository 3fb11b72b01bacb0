"""Operators for the CPU in C++, compiled for its processor where they are first used.

They make fewer passes over memory than PyTorch's, and fewer of them are called: residuals and dropout without stored
masks, GELU, norms of heads, of residuals and of differences, attention over relation graphs and among utterances,
forward and backward; others multiply matrices. They are ``torch.ops.merc``; the sources lie here. Everything that they
compute is also written in PyTorch's operators, for other devices and precisions, for :mod:`torch.func`, and where there
is no compiler; tests hold both to each other. Loading them replaces the allocator of the process's CPU tensors
(``allocator.h``).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from merc.kernels.library import loaded
from merc.kernels.plain import plain_form

PRECISIONS = (torch.float32, torch.bfloat16)


LEVELS = 256
"""Dropout by a random byte: its probability is rounded to a multiple of 1/256."""

_off: ContextVar[bool] = ContextVar("off", default=False)


def native(*tensors: Tensor | None) -> bool:
    """Whether ``torch.ops.merc`` can compute with these tensors; None stands for one that is not there."""
    if plain_form():  # first, since torch.compile, which is only used there, cannot follow the rest
        return False
    for x in tensors:  # not all(): this is asked hundreds of times a step
        if x is not None and not (x.is_cpu and x.dtype in PRECISIONS):
            return False
    return not _off.get() and loaded()


@contextmanager
def pytorch_alone() -> Iterator[None]:
    """Inside, PyTorch's operators compute everything: for those who look at them one by one."""
    token = _off.set(True)
    try:
        yield
    finally:
        _off.reset(token)


def drops(p: float) -> tuple[int, int]:
    """What an operator drops with probability p: 64 random bits that say where, and of how many of 256 bytes.

    PyTorch's CPU generator moves on by one number, unless nothing is dropped.
    """
    levels = round(p * LEVELS)
    return (int(torch.randint(-(2**63), 2**63 - 1, (1,)).tolist()[0]) if levels else 0), levels
