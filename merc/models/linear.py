"""Linear maps at the speed of the processor.

PyTorch leaves products in single precision to the BLAS that it was built with. On processors of another maker than that
BLAS it may be half as fast as oneDNN, which PyTorch has for convolutions: a convolution whose kernel is one pixel, over
an image of one row whose pixels are the utterances, is the same product. N rows of I channels become rows of O channels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WORTHWHILE = 2**24  # multiplications below which a convolution costs more to set up than it saves


class Linear(nn.Linear):
    """``nn.Linear`` by :func:`linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) → (..., O)."""
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """X Wᵀ + b, as ``F.linear``: (..., I) → (..., O)."""
    if not _convolved(x, weight_OI):
        return F.linear(x, weight_OI, bias_O)
    image = F.conv2d(_image(x.flatten(0, -2)), weight_OI[..., None, None], bias_O)
    return _rows(image).unflatten(0, x.shape[:-1])


def product(x_NI: Tensor, weight_IO: Tensor) -> Tensor:
    """X W: (N, I) → (N, O)."""
    if not _convolved(x_NI, weight_IO):
        return x_NI @ weight_IO
    return _rows(F.conv_transpose2d(_image(x_NI), weight_IO[..., None, None]))


def _convolved(x: Tensor, weight: Tensor) -> bool:
    """Whether a product in single precision on the CPU is large enough; lower precisions use oneDNN anyway."""
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and torch.backends.mkldnn.is_available()
        and x.numel() // x.shape[-1] * weight.numel() >= WORTHWHILE
    )


def _image(x_NI: Tensor) -> Tensor:
    """(N, I) rows as a (1, I, 1, N) image whose channels lie together, as convolutions like them."""
    return x_NI.contiguous()[None, None].permute(0, 3, 1, 2)


def _rows(image: Tensor) -> Tensor:
    """(1, O, 1, N) → (N, O), the inverse of :func:`_image`."""
    return image.permute(0, 2, 3, 1)[0, 0]
