"""Products by merc's operators against products in double precision, and the BLAS where it must compute them."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from merc.kernels.library import loaded

pytestmark = pytest.mark.skipif(not loaded(), reason="there is no C++ compiler")

LAYOUTS = st.sampled_from(["rows", "columns", "part of wider rows", "every other number", "one row again and again"])
SIZES = st.one_of(st.integers(0, 70), st.sampled_from([96, 342, 512, 513, 800, 1300]))


def product(a: Tensor, b: Tensor, bias: Tensor | None = None, half: bool = False) -> Tensor:
    out: Tensor = torch.ops.merc.product(a, b, bias, half)
    return out


def lying(layout: str, rows: int, columns: int) -> Tensor:
    """Random numbers in memory as a layout has them."""
    match layout:
        case "rows":
            return torch.randn(rows, columns)
        case "columns":
            return torch.randn(columns, rows).T
        case "part of wider rows":
            return torch.randn(rows, 2, columns)[:, 1]
        case "one row again and again":
            return torch.randn(1, columns).expand(rows, columns)
        case _:
            return torch.randn(2 * rows, 2 * columns)[::2, ::2]


def assert_as_exact_as_single_precision(ours: Tensor, a: Tensor, b: Tensor, alike: bool = True) -> None:
    """No farther from the product in double precision than rounding every term and every sum takes it.

    Where terms are ``alike``, errors cancel; where one outweighs the others, every sum may be rounded as far as it was.
    """
    exact = a.double() @ b.double()
    roundings = 4 + (a.shape[1] ** 0.5 if alike else a.shape[1])
    bound = (a.double().abs() @ b.double().abs()) * 2.0**-24 * roundings + 1e-30
    assert ((ours.double() - exact).abs() <= bound).all()


@pytest.fixture(params=[1, 2, 6])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("inner", range(1, 544, 31))
def test_any_number_of_inner_numbers(inner: int) -> None:
    torch.manual_seed(0)
    a, b = torch.randn(150, inner), torch.randn(inner, 80)
    assert_as_exact_as_single_precision(product(a, b), a, b)


@settings(max_examples=60, deadline=None)
@given(rows=SIZES, inner=SIZES, columns=SIZES, a_layout=LAYOUTS, b_layout=LAYOUTS, seed=st.integers(0, 9))
def test_any_shape_and_layout(rows: int, inner: int, columns: int, a_layout: str, b_layout: str, seed: int) -> None:
    torch.manual_seed(seed)
    a, b = lying(a_layout, rows, inner), lying(b_layout, inner, columns)
    ours = product(a, b)
    assert ours.shape == (rows, columns)
    assert_as_exact_as_single_precision(ours, a, b)


@pytest.fixture(params=["highest", "high", "medium"])
def precision(request: pytest.FixtureRequest) -> str:
    torch.set_float32_matmul_precision(request.param)
    return str(request.param)


@pytest.mark.usefixtures("precision")
def test_a_bias_is_added(threads: int) -> None:
    torch.manual_seed(0)
    a, b, bias = torch.randn(50, 600), torch.randn(600, 1300), torch.randn(1300)
    torch.testing.assert_close(product(a, b, bias), product(a, b) + bias, rtol=1e-4, atol=1e-4)


def test_a_bias_is_added_exactly() -> None:
    torch.manual_seed(0)
    a, b, bias = torch.randn(50, 600), torch.randn(600, 70), torch.randn(70)
    torch.testing.assert_close(product(a, b, bias).double(), a.double() @ b.double() + bias, rtol=1e-5, atol=1e-4)


def test_a_product_is_written_where_it_belongs(threads: int) -> None:
    torch.manual_seed(0)
    a, b, out = torch.randn(130, 600), torch.randn(600, 70), torch.zeros(130, 3, 70)
    torch.ops.merc.product_out(a, b, out[:, 1])
    assert_as_exact_as_single_precision(out[:, 1], a, b)
    assert not out[:, [0, 2]].any()


@pytest.mark.usefixtures("precision")
@pytest.mark.parametrize("columns", [200, 1300])
def test_the_number_of_threads_changes_nothing(threads: int, columns: int) -> None:
    torch.manual_seed(0)
    a, b = torch.randn(300, 700), torch.randn(700, columns)
    ours = product(a, b)
    torch.set_num_threads(1)
    assert torch.equal(ours, product(a, b))


@settings(max_examples=40, deadline=None)
@given(exponents=st.lists(st.integers(-60, 60), min_size=40, max_size=40))
@example(exponents=[15] + 39 * [0])
def test_numbers_of_any_size(exponents: list[int]) -> None:
    torch.manual_seed(0)
    a = torch.randn(33, 40) * torch.tensor(exponents).float().exp2()
    b = torch.randn(40, 35)
    assert_as_exact_as_single_precision(product(a, b), a, b, alike=False)


UNITS = torch.ops.merc.units() if loaded() else ""
ON_MATRIX_UNITS = pytest.mark.skipif(UNITS != "matrix", reason="this processor has no matrix units")


@pytest.mark.skipif(not UNITS, reason="this processor has no units that are used for products")
def test_units_are_used() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(200, 300), torch.randn(300, 100)
    assert not torch.equal(product(a, b), a @ b)


def error(precision: str, a: Tensor, b: Tensor) -> float:
    """Largest error of a product, in shares of the sum of the absolute values of its terms."""
    torch.set_float32_matmul_precision(precision)
    a_, b_ = a.double(), b.double()
    return float(((product(a, b).double() - a_ @ b_).abs() / (a_.abs() @ b_.abs())).max())


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 900), inner=SIZES.filter(bool), columns=SIZES.filter(bool), layout=LAYOUTS)
def test_as_exact_as_pytorch_is_told_to_be(rows: int, inner: int, columns: int, layout: str) -> None:
    torch.manual_seed(0)
    a, b = lying(layout, rows, inner), lying(layout, inner, columns)
    rounding = 2.0**-24 * (4 + inner**0.5)
    # One part leaves 2⁻⁸ of a number at most, two parts 2⁻¹⁷; the product of the second parts is not added.
    assert error("medium", a, b) <= 2 * 2.0**-8 * (1 + 2.0**-8) + rounding
    assert error("high", a, b) <= (2 * 2.0**-17 + 2.0**-16) * (1 + 2.0**-8) + rounding
    assert error("highest", a, b) <= rounding


@ON_MATRIX_UNITS
def test_fewer_products_are_less_exact() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(90, 128), torch.randn(128, 90)
    assert error("medium", a, b) > 2.0**-12 > 2.0**-17 > error("high", a, b) > 2.0**-21 > error("highest", a, b)


ROUNDED = pytest.mark.skipif(
    not (loaded() and torch.ops.merc.multiplies_bfloat16()), reason="this processor has no vectors for bfloat16"
)


@ROUNDED
@pytest.mark.parametrize("inner", [*range(1, 70), 1023, 1024, 1025, 2500])
def test_any_number_of_inner_numbers_of_bfloat16(inner: int) -> None:
    torch.manual_seed(0)
    a, b = torch.randn(150, inner).bfloat16(), torch.randn(inner, 80).bfloat16()
    assert_as_exact_as_single_precision(product(a, b), a, b)


@ROUNDED
@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(SIZES, st.one_of(SIZES, st.just(1100)), SIZES),
    layouts=st.tuples(LAYOUTS, LAYOUTS),
    halves=st.tuples(st.booleans(), st.booleans(), st.booleans()).filter(any),
    bias=st.booleans(),
)
def test_bfloat16_of_any_shape_and_layout(
    shape: tuple[int, int, int], layouts: tuple[str, str], halves: tuple[bool, bool, bool], bias: bool
) -> None:
    torch.manual_seed(0)
    rows, inner, columns = shape
    a, b = lying(layouts[0], rows, inner), lying(layouts[1], inner, columns)
    added = torch.randn(columns) if bias else None
    # What is multiplied is rounded in any case.
    a_, b_ = a.bfloat16().double(), b.bfloat16().double()
    factors = (a.bfloat16() if halves[0] else a, b.bfloat16() if halves[1] else b)
    ours = product(*factors, added, halves[2])
    assert ours.dtype == (torch.bfloat16 if halves[2] else torch.float32)
    exact = a_ @ b_ + (added.double() if added is not None else 0.0)
    bound = (a_.abs() @ b_.abs() + 4) * 2.0**-24 * (4 + inner**0.5) + 1e-30
    if halves[2]:
        bound = bound + (exact.abs() + bound) * 2.0**-8
    assert ((ours.double() - exact).abs() <= bound).all()


@ROUNDED
def test_a_part_of_wider_rows_of_bfloat16() -> None:
    torch.manual_seed(0)
    wide, b, out = torch.randn(130, 3, 601).bfloat16(), torch.randn(601, 70), torch.zeros(130, 3, 70).bfloat16()
    torch.ops.merc.product_out(wide[:, 1], b, out[:, 1])
    expected = (wide[:, 1].double() @ b.bfloat16().double()).bfloat16()
    torch.testing.assert_close(out[:, 1], expected, rtol=2.0**-7, atol=1e-4)
    assert not out[:, [0, 2]].any()
    of_weight = product(wide[:, 1].T, expected)
    torch.testing.assert_close(of_weight, (wide[:, 1].double().T @ expected.double()).float(), rtol=1e-4, atol=1e-2)


@ROUNDED
@pytest.mark.parametrize("strange", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("half", [False, True])
def test_bfloat16_that_is_not_finite_comes_out_as_it_must(strange: float, half: bool) -> None:
    torch.manual_seed(0)
    a, b = torch.randn(40, 70).bfloat16(), torch.randn(70, 45)
    a[38, 44] = strange
    expected = a.float() @ b.bfloat16().float()
    torch.testing.assert_close(product(a, b, None, half).float(), expected, equal_nan=True, rtol=0.01, atol=1e-3)


@pytest.mark.skipif(not loaded() or torch.ops.merc.multiplies_bfloat16(), reason="this processor multiplies bfloat16")
def test_bfloat16_is_refused_where_nothing_multiplies_it() -> None:
    with pytest.raises(RuntimeError, match="bfloat16"):
        product(torch.zeros(3, 4).bfloat16(), torch.zeros(4, 5))
    with pytest.raises(RuntimeError, match="bfloat16"):
        product(torch.zeros(3, 4), torch.zeros(4, 5), None, True)


@pytest.mark.parametrize("strange", [float("inf"), float("-inf"), float("nan"), 3.4e38])
@pytest.mark.parametrize("which", [0, 1])
def test_what_is_not_finite_comes_out_as_from_the_blas(strange: float, which: int) -> None:
    torch.manual_seed(0)
    factors = [torch.randn(40, 700), torch.randn(700, 45)]
    factors[which][38, 44] = strange
    if which == 0:
        factors[0][5, 650] = strange
    a, b = factors
    bias, out = torch.randn(45), torch.zeros(40, 3, 45)
    # Vectors compute it themselves, everything else leaves it to the BLAS.
    rounding = {"rtol": 1e-5, "atol": 1e-4} if UNITS == "vector" else {"rtol": 0.0, "atol": 0.0}
    torch.testing.assert_close(product(a, b, bias), torch.addmm(bias, a, b), equal_nan=True, **rounding)
    torch.ops.merc.product_out(a, b, out[:, 1])
    torch.testing.assert_close(out[:, 1], a @ b, equal_nan=True, **rounding)
    assert not out[:, [0, 2]].any()


@pytest.mark.parametrize(
    ("a", "b", "bias", "said"),
    [
        (torch.zeros(3, 4), torch.zeros(5, 4), None, "no product"),
        (torch.zeros(3, 4, 5), torch.zeros(5, 4), None, "no product"),
        (torch.zeros(3, 4).double(), torch.zeros(4, 5).double(), None, "float32"),
        (torch.zeros(3, 4), torch.zeros(4, 5), torch.zeros(4), "no bias"),
    ],
)
def test_what_does_not_fit_is_refused(a: Tensor, b: Tensor, bias: Tensor | None, said: str) -> None:
    with pytest.raises(RuntimeError, match=said):
        product(a, b, bias)


def test_no_place_is_refused() -> None:
    with pytest.raises(RuntimeError, match="no place"):
        torch.ops.merc.product_out(torch.zeros(3, 4), torch.zeros(4, 5), torch.zeros(3, 4))
    x = torch.zeros(4, 4)
    with pytest.raises(RuntimeError, match="memory"):
        torch.ops.merc.product_out(x, torch.zeros(4, 4), x)
