"""Layer norm and GELU in one pass against the two layers of PyTorch."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from merc.models.head_norm import head_norm_gelu

HEADS, DIM = 3, 5


def plain(x_NF: Tensor, weight_HD: Tensor, bias_HD: Tensor) -> Tensor:
    heads = [
        F.gelu(F.layer_norm(x_ND, (DIM,), weight_D, bias_D))
        for x_ND, weight_D, bias_D in zip(x_NF.split(DIM, dim=1), weight_HD, bias_HD, strict=True)
    ]
    return torch.cat(heads, dim=1)


def doubles(rows: int) -> list[Tensor]:
    torch.manual_seed(0)
    return [
        torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in ((rows, HEADS * DIM), *2 * [(HEADS, DIM)])
    ]


@pytest.mark.parametrize("rows", [1, 2, 7, 20])
def test_results_and_gradients_equal_the_two_layers(rows: int) -> None:
    tensors = doubles(rows)
    ours, expected = head_norm_gelu(*tensors), plain(*tensors)
    torch.testing.assert_close(ours, expected)
    weights = torch.randn_like(expected)
    for gradient, other in zip(
        *(torch.autograd.grad((out * weights).sum(), tensors) for out in (ours, expected)), strict=True
    ):
        torch.testing.assert_close(gradient, other)


def test_gradients_are_derivatives() -> None:
    assert torch.autograd.gradcheck(head_norm_gelu, doubles(5))


def test_bfloat16_is_close() -> None:
    x_NF, weight_HD, bias_HD = (x.detach().float() for x in doubles(20))
    half = head_norm_gelu(x_NF.bfloat16(), weight_HD, bias_HD)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), head_norm_gelu(x_NF, weight_HD, bias_HD), atol=0.05, rtol=0.05)
