"""Precision of products, and mixed precision for operations that autocast does not know."""

import torch
from torch import Tensor

from merc.errors import check_choice

MATMUL_PRECISIONS = ("highest", "high", "medium")

AUTOCAST = frozenset(device for device in ("cpu", "cuda", "mps", "xpu") if torch.amp.is_autocast_available(device))
"""Devices that have mixed precision; asked for here, since torch.compile cannot follow the question."""


def multiply_with(precision: str) -> None:
    """Set how exactly this process multiplies matrices of single precision, on every device.

    Args:
        precision: of :func:`torch.set_float32_matmul_precision`: ``highest``; ``high``, of the sum of two bfloat16 (on
            GPUs TF32), ``medium``, of bfloat16 (on GPUs TF32). Where nothing is faster for it, products stay exact.

    Raises:
        MercError: it is none of them.
    """
    check_choice("matmul_precision", precision, MATMUL_PRECISIONS)
    torch.set_float32_matmul_precision(precision)


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether products of bfloat16 are worth their name on a device.

    On CPUs they are oneDNN's, which needs AVX-512 for them on those of Intel and AMD; elsewhere PyTorch imitates them,
    ten times as slow as products of single precision. Old GPUs imitate them, too.
    """
    if device.type == "cuda":
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return True


def lower_precision(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in the precision that autocast gives to matrix products; unchanged where there is no autocast."""
    device = tensors[0].device.type
    if not (device in AUTOCAST and torch.is_autocast_enabled(device)):
        return tensors
    return tuple(tensor.to(torch.get_autocast_dtype(device)) for tensor in tensors)


def interpolate(start: Tensor, end: Tensor, weight: Tensor) -> Tensor:
    """start + weight ⊙ (end − start) in one pass, as precise as the most precise of them; shapes broadcast."""
    dtype = torch.promote_types(torch.promote_types(start.dtype, end.dtype), weight.dtype)
    return torch.lerp(start.to(dtype), end.to(dtype), weight.to(dtype))


def at_least_single(tensor: Tensor) -> Tensor:
    """The tensor in single precision, whatever autocast made of it; unchanged where it is more precise."""
    return tensor.float() if tensor.dtype.itemsize < 4 else tensor
