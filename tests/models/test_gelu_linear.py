"""The second half of a feed-forward network against its parts in PyTorch."""

import pytest
import torch
from torch import nn

from merc.kernels.library import loaded
from merc.models.gelu_linear import Approximation, GeluLinear


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_it_is_gelu_and_a_linear_map(approximate: Approximation) -> None:
    torch.manual_seed(0)
    layer, x = GeluLinear(12, 5, dropout=0.5, approximate=approximate).eval(), torch.randn(7, 12)
    expected = nn.Sequential(nn.GELU(approximate), layer_like(layer))(x)
    torch.testing.assert_close(layer(x), expected)


def layer_like(layer: GeluLinear) -> nn.Linear:
    plain = nn.Linear(layer.in_features, layer.out_features)
    plain.load_state_dict(layer.state_dict())
    return plain


def test_dropout_is_for_training_alone() -> None:
    torch.manual_seed(0)
    layer, x = GeluLinear(200, 50, dropout=0.5), torch.randn(30, 200)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


@pytest.mark.skipif(not loaded(), reason="there is no C++ compiler")
def test_what_is_kept_for_the_backward_pass() -> None:
    """The wide rows once, not also what is made of them."""
    kept: list[torch.Tensor] = []
    layer = GeluLinear(64, 8, dropout=0.5)
    x = torch.randn(10, 64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t), t)[1], lambda t: t):
        layer(x)
    assert {t.data_ptr() for t in kept} == {x.data_ptr(), layer.weight.data_ptr()}


def test_no_rows_at_all() -> None:
    layer, x = GeluLinear(5, 4), torch.randn(0, 5, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None
    assert layer.weight.grad is not None
    assert not layer.weight.grad.any()


def test_a_frozen_weight_and_data_have_no_gradient() -> None:
    layer = GeluLinear(5, 4)
    layer.weight.requires_grad_(False)
    layer(torch.randn(3, 5)).sum().backward()
    assert layer.weight.grad is None
    assert layer.bias.grad is not None


def test_under_autocast_precision_is_lowered() -> None:
    layer, x = GeluLinear(16, 4, dropout=0.5), torch.randn(8, 16, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert x.grad is not None
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype == torch.float32
