"""When operations must be in their plain form: PyTorch's differentiable operations alone, no shape hanging on numbers.

What is made by hand for the speed of the CPU, merc's operators and :class:`torch.autograd.Function`, means nothing to
transforms such as :func:`torch.func.vmap`, which see through ordinary operations. Both forms compute the same, to which
tests hold them.
"""

import torch


def plain_form() -> bool:
    """Whether a transform of :mod:`torch.func` is at work, as when several seeds are trained at once."""
    # What autograd.Function itself asks before it refuses.
    return bool(torch._C._are_functorch_transforms_active())
