"""When operations must be in their plain form: PyTorch's differentiable operations alone, no shape hanging on numbers.

What is made by hand for the speed of the CPU (:class:`torch.autograd.Function`) means nothing to transforms such as
:func:`torch.func.vmap`, which see through ordinary operations. Both forms compute the same, which tests hold them to.
"""

import torch


def plain_form() -> bool:
    """Whether a transform of :mod:`torch.func` is at work, as when several seeds are trained at once."""
    # What autograd.Function itself asks before it refuses.
    return bool(torch._C._are_functorch_transforms_active())
