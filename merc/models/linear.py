"""Linear maps at the speed of the processor.

PyTorch leaves exact products in single precision to the BLAS that it was built with, MKL in its wheels for x86. Three
things are faster. Where a processor has matrix units, they can be made to compute in single precision, or as exactly as
:func:`torch.set_float32_matmul_precision` asks for (``merc/kernels/matrix_units.h``). On processors of another maker
than Intel, MKL wastes a tenth of vectors of eight numbers (``merc/kernels/vector_units.h``), and half of those of
sixteen. With the latter oneDNN is faster, which PyTorch has for convolutions: a convolution whose kernel is one pixel,
over an image of one row whose pixels are the utterances, is the same product.

N rows of I channels become rows of O channels.
"""

import platform
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from merc.kernels import native
from merc.models.plain import plain_form
from merc.models.precision import multiplies_bfloat16

WORTHWHILE = 2**24  # multiplications below which anything but the BLAS costs more to set up than it saves

ONEDNN = torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512"
"""Whether oneDNN may be faster than the BLAS; on AMD's processors without AVX-512 it is slower, most for few rows."""


def _made_by_intel() -> bool:
    try:
        return "GenuineIntel" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:  # no Linux: platform.processor() has the maker's name there, if anything has
        return "GenuineIntel" in platform.processor()


BLAS_AT_HOME = torch.backends.mkl.is_available() and _made_by_intel()
"""Whether the BLAS is made for this processor."""


class Engine(Enum):
    """What computes a product."""

    PYTORCH = "PyTorch"
    ONEDNN = "oneDNN, as a convolution"
    MERC = "merc's operators"


class Linear(nn.Linear):
    """``nn.Linear`` by :func:`linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) → (..., O)."""
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """X Wᵀ + b, as ``F.linear``: (..., I) → (..., O)."""
    engine = _engine(x, weight_OI)
    if engine is Engine.PYTORCH:
        return F.linear(x, weight_OI, bias_O)
    out_NO = cast(Tensor, _Linear.apply(x.flatten(0, -2), weight_OI, bias_O, engine))  # type: ignore[no-untyped-call]
    return out_NO.unflatten(0, x.shape[:-1])


def product(x_NI: Tensor, weight_IO: Tensor) -> Tensor:
    """X W: (N, I) → (N, O)."""
    engine = _engine(x_NI, weight_IO)
    if engine is Engine.PYTORCH:
        return x_NI @ weight_IO
    return cast(Tensor, _Product.apply(x_NI, weight_IO, engine))  # type: ignore[no-untyped-call]


def multiply(a_NI: Tensor, b_IO: Tensor, out_NO: Tensor) -> None:
    """Write A B where it belongs; without a gradient."""
    engine = _engine(a_NI, b_IO)
    if engine is Engine.PYTORCH:
        torch.mm(a_NI, b_IO, out=out_NO)
    elif engine is Engine.MERC:
        torch.ops.merc.product_out(a_NI, b_IO, out_NO)
    elif b_IO.is_contiguous():
        out_NO.copy_(_times(a_NI, b_IO, engine))
    else:
        out_NO.copy_(_times_transposed(a_NI, b_IO.T, engine))


def compiled_for_each_shape(device: torch.device) -> bool:
    """Whether large products are oneDNN's, which compiles them anew for every number of rows: best there are few."""
    if device.type != "cpu":
        return False
    if torch.is_autocast_enabled("cpu"):
        return multiplies_bfloat16(device)
    engine = _engine_of_large()
    return engine is Engine.ONEDNN or (engine is Engine.PYTORCH and _rounded())


def _engine(x: Tensor, weight: Tensor) -> Engine:
    """What computes a product in single precision on the CPU if it is large enough; PyTorch has all others."""
    ours = (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and not plain_form()
        and not torch.is_autocast_enabled("cpu")
        and x.shape[:-1].numel() * weight.numel() >= WORTHWHILE
    )
    return _engine_of_large() if ours else Engine.PYTORCH


def _engine_of_large() -> Engine:
    units = _units() if native() else ""
    if units == "matrix":
        return Engine.MERC
    if BLAS_AT_HOME or _rounded():
        return Engine.PYTORCH
    if units == "vector":
        return Engine.MERC
    return Engine.ONEDNN if ONEDNN else Engine.PYTORCH


def _rounded() -> bool:
    """Whether products may round what they multiply to bfloat16, and PyTorch has oneDNN compute them for that."""
    return torch.get_float32_matmul_precision() == "medium" and multiplies_bfloat16(torch.device("cpu"))


@cache
def _units() -> str:
    """What merc's operators, which must be loaded, multiply with: ``matrix``, ``vector`` or nothing of their own."""
    return str(torch.ops.merc.units())


class _Linear(Function):
    @staticmethod
    def forward(ctx: Any, x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None, engine: Engine) -> Tensor:
        ctx.engine = engine
        ctx.save_for_backward(x_NI, weight_OI)
        return _times_transposed(x_NI, weight_OI, engine, bias_O)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_out_NO: Tensor) -> tuple[Tensor | None, ...]:
        x_NI, weight_OI = ctx.saved_tensors
        of_x, of_weight, of_bias, _ = ctx.needs_input_grad
        return (
            _times(of_out_NO, weight_OI, ctx.engine) if of_x else None,
            _times(of_out_NO.T, x_NI, ctx.engine) if of_weight else None,
            of_out_NO.sum(0) if of_bias else None,
            None,
        )


class _Product(Function):
    @staticmethod
    def forward(ctx: Any, x_NI: Tensor, weight_IO: Tensor, engine: Engine) -> Tensor:
        ctx.engine = engine
        ctx.save_for_backward(x_NI, weight_IO)
        return _times(x_NI, weight_IO, engine)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_out_NO: Tensor) -> tuple[Tensor | None, ...]:
        x_NI, weight_IO = ctx.saved_tensors
        of_x, of_weight, _ = ctx.needs_input_grad
        return (
            _times_transposed(of_out_NO, weight_IO, ctx.engine) if of_x else None,
            _times(x_NI.T, of_out_NO, ctx.engine) if of_weight else None,
            None,
        )


def _times(a_NI: Tensor, b_IO: Tensor, engine: Engine) -> Tensor:
    """A B."""
    if engine is Engine.MERC:
        return cast(Tensor, torch.ops.merc.product(a_NI, b_IO, None))
    return _rows(F.conv_transpose2d(_image(a_NI), b_IO[..., None, None]))


def _times_transposed(a_NI: Tensor, b_OI: Tensor, engine: Engine, bias_O: Tensor | None = None) -> Tensor:
    """A Bᵀ + b."""
    if engine is Engine.MERC:
        return cast(Tensor, torch.ops.merc.product(a_NI, b_OI.T, bias_O))
    return _rows(F.conv2d(_image(a_NI), b_OI[..., None, None], bias_O))


def _image(x_NI: Tensor) -> Tensor:
    """(N, I) rows as a (1, I, 1, N) image whose channels lie together, as convolutions like them."""
    return x_NI.contiguous()[None, None].permute(0, 3, 1, 2)


def _rows(image: Tensor) -> Tensor:
    """(1, O, 1, N) → (N, O), the inverse of :func:`_image`."""
    return image.permute(0, 2, 3, 1).flatten(0, 2)
