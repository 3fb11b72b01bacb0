"""Products by merc's operators and through convolutions against PyTorch's own."""

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from merc.kernels import pytorch_alone
from merc.kernels.library import loaded
from merc.models import linear as module
from merc.models.linear import Engine, Linear, linear, product

SIZES = st.integers(1, 9)


def numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, requires_grad=True)


def assert_same(ours: Callable[..., Tensor], plain: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> None:
    """Values and gradients are equal."""
    out, expected = ours(*inputs), plain(*inputs)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=5e-5)
    weights = torch.randn_like(expected)
    gradients = torch.autograd.grad((out * weights).sum(), inputs)
    for gradient, other in zip(gradients, torch.autograd.grad((expected * weights).sum(), inputs), strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-4, atol=1e-4)


OURS = [Engine.ONEDNN, pytest.param(Engine.MERC, marks=pytest.mark.skipif(not loaded(), reason="no compiler"))]


@pytest.fixture(params=OURS, scope="class")
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """What computes products of any size; merc's operators leave them to the BLAS where they have no units for them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_worthwhile", lambda engine, lowered: 0)
        patch.setattr(module, "_engine_of_large", lambda lowered: request.param)
        yield request.param


@pytest.mark.usefixtures("engine")
class TestEngines:
    @settings(max_examples=40, deadline=None)
    @given(shape=st.lists(SIZES, min_size=1, max_size=3), outputs=SIZES, bias=st.booleans())
    def test_linear(self, shape: list[int], outputs: int, bias: bool) -> None:
        torch.manual_seed(0)
        inputs = (numbers(*shape, 5), numbers(outputs, 5), *([numbers(outputs)] if bias else []))
        assert_same(linear, F.linear, inputs)

    @settings(max_examples=40, deadline=None)
    @given(rows=SIZES, channels=SIZES, outputs=SIZES)
    def test_product(self, rows: int, channels: int, outputs: int) -> None:
        torch.manual_seed(0)
        x_NI, weight_IO = torch.randn(rows, channels), torch.randn(channels, outputs)
        torch.testing.assert_close(product(x_NI, weight_IO), x_NI @ weight_IO)

    def test_a_row_of_every_other_head(self) -> None:
        torch.manual_seed(0)
        x_NHI, weight_IHO = torch.randn(7, 3, 5), torch.randn(5, 3, 4)
        ours_HNO = torch.stack([product(x_NHI[:, h], weight_IHO[:, h]) for h in range(3)])
        torch.testing.assert_close(ours_HNO, torch.einsum("nhi,iho->hno", x_NHI, weight_IHO))

    def test_a_frozen_weight_and_data_have_no_gradient(self) -> None:
        layer = Linear(5, 4)
        layer.weight.requires_grad_(False)
        layer(torch.randn(3, 5)).sum().backward()
        assert layer.weight.grad is None
        assert layer.bias.grad is not None


@pytest.mark.parametrize("halves", [False, True])
@pytest.mark.parametrize("units", ["matrix", "vector", ""])
@pytest.mark.parametrize("onednn", [False, True])
@pytest.mark.parametrize("at_home", [False, True])
def test_what_computes_large_products(
    monkeypatch: pytest.MonkeyPatch, at_home: bool, onednn: bool, units: str, halves: bool
) -> None:
    monkeypatch.setattr(module, "BLAS_AT_HOME", at_home)
    monkeypatch.setattr(module, "ONEDNN", onednn)
    monkeypatch.setattr(module, "_units", lambda: units)
    monkeypatch.setattr(module, "_multiplies_bfloat16", lambda: halves)
    monkeypatch.setattr(module, "multiplies_bfloat16", lambda _: onednn)
    large, small = torch.randn(700, 160), torch.randn(3, 160)
    weight = torch.randn(160, 160)
    without = Engine.ONEDNN if onednn and not at_home else Engine.PYTORCH
    vectors = loaded() and units == "vector" and not at_home
    expected = Engine.MERC if vectors or (loaded() and units == "matrix") else without
    lowered = Engine.MERC if vectors and halves else Engine.PYTORCH
    assert module.engine_of(large, weight) is expected
    assert module.engine_of(large.bfloat16(), weight) is lowered
    assert module.engine_of(large.bfloat16(), weight.bfloat16()) is lowered
    assert module.compiled_for_each_shape(large.device) == (expected is Engine.ONEDNN)
    with pytorch_alone():
        assert module.engine_of(large, weight) is without
    with torch.autocast("cpu", torch.bfloat16):
        assert module.engine_of(large, weight) is lowered
        assert module.engine_of(small, weight) is Engine.PYTORCH
        assert module.engine_of(small.bfloat16(), weight) is lowered  # PyTorch would convert the weight
        assert module.compiled_for_each_shape(large.device) == (onednn and lowered is Engine.PYTORCH)
    with torch.autocast("cpu", torch.float16):
        assert module.engine_of(large, weight) is Engine.PYTORCH
    assert module.engine_of(small, weight) is Engine.PYTORCH
    assert module.engine_of(large.double(), weight.double()) is Engine.PYTORCH


@pytest.mark.parametrize("halves", [False, True])
@pytest.mark.parametrize("units", ["matrix", "vector", ""])
def test_what_computes_products_of_rounded_numbers(monkeypatch: pytest.MonkeyPatch, units: str, halves: bool) -> None:
    monkeypatch.setattr(module, "ONEDNN", True)
    monkeypatch.setattr(module, "BLAS_AT_HOME", False)
    monkeypatch.setattr(module, "_rounded", lambda: True)
    monkeypatch.setattr(module, "_units", lambda: units)
    monkeypatch.setattr(module, "_multiplies_bfloat16", lambda: halves)
    ours = loaded() and (units == "matrix" or (units == "vector" and halves))
    large, weight = torch.randn(700, 160), torch.randn(160, 160)
    assert module.engine_of(large, weight) is (Engine.MERC if ours else Engine.PYTORCH)
    assert module.compiled_for_each_shape(large.device) == (not ours)


def test_products_are_rounded_where_onednn_multiplies_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not module._rounded()
    torch.set_float32_matmul_precision("medium")
    assert module._rounded() == torch.ops.mkldnn._is_mkldnn_bf16_supported()
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    assert not module._rounded()


def test_no_rows_at_all() -> None:
    inputs = numbers(0, 160), numbers(20, 160), numbers(20)
    assert_same(linear, F.linear, inputs)
    assert not product(torch.randn(20, 0), torch.randn(0, 160)).any()


@pytest.mark.parametrize("rows", [3, 700])
def test_small_and_large_products(rows: int) -> None:
    torch.manual_seed(0)
    assert rows * 160 * 160 > module.WORTHWHILE or rows == 3
    assert_same(linear, F.linear, (numbers(rows, 160), numbers(160, 160), numbers(160)))


def test_gradients_of_large_products_lie_in_one_piece() -> None:
    inputs = (numbers(700, 160), numbers(160, 160), numbers(160))
    for gradient in torch.autograd.grad(linear(*inputs).square().sum(), inputs):
        assert gradient.is_contiguous()


def test_double_precision_is_left_to_pytorch() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(800, 256).double(), torch.randn(256, 256).double()
    assert torch.equal(linear(x, weight), F.linear(x, weight))
    assert torch.equal(product(x, weight), x @ weight)


def assert_close_for_bfloat16(ours: Tensor, exact: Tensor) -> None:
    """As close as rounding what is multiplied, what comes out and its gradient leaves it."""
    assert (ours.double() - exact).abs().max() <= 0.02 * exact.abs().max()


@pytest.mark.parametrize("rows", [2, 700])
@pytest.mark.parametrize("x_half", [False, True])
@pytest.mark.parametrize("w_half", [False, True])
def test_under_autocast_every_product_is_of_bfloat16(rows: int, x_half: bool, w_half: bool) -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(rows, 1200) / 35, torch.randn(160, 1200), torch.randn(160)
    inputs = (x.bfloat16() if x_half else x, weight.bfloat16() if w_half else weight, bias)
    inputs = tuple(i.requires_grad_() for i in inputs)
    with torch.autocast("cpu", torch.bfloat16):
        out, without_bias = linear(*inputs), product(inputs[0].detach(), inputs[1].detach().T)
    assert out.dtype == without_bias.dtype == torch.bfloat16
    exact = [i.detach().double().requires_grad_() for i in inputs]
    assert_close_for_bfloat16(out, F.linear(*exact))
    assert_close_for_bfloat16(without_bias, exact[0] @ exact[1].T)
    weights = torch.randn(rows, 160).double()
    ours = torch.autograd.grad((out * weights.bfloat16()).sum(), inputs)
    theirs = torch.autograd.grad((F.linear(*exact) * weights).sum(), exact)
    for gradient, other, x in zip(ours, theirs, inputs, strict=True):
        assert gradient.dtype == x.dtype
        assert_close_for_bfloat16(gradient, other)


def test_under_autocast_precision_is_lowered() -> None:
    x, layer = torch.randn(800, 256), Linear(256, 256)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
