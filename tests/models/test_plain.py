"""The plain form of each operation, used under transforms of torch.func, against the one without a transform."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.func import vmap

from merc.data.conversation import ConversationBatch
from merc.kernels.plain import plain_form
from merc.models import linear as linear_module
from merc.models.attention import attend
from merc.models.difference_norm import difference_norm
from merc.models.dropout import add_dropped, dropout
from merc.models.gelu_linear import gelu_linear
from merc.models.graphs.additive import Scores, attend_neighbours
from merc.models.graphs.banded import ends, mix
from merc.models.graphs.neighbourhood import Relation, relation_graphs
from merc.models.head_norm import head_norm_gelu
from merc.models.lambdas import lambdas
from merc.models.linear import Engine, linear
from merc.models.sum_norm import SumNorm
from tests.models.test_linear import OURS

LENGTHS = (5, 1, 9, 4)
N, HEADS, DIM = sum(LENGTHS), 2, 6


def numbers(*shape: int) -> Tensor:
    return torch.randn(2, *shape, dtype=torch.float64, requires_grad=True)


def assert_forms_agree(function: Callable[..., Tensor], *inputs: Tensor) -> None:
    """Values and gradients of both, for two of each input."""
    plain = vmap(function)(*inputs)
    fast = torch.stack([function(*own) for own in zip(*inputs, strict=True)])
    torch.testing.assert_close(plain, fast)
    weights = torch.randn_like(fast)
    gradients = (torch.autograd.grad((out * weights).sum(), inputs) for out in (plain, fast))
    for ours, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, expected)


def test_the_form_is_plain_under_a_transform_alone() -> None:
    forms: list[bool] = []
    vmap(lambda x: (forms.append(plain_form()), x)[1])(torch.zeros(2))
    assert forms == [True]
    assert not plain_form()


@pytest.mark.parametrize("engine", OURS)
def test_linear_maps(monkeypatch: pytest.MonkeyPatch, engine: Engine) -> None:
    monkeypatch.setattr(linear_module, "_worthwhile", lambda engine, lowered: 0)
    monkeypatch.setattr(linear_module, "_engine_of_large", lambda lowered: engine)
    torch.manual_seed(0)
    x, weight, bias = (numbers(*shape).detach().float().requires_grad_() for shape in ((N, 3), (4, 3), (4,)))
    assert_forms_agree(linear, x, weight, bias)


def test_head_norm() -> None:
    torch.manual_seed(0)
    inputs = numbers(N, HEADS * DIM), numbers(HEADS, DIM), numbers(HEADS, DIM)
    assert_forms_agree(lambda x, w, b: head_norm_gelu(x, w, b, scale=0.5), *inputs)


def test_a_linear_map_behind_gelu() -> None:
    torch.manual_seed(0)
    inputs = numbers(N, DIM), numbers(4, DIM), numbers(4)
    assert_forms_agree(lambda x, w, b: gelu_linear(x, w, b, 0.0, "tanh", 1.5), *inputs)


@pytest.mark.parametrize("maps", [HEADS, 2 * HEADS])
def test_ends_of_scores(maps: int) -> None:
    torch.manual_seed(0)
    assert_forms_agree(ends, numbers(N, HEADS, DIM), numbers(maps, 2, HEADS * DIM // maps))


@pytest.mark.parametrize("self_loops", [True, False])
@pytest.mark.parametrize("relations", [True, False])
@pytest.mark.parametrize("difference", [True, False])
@pytest.mark.parametrize("padded", [True, False])
def test_attention_among_neighbours(
    make_batch: Callable[..., ConversationBatch], self_loops: bool, relations: bool, difference: bool, padded: bool
) -> None:
    torch.manual_seed(0)
    batch = make_batch(LENGTHS).with_padding(speaker=3) if padded else make_batch(LENGTHS)
    graph = relation_graphs(batch, past=2, future=3, self_loops=self_loops)["intra_speaker"]
    for heads, in_dim in ((HEADS, DIM), (1, 3 * DIM)):
        maps = heads * (1 + difference)
        vectors_MS = numbers(maps, 2 * heads * 2 * DIM // maps + 5 * relations)
        others = [numbers(1, len(Relation), 5)] * relations + [numbers(heads)] * difference

        def received(x_NI: Tensor, weight_HID: Tensor, vectors_MS: Tensor, *others: Tensor) -> Tensor:
            scores = Scores(vectors_MS, others[0] if relations else None)
            return attend_neighbours(x_NI, weight_HID, scores, others[-1] if difference else None, graph, dropout=0.0)

        x_NI, weight_HID = numbers(batch.rows, in_dim), numbers(heads, in_dim, 2 * DIM)
        assert_forms_agree(received, x_NI, weight_HID, vectors_MS, *others)


def test_norm_of_a_difference() -> None:
    torch.manual_seed(0)
    inputs = numbers(N, 2 * HEADS, DIM), numbers(), numbers(DIM)
    assert_forms_agree(lambda x, share, w: difference_norm(x, share, w, 1e-5, scale=0.7), *inputs)


def test_norm_of_a_sum() -> None:
    torch.manual_seed(0)
    assert_forms_agree(SumNorm(DIM).double(), numbers(N, DIM), numbers(N, DIM))


def test_lambdas() -> None:
    torch.manual_seed(0)
    assert_forms_agree(lambda left, right: lambdas(left, right, 0.2), numbers(HEADS, 2, DIM), numbers(HEADS, 2, DIM))


def test_sums_over_a_band(make_batch: Callable[..., ConversationBatch]) -> None:
    torch.manual_seed(0)
    graph = relation_graphs(make_batch(LENGTHS), past=2, future=3)["inter_speaker"]
    hood = graph.neighbourhood
    attention = numbers(hood.count, hood.size, HEADS, hood.width)
    # What lies behind the last row belongs to nobody.
    assert_forms_agree(lambda a, v: mix(a * graph.connected[:, :, None], v, hood), attention, numbers(N, DIM))


@pytest.mark.parametrize("difference", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [None, 2])
def test_attention_among_utterances(
    make_batch: Callable[..., ConversationBatch], difference: bool, causal: bool, window: int | None
) -> None:
    torch.manual_seed(0)
    made = make_batch(LENGTHS)
    batch = ConversationBatch({}, made.speakers, made.labels, made.lengths, causal=causal)
    maps = numbers(N, HEADS * (1 + difference), DIM), numbers(N, HEADS * (1 + difference), DIM)
    assert_forms_agree(
        lambda q, k, v: attend(q, k, v, batch, 0.0, difference=difference, window=window), *maps, numbers(N, HEADS, DIM)
    )


def test_residual() -> None:
    torch.manual_seed(0)
    assert_forms_agree(add_dropped, numbers(N, DIM), numbers(N, DIM))


@pytest.mark.parametrize("to_padding", [False, True])
def test_attention_with_rows_of_padding(make_batch: Callable[..., ConversationBatch], to_padding: bool) -> None:
    torch.manual_seed(0)
    batch = make_batch((3, 1, 4)).with_padding(speaker=3)
    shape = (sum(batch.lengths), HEADS, DIM)
    assert_forms_agree(
        lambda q, k, v: attend(q, k, v, batch, 0.0, scale=0.3, to_padding=to_padding),
        *(numbers(*shape) for _ in range(3)),
    )


@pytest.mark.parametrize("drop", [dropout, lambda x, p: add_dropped(torch.zeros_like(x), x, p)])
@pytest.mark.parametrize("rate", [0.25, 0.5])
def test_dropout_keeps_the_mean_and_masks_differ(drop: Callable[[Tensor, float], Tensor], rate: float) -> None:
    torch.manual_seed(0)
    dropped = vmap(lambda x: drop(x, rate), randomness="different")(torch.ones(2, 100, 100))
    assert not torch.equal(dropped[0], dropped[1])
    assert dropped.mean().item() == pytest.approx(1, abs=0.02)
    assert (dropped == 0).float().mean().item() == pytest.approx(rate, abs=0.02)


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_dropout_of_attention_is_that_of_single_entries(
    make_batch: Callable[..., ConversationBatch], rate: float
) -> None:
    torch.manual_seed(0)
    batch = make_batch((4, 4))
    zeros, units = torch.zeros(2, 8, HEADS, DIM), torch.eye(8)[None, :, None].expand(2, -1, HEADS, -1)
    heads = vmap(lambda q, v: attend(q, q, v, batch, rate), randomness="different")(zeros, units)
    entries = heads[heads != 0].unique().tolist()
    assert entries == pytest.approx([0.25 / (1 - rate)])
    assert torch.equal(heads[0], heads[1]) == (rate == 0)
