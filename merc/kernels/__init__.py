"""Operators for the CPU in C++, compiled for its processor where they are first used.

Each is one pass over memory where PyTorch's operators make several: dropout without stored masks, the norm of the
heads, attention over relation graphs and among utterances, forward and backward. They are ``torch.ops.merc``; the
sources lie here. Everything that they compute is also written in PyTorch's operators, for other devices and
precisions, for :mod:`torch.func`, and where there is no compiler; tests hold both to each other.
"""

import torch
from torch import Tensor

from merc.kernels.library import loaded
from merc.models.plain import plain_form

PRECISIONS = (torch.float32, torch.bfloat16)


def native(*tensors: Tensor | None) -> bool:
    """Whether ``torch.ops.merc`` can compute with these tensors; None stands for one that is not there."""
    if plain_form() or any(x is not None and (x.device.type != "cpu" or x.dtype not in PRECISIONS) for x in tensors):
        return False
    return loaded()


def seed() -> int:
    """64 random bits that say what one dropout drops; PyTorch's CPU generator moves on by one number."""
    return int(torch.randint(-(2**63), 2**63 - 1, (1,)).tolist()[0])
