"""Linear maps at the speed of the processor.

PyTorch leaves products in single precision to the BLAS that it was built with, MKL in its wheels for x86. On processors
of another maker than Intel that one is half as fast as oneDNN, which PyTorch has for convolutions: a convolution whose
kernel is one pixel, over an image of one row whose pixels are the utterances, is the same product.

N rows of I channels become rows of O channels.
"""

import platform
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from merc.models.plain import plain_form

WORTHWHILE = 2**24  # multiplications below which a convolution costs more to set up than it saves

ONEDNN = torch.backends.mkldnn.is_available()


def _made_by_intel() -> bool:
    try:
        return "GenuineIntel" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:  # no Linux: platform.processor() has the maker's name there, if anything has
        return "GenuineIntel" in platform.processor()


BLAS_AT_HOME = torch.backends.mkl.is_available() and _made_by_intel()
"""Whether the BLAS is made for this processor."""


class Linear(nn.Linear):
    """``nn.Linear`` by :func:`linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) → (..., O)."""
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """X Wᵀ + b, as ``F.linear``: (..., I) → (..., O)."""
    if not _convolved(x, weight_OI):
        return F.linear(x, weight_OI, bias_O)
    out_NO = cast(Tensor, _Linear.apply(x.flatten(0, -2), weight_OI, bias_O))  # type: ignore[no-untyped-call]
    return out_NO.unflatten(0, x.shape[:-1])


def product(x_NI: Tensor, weight_IO: Tensor) -> Tensor:
    """X W: (N, I) → (N, O)."""
    if not _convolved(x_NI, weight_IO):
        return x_NI @ weight_IO
    return cast(Tensor, _Product.apply(x_NI, weight_IO))  # type: ignore[no-untyped-call]


def multiply(a_NI: Tensor, b_IO: Tensor, out_NO: Tensor) -> None:
    """Write A B where it belongs; without a gradient."""
    if not _convolved(a_NI, b_IO):
        torch.mm(a_NI, b_IO, out=out_NO)
    elif b_IO.is_contiguous():
        out_NO.copy_(_times(a_NI, b_IO))
    else:
        out_NO.copy_(_times_transposed(a_NI, b_IO.T))


def compiled_for_each_shape(device: torch.device) -> bool:
    """Whether large products are oneDNN's, which compiles them anew for every number of rows: best there are few."""
    return device.type == "cpu" and ONEDNN and (not BLAS_AT_HOME or torch.is_autocast_enabled("cpu"))


def _convolved(x: Tensor, weight: Tensor) -> bool:
    """Whether a product in single precision on the CPU is large enough; lower precisions use oneDNN anyway."""
    return (
        not BLAS_AT_HOME
        and ONEDNN
        and not plain_form()
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and x.numel() // x.shape[-1] * weight.numel() >= WORTHWHILE
    )


class _Linear(Function):
    @staticmethod
    def forward(ctx: Any, x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        ctx.save_for_backward(x_NI, weight_OI)
        return _times_transposed(x_NI, weight_OI, bias_O)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_out_NO: Tensor) -> tuple[Tensor | None, ...]:
        x_NI, weight_OI = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        return (
            _times(of_out_NO, weight_OI) if of_x else None,
            _times(of_out_NO.T, x_NI) if of_weight else None,
            of_out_NO.sum(0) if of_bias else None,
        )


class _Product(Function):
    @staticmethod
    def forward(ctx: Any, x_NI: Tensor, weight_IO: Tensor) -> Tensor:
        ctx.save_for_backward(x_NI, weight_IO)
        return _times(x_NI, weight_IO)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_out_NO: Tensor) -> tuple[Tensor | None, ...]:
        x_NI, weight_IO = ctx.saved_tensors
        of_x, of_weight = ctx.needs_input_grad
        return (
            _times_transposed(of_out_NO, weight_IO) if of_x else None,
            _times(x_NI.T, of_out_NO) if of_weight else None,
        )


def _times(a_NI: Tensor, b_IO: Tensor) -> Tensor:
    """A B."""
    return _rows(F.conv_transpose2d(_image(a_NI), b_IO[..., None, None]))


def _times_transposed(a_NI: Tensor, b_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """A Bᵀ + b."""
    return _rows(F.conv2d(_image(a_NI), b_OI[..., None, None], bias_O))


def _image(x_NI: Tensor) -> Tensor:
    """(N, I) rows as a (1, I, 1, N) image whose channels lie together, as convolutions like them."""
    return x_NI.contiguous()[None, None].permute(0, 3, 1, 2)


def _rows(image: Tensor) -> Tensor:
    """(1, O, 1, N) → (N, O), the inverse of :func:`_image`."""
    return image.permute(0, 2, 3, 1).flatten(0, 2)
