"""Mixed precision for operations that autocast does not know."""

import torch
from torch import Tensor


def lower_precision(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in the precision that autocast gives to matrix products; unchanged where there is no autocast."""
    device = tensors[0].device.type
    if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
        return tensors
    return tuple(tensor.to(torch.get_autocast_dtype(device)) for tensor in tensors)


def at_least_single(tensor: Tensor) -> Tensor:
    """The tensor in single precision, whatever autocast made of it; unchanged where it is more precise."""
    return tensor.float() if tensor.dtype.itemsize < 4 else tensor
