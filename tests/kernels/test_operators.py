"""The operators in C++ against the same functions of double-precision numbers, which PyTorch's operators compute."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.func import functional_call

from merc.kernels import native, pytorch_alone
from merc.kernels.library import loaded
from merc.models.attention import attend
from merc.models.difference_norm import difference_norm
from merc.models.dropout import Masks, RandomBytes, add_dropped, apply_mask, dropout, keep_scale
from merc.models.gelu_linear import Approximation, gelu_linear
from merc.models.graphs import additive
from merc.models.graphs.additive import Scores, attend_neighbours
from merc.models.graphs.banded import attention_band, ends, mix
from merc.models.graphs.neighbourhood import Neighbourhood, Relation, relation_graphs
from merc.models.head_norm import head_norm_gelu
from merc.models.lambdas import lambdas
from merc.models.linear import Engine
from merc.models.sum_norm import SumNorm
from tests.models.test_banded import HEADS, any_graph, batch_of, doubles

pytestmark = pytest.mark.skipif(not loaded(), reason="there is no C++ compiler")

MULTIPLIES_BFLOAT16 = loaded() and torch.ops.merc.multiplies_bfloat16()


def assert_close(ours: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(ours.double(), expected.double(), atol=2e-5, rtol=2e-4)


def assert_agree(function: Callable[..., Tensor], *inputs: Tensor) -> None:
    """Values and gradients in single precision, by the operators, and in double precision."""
    singles = [x.detach().float().requires_grad_() for x in inputs]
    assert native(*singles)
    assert not native(*inputs)
    ours, expected = function(*singles), function(*inputs)
    assert ours.dtype == torch.float32
    assert_close(ours, expected)
    # Gradients that lie in rows, on top of each other, and across.
    uses: list[Callable[[Tensor], Tensor]] = [lambda x: x, lambda x: x.sum(0), lambda x: x.transpose(0, -1)]
    for use in uses:
        weights = torch.randn_like(use(expected))
        gradients = torch.autograd.grad((use(ours) * weights.float()).sum(), singles, retain_graph=True)
        others = torch.autograd.grad((use(expected) * weights).sum(), inputs, retain_graph=True)
        for gradient, other in zip(gradients, others, strict=True):
            assert_close(gradient, other)


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("rows", [1, 7, 40])
@pytest.mark.parametrize("dim", [4, 5, 16, 35, 70])
def test_norm_and_gelu(threads: int, rows: int, dim: int) -> None:
    torch.manual_seed(0)
    rows_NF = (3 * doubles(rows, 3 * dim).detach()).requires_grad_()
    assert_agree(head_norm_gelu, rows_NF, doubles(3, dim), doubles(3, dim))


def test_a_scaled_norm() -> None:
    torch.manual_seed(0)
    inputs = (doubles(7, 3 * 35), doubles(3, 35), doubles(3, 35))
    assert_agree(lambda x, w, b: head_norm_gelu(x, w, b, scale=0.3), *inputs)
    torch.testing.assert_close(
        head_norm_gelu(*inputs, scale=0.3), head_norm_gelu(inputs[0], *(0.3 * x for x in inputs[1:]))
    )


def layer_norm_of_sum(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, dropout: float = 0.0) -> Tensor:
    """:class:`SumNorm` with this weight and bias."""
    norm = SumNorm(x.shape[1])
    return functional_call(norm, {"weight": weight, "bias": bias}, (x, y, dropout))


@pytest.mark.parametrize("rows", [1, 7, 40])
@pytest.mark.parametrize("dim", [4, 5, 16, 35, 70])
def test_norm_of_a_sum(threads: int, rows: int, dim: int) -> None:
    torch.manual_seed(0)
    assert_agree(layer_norm_of_sum, doubles(rows, dim), doubles(rows, dim), doubles(dim), doubles(dim))


@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("y_dtype", [torch.float32, torch.bfloat16])
def test_a_normed_sum_has_the_gradients_of_the_sum(x_dtype: torch.dtype, y_dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, y = (torch.randn(40, 35, dtype=dtype, requires_grad=True) for dtype in (x_dtype, y_dtype))
    affine, weights = (torch.rand(35) + 0.5, torch.randn(35)), torch.randn(40, 35)
    torch.manual_seed(1)
    ours = layer_norm_of_sum(x, y, *affine, 0.25)
    torch.manual_seed(1)
    sums = add_dropped(x, y, 0.25)
    expected = torch.nn.functional.layer_norm(sums.float(), (35,), *affine)
    assert ours.dtype == sums.dtype
    rounding = {"atol": 2e-5, "rtol": 2e-4} if sums.dtype == torch.float32 else {"atol": 0.02, "rtol": 0.01}
    torch.testing.assert_close(ours.float(), expected, **rounding)
    gradients = (torch.autograd.grad((out * weights).sum(), [x, y]) for out in (ours, expected))
    for gradient, other in zip(*gradients, strict=True):
        assert gradient.dtype == other.dtype
        atol, rtol = (2e-5, 2e-4) if gradient.dtype == torch.float32 else (0.03, 0.01)
        torch.testing.assert_close(gradient, other, atol=atol, rtol=rtol)


@pytest.mark.parametrize("rows", [1, 7, 40])
@pytest.mark.parametrize("width", [4, 5, 16, 35])
def test_norm_of_a_difference(threads: int, rows: int, width: int) -> None:
    torch.manual_seed(0)
    inputs = doubles(rows, 2 * HEADS, width), torch.tensor(0.4, dtype=torch.float64).requires_grad_(), doubles(width)
    assert_agree(lambda x, share, w: difference_norm(x, share, w, 1e-5, scale=0.7), *inputs)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
@pytest.mark.parametrize("rows", [1, 40, 300])
def test_a_linear_map_behind_gelu(threads: int, rows: int, approximate: Approximation) -> None:
    torch.manual_seed(0)
    inputs = (3 * doubles(rows, 35).detach()).requires_grad_(), doubles(6, 35), doubles(6)
    assert_agree(lambda x, w, b: gelu_linear(x, w, b, 0.0, approximate, 1.5), *inputs)


@pytest.mark.parametrize(("approximate", "exact_to"), [("none", 8e-7), ("tanh", 2e-6)])
def test_gelu_of_numbers_of_any_size(approximate: Approximation, exact_to: float) -> None:
    tails = torch.logspace(-40, 12, 5000)
    x = torch.cat([torch.linspace(-14, 14, 300_001), tails, -tails, torch.tensor([0.0, 1e30, -1e30])])
    settings_ = (1.0, approximate == "tanh", 0, 0)
    ours, slope = torch.ops.merc.gelu(x, *settings_), torch.ones_like(x)
    torch.ops.merc.gelu_backward(slope, x, *settings_)
    x_ = x.double().requires_grad_()
    exact = torch.nn.functional.gelu(x_, approximate=approximate)
    (of_x,) = torch.autograd.grad(exact.sum(), x_)
    assert ((ours.double() - exact).abs() <= exact_to * (1 + exact.abs())).all()
    known = x.abs() < 1e10  # of larger numbers PyTorch's own is none
    assert ((slope.double() - of_x).abs()[known] <= exact_to).all()


@pytest.mark.parametrize("tanh", [False, True])
def test_gelu_of_what_is_not_finite(tanh: bool) -> None:
    ours = torch.ops.merc.gelu(torch.tensor([float("inf"), float("nan")]), 1.0, tanh, 0, 0)
    assert ours[0] == float("inf")
    assert ours[1].isnan()


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("maps", [HEADS, 2 * HEADS])
def test_ends_of_scores(threads: int, maps: int, transposed: bool) -> None:
    torch.manual_seed(0)

    def beside_the_rows(rows: Tensor, vectors_M2C: Tensor) -> Tensor:
        z_LHD = rows.transpose(0, 1) if transposed else 1 * rows
        return torch.cat([ends(z_LHD, vectors_M2C).flatten(1), (2 * z_LHD).flatten(1)], dim=1)

    rows = doubles(*((HEADS, 9, 44) if transposed else (9, HEADS, 44)))
    assert_agree(beside_the_rows, rows, doubles(maps, 2, 44 * HEADS // maps))


@settings(max_examples=40, deadline=None)
@any_graph
def test_attention_among_neighbours(
    dialogues: list[list[int]],
    window: tuple[int, int],
    relational: bool,
    difference: bool,
    padded: bool,
    self_loops: bool,
) -> None:
    torch.manual_seed(0)
    graph = relation_graphs(batch_of(dialogues, padded), *window, self_loops)["inter_speaker"]
    for heads, in_dim, out_dim in ((HEADS, 20, 12), (1, 20, 12), (1, 12, 20)):  # the map first, or the sum
        maps = heads * (2 if difference else 1)
        vectors_MS = doubles(maps, 2 * heads * out_dim // maps + 5 * relational)
        others = [doubles(heads, len(Relation), 5)] * relational + [doubles(heads)] * difference

        def received(x_NI: Tensor, weight_HID: Tensor, vectors_MS: Tensor, *others: Tensor) -> Tensor:
            scores = Scores(vectors_MS, others[0] if relational else None)
            coefficients_H = others[-1] if difference else None
            x_NI = x_NI if padded else x_NI.T.contiguous().T  # however the rows lie
            return attend_neighbours(x_NI, weight_HID, scores, coefficients_H, graph, dropout=0.0)

        x_NI, weight_HID = doubles(graph.neighbourhood.rows, in_dim), doubles(heads, in_dim, out_dim)
        assert_agree(received, x_NI, (weight_HID.detach() / 5).requires_grad_(), vectors_MS, *others)


@pytest.mark.parametrize("heads", [HEADS, 1])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("engine", [Engine.MERC, Engine.PYTORCH])
def test_whatever_multiplies_the_rows_of_a_graph(
    monkeypatch: pytest.MonkeyPatch, threads: int, engine: Engine, padded: bool, heads: int
) -> None:
    monkeypatch.setattr(additive, "engine_of", lambda x, weight: engine)
    torch.manual_seed(0)
    graph = relation_graphs(batch_of([[0, 1, 0, 0, 2], [1], [0, 0, 1] * 4], padded), 2, 3)["inter_speaker"]
    rows, coefficients_H = graph.neighbourhood.rows, torch.full((heads,), 0.5)
    inputs = doubles(rows, 20), (doubles(heads, 20, 12).detach() / 5).requires_grad_(), doubles(2 * heads, 12)
    assert_agree(lambda x, w, v: attend_neighbours(x, w, Scores(v), coefficients_H.to(x.dtype), graph, 0.0), *inputs)
    if engine is Engine.MERC and not MULTIPLIES_BFLOAT16:
        return
    halves = torch.bfloat16, torch.bfloat16 if engine is Engine.PYTORCH else torch.float32
    exact = [x.detach().to(dtype).double().requires_grad_() for x, dtype in zip(inputs[:2], halves, strict=True)]
    half = [x.detach().to(dtype).requires_grad_() for x, dtype in zip(exact, halves, strict=True)]
    scores = Scores(inputs[2].detach().float() / 4)
    ours = attend_neighbours(*half, scores, coefficients_H, graph, 0.0)
    expected = attend_neighbours(*exact, Scores(scores.vectors.double()), coefficients_H.double(), graph, 0.0)
    gradients = (torch.autograd.grad(out.sum(), both) for out, both in ((ours, half), (expected, exact)))
    for one, other in ((ours, expected), *zip(*gradients, strict=True)):
        assert (one.double() - other).abs().max() < 0.03 * other.abs().max()


def test_maps_that_share_a_table_of_relations(threads: int) -> None:
    torch.manual_seed(0)
    graph = relation_graphs(batch_of([[0, 1, 0, 0, 2]]), 2, 1)["inter_speaker"]
    assert_agree(
        lambda x, w, v, t: attend_neighbours(x, w, Scores(v, t), None, graph, dropout=0.0),
        *(doubles(5, 7), doubles(3, 7, 4), doubles(3, 2 * 4 + 10), doubles(1, 6, 10)),
    )


@pytest.mark.parametrize("shape", [(2, 5), (3, 2, 40)])
def test_lambdas(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    inputs = [(0.3 * doubles(*shape).detach()).requires_grad_() for _ in range(2)]
    assert_agree(lambda left, right: lambdas(left, right, 0.2)[None], *inputs)


of_any_band = given(
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=4),
    window=st.tuples(st.integers(0, 9), st.integers(0, 9)),
    heads=st.integers(1, 3),
    dim=st.integers(1, 70),
)


@settings(max_examples=30, deadline=None)
@of_any_band
def test_sums_over_a_band(lengths: list[int], window: tuple[int, int], heads: int, dim: int) -> None:
    torch.manual_seed(0)
    graph = relation_graphs(batch_of([[0] * length for length in lengths]), *window)["intra_speaker"]
    hood = graph.neighbourhood
    attention = doubles(hood.count, hood.size, heads, hood.width)
    assert_agree(lambda a, v: mix(a * graph.connected[:, :, None], v, hood), attention, doubles(hood.rows, dim))


@settings(max_examples=30, deadline=None)
@of_any_band
def test_sums_of_bfloat16_are_those_of_single_precision(
    lengths: list[int], window: tuple[int, int], heads: int, dim: int
) -> None:
    """Whole numbers, so that nothing is lost: what is multiplied is small, sums of it fit eight bits."""
    torch.manual_seed(0)
    graph = relation_graphs(batch_of([[0] * length for length in lengths]), *window)["intra_speaker"]
    hood = graph.neighbourhood
    attention = torch.randint(-1, 2, (hood.count, hood.size, heads, hood.width)) * graph.connected[:, :, None]
    values, weights = torch.randint(-2, 3, (hood.rows, dim)), torch.randint(-1, 2, (hood.rows, heads, dim))
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        inputs = attention.float().requires_grad_(), values.to(dtype).requires_grad_()
        out = mix(*inputs, hood)
        gradients = torch.autograd.grad((out * weights.to(dtype)).sum(), inputs)
        assert (out.dtype, gradients[1].dtype) == (dtype, dtype)
        results.append([x.float() for x in (out, gradients[0] * graph.connected[:, :, None], gradients[1])])
    for single, half in zip(*results, strict=True):
        torch.testing.assert_close(half, single, atol=0, rtol=0)


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 24) | st.integers(60, 140), min_size=1, max_size=4),
    window=st.none() | st.integers(0, 30),
    difference=st.booleans(),
    causal=st.booleans(),
    padding=st.sampled_from(["none", "seen", "unseen"]),
    strided=st.booleans(),
    width=st.sampled_from([5, 8, 16, 32, 64]),
)
def test_attention_among_utterances(
    lengths: list[int], window: int | None, difference: bool, causal: bool, padding: str, strided: bool, width: int
) -> None:
    torch.manual_seed(0)
    batch = batch_of([[0] * length for length in lengths], padding != "none", causal)
    maps = HEADS * (2 if difference else 1)

    def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if strided:  # as parts of wider rows are
            query, key = torch.cat([query, key], dim=1).split(maps, dim=1)
        to_padding = padding == "seen"
        settings_ = {"scale": 1.5, "difference": difference, "to_padding": to_padding, "window": window}
        out = attend(query, key, value, batch, 0.0, **settings_)
        # Where a row of padding sees nothing at all, nobody asks what it receives.
        return out if padding != "unseen" else out * batch.present[:, None, None]

    query, key = (doubles(batch.rows, maps, width).detach() * width**-0.25 for _ in range(2))
    assert_agree(attention, query.requires_grad_(), key.requires_grad_(), doubles(batch.rows, HEADS, 3 * width))


@pytest.mark.parametrize("shape", [(1, 3), (300, 70), (0, 4)])
@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("y_dtype", [torch.float32, torch.bfloat16])
def test_a_sum_of_two_precisions(
    threads: int, shape: tuple[int, int], x_dtype: torch.dtype, y_dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(shape, dtype=x_dtype), torch.randn(*shape[::-1], dtype=y_dtype).T
    x, y = x.requires_grad_(), y.requires_grad_()
    torch.manual_seed(1)
    ours = add_dropped(x, y, 0.25)
    torch.manual_seed(1)
    factors = dropout(torch.ones(shape), 0.25)
    expected = torch.addcmul(x.double(), y.double(), factors.double())
    assert ours.dtype == torch.promote_types(x_dtype, y_dtype)
    torch.testing.assert_close(ours, expected.to(ours.dtype))
    weights = torch.randn_like(ours)
    of_x, of_y = torch.autograd.grad(ours, [x, y], weights)
    assert torch.equal(of_x, weights.to(x_dtype))
    torch.testing.assert_close(of_y, (weights * factors).to(y_dtype))
    whole = add_dropped(x, y)
    assert torch.equal(whole, x + y)
    (of_y,) = torch.autograd.grad(whole, [y], weights)
    assert torch.equal(of_y, weights.to(y_dtype))
    with pytorch_alone():
        assert torch.equal(add_dropped(x, y), whole)


def test_what_does_not_fit_has_no_sum() -> None:
    with pytest.raises(RuntimeError, match="no sum of"):
        torch.ops.merc.add_dropped(torch.zeros(3, 4), torch.zeros(4), 0, 0)
    with pytest.raises(RuntimeError, match="columns of a matrix"):
        torch.ops.merc.column_sums(torch.zeros(3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(0, 3), (1, 1), (7, 37), (65, 128), (1000, 300)])
def test_sums_of_columns(threads: int, shape: tuple[int, int], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=dtype)
    for columns in (x, torch.cat([x, x], 1)[:, : shape[1]], x.T.contiguous().T, x.new_ones(shape[1]).expand(shape)):
        ours = torch.ops.merc.column_sums(columns)
        assert ours.dtype == torch.float32
        assert_close(ours, columns.double().sum(0))


def test_dropout_has_the_masks_that_its_hash_says() -> None:
    """Of bytes that are uniform and unrelated by the tests of the same hash in Python."""
    for numbers in (1, 1023, 70_001):
        x = torch.randn(numbers)
        masks = Masks(0.3, RandomBytes((-123456789, 987654321), x.device))
        seed = (-123456789 & 0xFFFFFFFF) | (987654321 << 32)
        ours = torch.ops.merc.dropout(x, seed, round(0.3 * 256))
        torch.testing.assert_close(ours, apply_mask(x, masks.take(x.shape), keep_scale(0.3)))


@pytest.mark.parametrize("threads_then", [1, 2, 5])
def test_masks_do_not_depend_on_the_number_of_threads(threads_then: int) -> None:
    x, before = torch.randn(300, 700), torch.get_num_threads()
    expected = torch.ops.merc.dropout(x, 7, 100)
    try:
        torch.set_num_threads(threads_then)
        assert torch.equal(torch.ops.merc.dropout(x, 7, 100), expected)
    finally:
        torch.set_num_threads(before)


def functions_with_dropout() -> dict[str, tuple[Callable[..., Tensor], list[Tensor]]]:
    torch.manual_seed(0)
    batch = batch_of([[0, 1] * 40, [0], [0, 1, 2] * 5])
    graph = relation_graphs(batch, 5, 4)["intra_speaker"]
    rows, units, halves = batch.rows, torch.eye(batch.rows), torch.full((HEADS,), 0.5)
    maps = [torch.randn(rows, 2 * HEADS, 5) for _ in range(2)]
    return {
        "rows": (lambda p, x: dropout(x, p), [torch.randn(rows, 35)]),
        "sum": (lambda p, x: add_dropped(torch.zeros_like(x), x, p), [torch.randn(rows, 35)]),
        "norm": (
            lambda p, x: head_norm_gelu(x, torch.ones(HEADS, 35), torch.ones(HEADS, 35), p),
            [torch.randn(rows, HEADS * 35)],
        ),
        "normed sum": (
            lambda p, x: layer_norm_of_sum(torch.zeros_like(x), x, torch.ones(35), torch.zeros(35), p),
            [torch.randn(rows, 35)],
        ),
        "gelu": (
            lambda p, x: gelu_linear(x, torch.eye(35), torch.zeros(35), p, "tanh", 1.5),
            [torch.randn(rows, 35)],
        ),
        "neighbours": (
            lambda p, v: attend_neighbours(units, units.repeat(HEADS, 1, 1), Scores(v), halves, graph, p),
            [torch.randn(2 * HEADS, rows)],
        ),
        "utterances": (
            lambda p, q, k: attend(q, k, units[:, None].expand(-1, HEADS, -1), batch, p, difference=True),
            maps,
        ),
    }


@pytest.mark.parametrize("name", ["rows", "sum", "norm", "gelu", "neighbours", "utterances"])
def test_dropout_inside_an_operator_drops_single_entries_of_value_and_gradient(name: str) -> None:
    function, inputs = functions_with_dropout()[name]
    inputs = [x.requires_grad_() for x in inputs]
    whole = function(0.0, *inputs)
    torch.manual_seed(1)
    dropped = function(0.25, *inputs)
    mask = torch.where(whole == 0, 1, dropped.detach() / whole.detach())
    assert ((mask.abs() < 1e-6) | ((mask - 1 / 0.75).abs() < 1e-3) | (whole.abs() < 1e-6)).all()
    share = (mask[whole.abs() > 1e-6] == 0).float().mean()
    assert share == pytest.approx(0.25, abs=0.02)
    mask = (mask > 0.5).float() / 0.75
    weights = torch.randn_like(whole)
    gradients = torch.autograd.grad((dropped * weights).sum(), inputs)
    for gradient, other in zip(gradients, torch.autograd.grad((whole * mask * weights).sum(), inputs), strict=True):
        assert_close(gradient, other)
    torch.manual_seed(1)
    assert torch.equal(function(0.25, *inputs), dropped)
    assert not torch.equal(function(0.25, *inputs), dropped)


@pytest.mark.parametrize("name", ["rows", "sum", "norm", "normed sum", "gelu", "neighbours", "utterances"])
def test_everything_may_be_dropped(name: str) -> None:
    function, inputs = functions_with_dropout()[name]
    assert not function(1.0, *inputs).any()


def test_nan_is_not_hidden() -> None:
    batch = batch_of([[0, 1, 0, 1]])
    graph = relation_graphs(batch, 1, 1)["inter_speaker"]
    nan = torch.full((4, HEADS, 2), float("nan"))
    scores = Scores(torch.full((HEADS, 8), float("nan")))
    assert attend_neighbours(torch.eye(4), torch.ones(HEADS, 4, 4), scores, None, graph, 0.0).isnan().all()
    assert head_norm_gelu(nan.flatten(1), torch.ones(HEADS, 2), torch.ones(HEADS, 2)).isnan().all()
    assert dropout(nan, 0.5).isnan().all()
    assert difference_norm(nan, torch.tensor(0.5), torch.ones(2), 1e-5, 1.0).isnan().all()
    assert layer_norm_of_sum(nan[:, 0], nan[:, 0], torch.ones(2), torch.ones(2)).isnan().all()
    infinite = torch.full((4, HEADS, 2), 1e30)
    assert attend(infinite, -infinite, infinite, batch, 0.0).isnan().all()


def test_a_query_that_is_nan_shows_in_what_it_receives_and_in_what_it_sends_back() -> None:
    batch, (query, key, value) = batch_of([[0] * 4, [0] * 3]), torch.randn(3, 7, HEADS, 2)
    query[1] = float("nan")
    out = attend(*(x.requires_grad_() for x in (query, key, value)), batch, 0.0)
    of_query, *of_others = torch.autograd.grad(out.sum(), (query, key, value))
    for rows in (out, of_query):
        assert rows.isnan().flatten(1).tolist() == [[i == 1] * HEADS * 2 for i in range(7)]
    for rows in of_others:  # of all that it looked at
        assert rows[:4].isnan().all()
        assert rows[4:].isfinite().all()


def test_a_score_that_is_nan_shows_in_gradients_over_a_graph() -> None:
    graph = relation_graphs(batch_of([[0, 1, 0, 1]]), 1, 1)["inter_speaker"]
    vectors = torch.full((HEADS, 8), float("nan"), requires_grad=True)
    x, weight = torch.eye(4, requires_grad=True), torch.ones(HEADS, 4, 4, requires_grad=True)
    out = attend_neighbours(x, weight, Scores(vectors), None, graph, 0.0)
    for gradient in torch.autograd.grad(out.sum(), (x, weight, vectors)):
        assert gradient.isnan().all()


def test_tensors_that_lie_anyhow() -> None:
    """Expanded ones, parts of others, and the padding as a column."""
    torch.manual_seed(0)
    batch = batch_of([[0, 1, 0], [0]], padded=True)
    batch = replace(batch, present=torch.stack([batch.present, ~batch.present], dim=1)[:, 0])
    wide = torch.randn(batch.rows, HEADS, 14)
    for query in (wide[..., ::2], wide[:1, :, :7].expand(batch.rows, -1, -1), wide[..., :7].mT.contiguous().mT):
        inputs = query, wide[..., 7:], wide[..., 3:5]
        expected = attend(*(x.double() for x in inputs), batch, 0.0)
        assert_close(attend(*inputs, batch, 0.0)[batch.present], expected[batch.present])


def test_gradients_that_others_share_are_not_written_into() -> None:
    torch.manual_seed(0)

    def of_sums(rows: Tensor, other: Tensor, vectors_M2C: Tensor) -> Tensor:
        z_LHD = 1 * rows
        return (ends(z_LHD, vectors_M2C).sum() + (3 * (z_LHD + other)).sum() + z_LHD.sum())[None, None]

    assert_agree(of_sums, doubles(9, HEADS, 8), doubles(9, HEADS, 8), doubles(HEADS, 2, 8))


def every_operator() -> dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]]:
    """What is differentiable, with inputs; all of it where something is dropped."""
    torch.manual_seed(0)
    batch = batch_of([[0, 1, 0, 1]])
    graph = relation_graphs(batch, 1, 1)["inter_speaker"]
    x, y, weight, bias = torch.randn(4, 6), torch.randn(4, 6), torch.randn(3, 6), torch.randn(3)
    heads, tables, merc = torch.randn(3, 4, HEADS, 6), torch.randn(1, 6, 10), torch.ops.merc
    return {
        "dropout": (lambda x: dropout(x, 0.5), (x,)),
        "add_dropped": (lambda x, y: add_dropped(x, y, 0.5), (x, y)),
        "sum_norm": (lambda *inputs: layer_norm_of_sum(*inputs, 0.5), (x, y, weight[0], weight[1])),
        "head_norm_gelu": (
            lambda *inputs: head_norm_gelu(*inputs, 0.5),
            (x, weight.view(-1, 3)[:2], weight.view(-1, 3)[2:4]),
        ),
        "difference_norm": (lambda *inputs: difference_norm(*inputs, 1e-5, 0.7), (x.view(4, 2, 3), bias[0], bias)),
        "lambdas": (lambda *inputs: lambdas(*inputs, 0.1), (x.view(2, 2, 6), y.view(2, 2, 6))),
        "linear": (lambda *inputs: merc.linear(*inputs, False), (x, weight, bias)),
        "gelu_linear": (lambda *inputs: merc.gelu_linear(*inputs, 1.5, False, 7, 100, True, False), (x, weight, bias)),
        "gelu_linear by PyTorch": (lambda *inputs: gelu_linear(*inputs, 0.5, "none", 1.5), (x, weight, bias)),
        "ends": (
            lambda *inputs: merc.ends(*inputs).flatten(1),
            (x.view(4, 2, 3), weight.view(-1, 3)[:4].view(2, 2, 3)),
        ),
        "mix": (
            lambda weights, x: mix(weights * graph.connected[:, :, None], x, graph.neighbourhood),
            (torch.randn(*graph.connected.shape[:2], HEADS, graph.connected.shape[2]), x),
        ),
        "attend": (lambda *inputs: attend(*inputs, batch, 0.5), tuple(heads)),
        "attend_neighbours": (
            lambda x, weight, vectors, tables, shares: attend_neighbours(
                x, weight, Scores(vectors, tables), shares, graph, 0.5
            ),
            (x, torch.randn(2, 6, 4), torch.randn(4, 2 * 2 + 10), tables, bias[:2]),
        ),
    }


def result_of(name: str, inputs: Sequence[Tensor]) -> Tensor:
    torch.manual_seed(1)
    return every_operator()[name][0](*inputs)


def inputs_of(name: str) -> list[Tensor]:
    return [x.clone().requires_grad_() for x in every_operator()[name][1]]


operators = pytest.mark.parametrize("name", list(every_operator()) if loaded() else [])


@operators
def test_gradients_of_gradients_are_refused(name: str) -> None:
    inputs = inputs_of(name)
    loss = result_of(name, inputs).square().sum()
    for gradient in torch.autograd.grad(loss, inputs, create_graph=True):
        with pytest.raises(RuntimeError, match=r"cannot be differentiated twice.*MERC_KERNELS=off"):
            gradient.sum().backward(retain_graph=True)


@operators
def test_each_gradient_comes_alone_as_well(name: str) -> None:
    inputs = inputs_of(name)
    out = result_of(name, inputs)
    loss = (out * torch.randn_like(out)).sum()
    together = torch.autograd.grad(loss, inputs, retain_graph=True)
    for x, expected in zip(inputs, together, strict=True):
        assert torch.equal(torch.autograd.grad(loss, x, retain_graph=True)[0], expected)


@operators
def test_values_are_the_same_without_gradients(name: str) -> None:
    inputs = inputs_of(name)
    expected = result_of(name, inputs)
    assert expected.requires_grad
    for without in (torch.no_grad(), torch.inference_mode()):
        with without:
            ours = result_of(name, inputs)
        assert not ours.requires_grad
        assert torch.equal(ours, expected)


@operators
def test_what_is_kept_for_a_backward_pass_goes_with_it(name: str) -> None:
    inputs = inputs_of(name)
    loss = result_of(name, inputs).sum()
    torch.autograd.grad(loss, inputs)
    if name != "dropout" and name != "add_dropped":  # they keep nothing
        with pytest.raises(RuntimeError, match="second time"):
            torch.autograd.grad(loss, inputs)


def test_shapes_that_do_not_fit_are_refused() -> None:
    x, batch = torch.zeros(4, HEADS, 6), batch_of([[0, 1, 0, 1]])
    graph = relation_graphs(batch, 1, 1)["inter_speaker"]
    wrong: list[Callable[[], object]] = [
        lambda: attend(x, x, x, batch_of([[0, 1, 0]]), 0.0),
        lambda: attend(x, x, x[:, :1], batch, 0.0),
        lambda: attend(x, x[:3], x, batch, 0.0),
        lambda: ends(x, torch.zeros(1, 2, 6)),
        lambda: ends(x, torch.zeros(HEADS, 2, 5)),
        lambda: head_norm_gelu(x.flatten(1), torch.zeros(HEADS, 5), torch.zeros(HEADS, 5)),
        *(
            partial(attend_neighbours, rows, torch.zeros(3, 6, 4), Scores(*scores), None, graph, 0.0)
            for rows, *scores in (
                (torch.zeros(99, 6), torch.zeros(3, 8)),
                (torch.zeros(4, 5), torch.zeros(3, 8)),
                (torch.zeros(4, 6), torch.zeros(3, 7)),
                (torch.zeros(4, 6), torch.zeros(3, 10)),
                (torch.zeros(4, 6), torch.zeros(2, 8)),
                (torch.zeros(4, 6), torch.zeros(3, 18), torch.zeros(2, 6, 10)),
                (torch.zeros(4, 6), torch.zeros(3, 18), torch.zeros(3, 6, 9)),
            )
        ),
        lambda: layer_norm_of_sum(x[:, 0], x[:3, 0], torch.zeros(6), torch.zeros(6)),
        lambda: layer_norm_of_sum(x[:, 0], x[:, 0], torch.zeros(6), torch.zeros(5)),
        lambda: difference_norm(x[:, :1], torch.tensor(0.5), torch.zeros(6), 1e-5, 1.0),
        lambda: difference_norm(x, torch.tensor(0.5), torch.zeros(5), 1e-5, 1.0),
        lambda: difference_norm(x, torch.zeros(2), torch.zeros(6), 1e-5, 1.0),
        lambda: lambdas(torch.zeros(3, 4), torch.zeros(3, 4), 0.0),
        lambda: lambdas(torch.zeros(2, 4), torch.zeros(2, 3), 0.0),
        lambda: mix(torch.zeros(1, 8, HEADS, 10), torch.zeros(9, 3), graph.neighbourhood),
    ]
    for call in wrong:
        with pytest.raises(RuntimeError):
            call()


def test_nothing_is_drawn_where_nothing_is_dropped() -> None:
    for function, inputs in functions_with_dropout().values():
        state = torch.get_rng_state()
        function(0.0, *inputs)
        assert torch.equal(torch.get_rng_state(), state)


def test_parameters_may_be_of_lower_precision() -> None:
    torch.manual_seed(0)
    x, weight, vectors = torch.randn(5, HEADS, 8), torch.randn(HEADS, 8), torch.randn(HEADS, 2, 8)
    assert head_norm_gelu(x.flatten(1), weight.bfloat16(), weight.bfloat16()).isfinite().all()
    assert ends(x, vectors.bfloat16()).isfinite().all()
    graph = relation_graphs(batch_of([[0, 1, 0, 1, 1]]), 1, 1)["inter_speaker"]
    scores = Scores(torch.randn(HEADS, 2 * 8 + 10).bfloat16(), torch.randn(1, 6, 10))
    assert attend_neighbours(x[:, 0], torch.randn(HEADS, 8, 8), scores, None, graph, 0.0).isfinite().all()
    assert lambdas(vectors.bfloat16(), vectors, 0.1).isfinite().all()
    assert difference_norm(x, torch.tensor(0.5).bfloat16(), weight[0].bfloat16(), 1e-5, 1.0).isfinite().all()
    assert layer_norm_of_sum(x[:, 0], x[:, 1], weight[0].bfloat16(), weight[1].bfloat16()).isfinite().all()


def test_bfloat16_is_close() -> None:
    torch.manual_seed(0)
    batch = batch_of([[0, 1] * 40, [0]])
    graph = relation_graphs(batch, 5, 5)["inter_speaker"]
    hood: Neighbourhood = graph.neighbourhood
    x_NHD, weight_HD, score_N42 = (torch.randn(*shape) for shape in ((81, HEADS, 40), (HEADS, 40), (81, 4, 2)))
    affine = torch.randn(6, HEADS * 40) / 4, torch.randn(6)
    vectors_42C, band = torch.randn(4, 2, 20), attention_band(score_N42, None, torch.ones(HEADS), graph, 0.0)

    def neighbours(weight_HID: Tensor, scores: Scores, x_NHD: Tensor) -> Tensor:
        ones_H = torch.ones(len(weight_HID))
        return attend_neighbours(x_NHD.flatten(1), weight_HID.to(x_NHD.dtype), scores, ones_H, graph, 0.0)

    functions: list[Callable[[Tensor], Tensor]] = [
        lambda x: head_norm_gelu(x.flatten(1), weight_HD, weight_HD),
        lambda x: difference_norm(x, torch.tensor(0.3), weight_HD[0], 1e-5, 0.7),
        lambda x: layer_norm_of_sum(x[:, 0], x[:, 1], weight_HD[0], weight_HD[1]),
        lambda x: gelu_linear(x.flatten(1), *(y.to(x.dtype) for y in affine), 0.0, "tanh", 1.5),
        lambda x: ends(x, vectors_42C),
        lambda x: mix(band, x.flatten(1), hood),
        *(
            partial(neighbours, weight, Scores(torch.randn(2 * len(weight), 40) / 8))
            for weight in (torch.randn(HEADS, HEADS * 40, 40) / 9, torch.randn(1, HEADS * 40, 40) / 9)
        ),
        lambda x: attend(x / 4, x, x, batch, 0.0),
        lambda x: dropout(x, 1 / 256),
    ]
    for number, function in enumerate(functions):
        single, half = x_NHD.clone().requires_grad_(), x_NHD.bfloat16().requires_grad_()
        results = []
        for x in (single, half):
            torch.manual_seed(3)
            out = function(x)
            torch.manual_seed(4)
            (gradient,) = torch.autograd.grad((out * torch.randn(out.shape)).sum(), x)
            results.append((out, gradient))
        (out, gradient), (out_half, gradient_half) = results
        assert gradient_half.dtype == torch.bfloat16, number
        torch.testing.assert_close(out_half.float(), out, atol=0.1, rtol=0.05)
        torch.testing.assert_close(gradient_half.float(), gradient, atol=0.2, rtol=0.05)


def test_dialogues_of_any_length_are_where_they_are(threads: int) -> None:
    """Every utterance receives the mean of its own dialogue where all scores are alike."""
    batch = batch_of([[0] * length for length in (3, 1, 130, 64, 65)])
    value = torch.randn(batch.rows, HEADS, 7)
    zeros = torch.zeros(batch.rows, HEADS, 3)
    ends_of = list(accumulate(batch.lengths))
    means = [
        value[end - length : end].mean(0).expand(length, -1, -1)
        for end, length in zip(ends_of, batch.lengths, strict=True)
    ]
    assert_close(attend(zeros, zeros, value, batch, 0.0), torch.cat(means))
