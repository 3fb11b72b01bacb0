"""Linear maps at the speed of the processor.

PyTorch leaves exact products in single precision to the BLAS that it was built with, MKL in its wheels for x86, and
those of bfloat16 to oneDNN. Two things are faster. Where a processor has matrix units, they can be made to compute in
single precision, or as exactly as :func:`torch.set_float32_matmul_precision` asks for
(``merc/kernels/matrix_units.h``). On processors of another maker than Intel, MKL leaves a tenth of what vectors can do,
more with few rows, and oneDNN takes weights in bfloat16 and compiles a kernel for every shape
(``merc/kernels/vector_units.h``). There, without a compiler, oneDNN is faster than MKL if vectors have sixteen numbers.
PyTorch has it for convolutions: a convolution whose kernel is one pixel, over an image of one row whose pixels are the
utterances, is the same product.

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
from merc.kernels.plain import plain_form
from merc.models.precision import lower_precision, multiplies_bfloat16

WORTHWHILE = 2**24  # multiplications below which anything but the BLAS costs more to set up than it saves
WORTHWHILE_BY_VECTORS = 2**22  # likewise where that is merc's vectors
WORTHWHILE_LOWERED = 2**18  # likewise in bfloat16, for whose products PyTorch converts weights and has kernels compiled

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
    """X Wᵀ + b, as ``F.linear``, under autocast too: (..., I) → (..., O)."""
    engine = engine_of(x, weight_OI)
    if engine is Engine.PYTORCH:
        return F.linear(x, weight_OI, bias_O)
    inputs = (x.flatten(0, -2), weight_OI, bias_O)
    if engine is Engine.MERC:
        out_NO = cast(Tensor, torch.ops.merc.linear(*inputs, is_half(x, weight_OI)))
    else:
        out_NO = cast(Tensor, _Convolved.apply(*inputs))  # type: ignore[no-untyped-call]
    return out_NO if x.ndim == 2 else out_NO.unflatten(0, x.shape[:-1])  # a view takes as long as a small product


def product(x_NI: Tensor, weight_IO: Tensor) -> Tensor:
    """X W where no gradient is recorded, as :func:`linear` computes those of its inputs: (N, I) → (N, O)."""
    engine = engine_of(x_NI, weight_IO)
    if engine is Engine.MERC:
        return cast(Tensor, torch.ops.merc.product(x_NI, weight_IO, None, is_half(x_NI, weight_IO)))
    return _convolved(x_NI, weight_IO) if engine is Engine.ONEDNN else x_NI @ weight_IO


def ready_to_multiply(x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
    """Rows and weights in the precision in which autocast has them multiplied; unchanged where there is no autocast.

    Weights stay in single precision where the products with the first of them take such.
    """
    (x,) = lower_precision(x)
    return (x, *weights) if engine_of(x, weights[0]) is Engine.MERC else (x, *lower_precision(*weights))


def compiled_for_each_shape(device: torch.device) -> bool:
    """Whether large products are oneDNN's, which compiles them anew for every number of rows: best there are few."""
    if device.type != "cpu":
        return False
    lowered = torch.is_autocast_enabled("cpu")
    engine = _engine_of_large(lowered)
    rounded = _rounded() or (lowered and multiplies_bfloat16(device))
    return engine is Engine.ONEDNN or (engine is Engine.PYTORCH and rounded)


def engine_of(x: Tensor, weight: Tensor) -> Engine:
    """What computes a product on the CPU that is large enough, or of two precisions; PyTorch has all others."""
    dtypes = {x.dtype, weight.dtype}
    if x.device.type != "cpu" or plain_form() or not dtypes <= {torch.float32, torch.bfloat16}:
        return Engine.PYTORCH
    mixed = len(dtypes) > 1
    if torch.is_autocast_enabled("cpu"):
        dtypes.add(torch.get_autocast_dtype("cpu"))
    lowered = torch.bfloat16 in dtypes
    engine = _engine_of_large(lowered) if torch.float16 not in dtypes else Engine.PYTORCH
    large = x.shape[:-1].numel() * weight.numel() >= _worthwhile(engine, lowered)
    return engine if mixed or large else Engine.PYTORCH


def is_half(x: Tensor, weight: Tensor) -> bool:
    """Whether merc's product of them is of bfloat16 instead of single precision, as autocast has it."""
    return torch.is_autocast_enabled("cpu") or torch.bfloat16 in (x.dtype, weight.dtype)


def _worthwhile(engine: Engine, lowered: bool) -> int:
    """Multiplications from which on a product is large enough for an engine."""
    if lowered:
        return WORTHWHILE_LOWERED
    return WORTHWHILE_BY_VECTORS if engine is Engine.MERC and _units() == "vector" else WORTHWHILE


def _engine_of_large(lowered: bool) -> Engine:
    """What computes large products of single precision, or of bfloat16 where autocast has ``lowered`` it."""
    units = _units() if native() else ""
    rounded = lowered or _rounded()
    if units == "matrix" and not lowered:
        return Engine.MERC
    if units == "vector" and not BLAS_AT_HOME and (_multiplies_bfloat16() or not rounded):
        return Engine.MERC
    return Engine.ONEDNN if ONEDNN and not BLAS_AT_HOME and not rounded else Engine.PYTORCH


def _rounded() -> bool:
    """Whether products may round what they multiply to bfloat16, and PyTorch has oneDNN compute them for that."""
    return torch.get_float32_matmul_precision() == "medium" and multiplies_bfloat16(torch.device("cpu"))


@cache
def _units() -> str:
    """What merc's operators, which must be loaded, multiply with: ``matrix``, ``vector`` or nothing of their own."""
    return str(torch.ops.merc.units())


@cache
def _multiplies_bfloat16() -> bool:
    """Whether merc's operators, which must be loaded, have vectors for bfloat16."""
    return bool(torch.ops.merc.multiplies_bfloat16())


class _Convolved(Function):
    @staticmethod
    def forward(ctx: Any, x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        ctx.save_for_backward(x_NI, weight_OI)
        return _rows(F.conv2d(_image(x_NI), weight_OI[..., None, None], bias_O))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_out_NO: Tensor) -> tuple[Tensor | None, ...]:
        x_NI, weight_OI = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        return (
            _convolved(of_out_NO, weight_OI) if of_x else None,
            _convolved(of_out_NO.T, x_NI) if of_weight else None,
            of_out_NO.sum(0) if of_bias else None,
        )


def _convolved(a_NI: Tensor, b_IO: Tensor) -> Tensor:
    """A B."""
    return _rows(F.conv_transpose2d(_image(a_NI), b_IO[..., None, None]))


def _image(x_NI: Tensor) -> Tensor:
    """(N, I) rows as a (1, I, 1, N) image whose channels lie together, as convolutions like them."""
    return x_NI.contiguous()[None, None].permute(0, 3, 1, 2)


def _rows(image: Tensor) -> Tensor:
    """(1, O, 1, N) → (N, O), the inverse of :func:`_image`."""
    return image.permute(0, 2, 3, 1).flatten(0, 2)
