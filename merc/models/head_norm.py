"""Layer norm, GELU and dropout of wide rows as one operation that keeps little."""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from merc.kernels import drops, native
from merc.models.precision import at_least_single

EPSILON = 1e-5


def head_norm_gelu(
    x_NF: Tensor, weight_HD: Tensor, bias_HD: Tensor, dropout: float = 0.0, scale: float = 1.0
) -> Tensor:
    """Dropout of GELU(scale · (w_h · (x − mean)/sd + b_h)) of each head: (N, H·D) → (N, H·D).

    Args:
        x_NF: rows of H heads side by side, F = H·D.
        weight_HD: w of each head.
        bias_HD: b of each head.
        dropout: probability with which an entry is dropped.
        scale: of the norm.
    """
    if native(x_NF, weight_HD, bias_HD):
        affine = (at_least_single(weight_HD), at_least_single(bias_HD))
        return cast(Tensor, torch.ops.merc.head_norm_gelu(x_NF, *affine, scale, EPSILON, *drops(dropout)))
    weight_HD, bias_HD = scale * weight_HD, scale * bias_HD
    normed_NHD = F.layer_norm(x_NF.unflatten(1, weight_HD.shape), weight_HD.shape[1:], eps=EPSILON)
    out_NHD = F.gelu(torch.addcmul(bias_HD.to(normed_NHD.dtype), normed_NHD, weight_HD.to(normed_NHD.dtype)))
    out_NF = out_NHD.flatten(1)
    return F.dropout(out_NF, dropout) if dropout else out_NF
