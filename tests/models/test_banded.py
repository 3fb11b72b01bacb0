"""The operations on bands against dense ones that autograd differentiates."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from merc.data.conversation import ConversationBatch
from merc.models.graphs.banded import attention_band, ends, mix
from merc.models.graphs.neighbourhood import Neighbourhood, Relation, RelationGraph, relation_graphs

HEADS = 2
DIALOGUES = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=14), min_size=1, max_size=4)


any_graph = given(
    dialogues=DIALOGUES,
    window=st.tuples(st.integers(0, 9), st.integers(0, 9)),
    relational=st.booleans(),
    difference=st.booleans(),
    padded=st.booleans(),
    self_loops=st.booleans(),
)


def batch_of(dialogues: list[list[int]], padded: bool = False, causal: bool = False) -> ConversationBatch:
    speakers = torch.tensor([speaker for dialogue in dialogues for speaker in dialogue])
    lengths = tuple(len(dialogue) for dialogue in dialogues)
    batch = ConversationBatch({}, speakers=speakers, labels=torch.zeros_like(speakers), lengths=lengths, causal=causal)
    return batch.with_padding(speaker=3) if padded else batch


def doubles(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def to_dense(band: Tensor, hood: Neighbourhood) -> Tensor:
    """(G, S, H, K) → (N, N, H): the entry of each receiving row and candidate, 0 elsewhere."""
    places = [
        (block, row, candidate, block * hood.size + row, block * hood.size - hood.past + candidate)
        for block in range(hood.count)
        for row in range(hood.size)
        for candidate in range(hood.width)
    ]
    inside = [place for place in places if place[3] < hood.rows and 0 <= place[4] < hood.rows]
    block, row, candidate, receiver, source = torch.tensor(inside).unbind(1)
    dense = band.new_zeros(hood.rows, hood.rows, band.shape[2])
    return dense.index_put((receiver, source), band[block, row, :, candidate])


def relations_of_pairs(graph: RelationGraph) -> Tensor:
    """(N, N) relation of every edge; -1 where there is none."""
    dense, batch = graph.dense(), graph.batch
    relations = torch.full((sum(batch.lengths),) * 2, -1)
    start = 0
    for b, length in enumerate(batch.lengths):
        for i in range(length):
            for j in range(length):
                if dense[b, i, j]:
                    relations[start + i, start + j] = dense[b, i, j]
        start += length
    return relations


def attention_of_all_pairs(
    ends_NM2: Tensor, relation_MR: Tensor | None, coefficients_H: Tensor | None, relations_NN: Tensor
) -> Tensor:
    """(N, N, H) attention without dropout."""
    edge_NN1 = (relations_NN >= 0)[..., None]
    scores = ends_NM2[:, None, :, 0] + ends_NM2[None, :, :, 1]
    if relation_MR is not None:
        scores = scores + relation_MR.T[relations_NN.clamp_min(0)]
    exponentials = F.leaky_relu(scores, 0.2).exp() * edge_NN1
    maps = exponentials / exponentials.sum(1, keepdim=True).clamp_min(1e-30)
    return maps if coefficients_H is None else maps[..., 0::2] - coefficients_H * maps[..., 1::2]


@settings(max_examples=40, deadline=None)
@any_graph
def test_attention_and_its_gradients_equal_dense_ones(
    dialogues: list[list[int]],
    window: tuple[int, int],
    relational: bool,
    difference: bool,
    padded: bool,
    self_loops: bool,
) -> None:
    torch.manual_seed(0)
    graph = relation_graphs(batch_of(dialogues, padded), *window, self_loops)["inter_speaker"]
    maps = HEADS * (2 if difference else 1)
    ends_NM2 = doubles(graph.neighbourhood.rows, maps, 2)
    relation_MR = doubles(maps, len(Relation)) if relational else None
    coefficients_H = doubles(HEADS) if difference else None
    tensors = [x for x in (ends_NM2, relation_MR, coefficients_H) if x is not None]
    banded = attention_band(ends_NM2, relation_MR, coefficients_H, graph, 0.0)
    ours = to_dense(banded, graph.neighbourhood)
    plain = attention_of_all_pairs(ends_NM2, relation_MR, coefficients_H, relations_of_pairs(graph))
    torch.testing.assert_close(ours, plain)
    outside = graph.neighbourhood.unblock(banded).abs().sum() - ours.abs().sum()
    assert outside.item() == pytest.approx(0, abs=1e-9)
    weights = torch.randn_like(plain)
    gradients = torch.autograd.grad((ours * weights).sum(), tensors)
    expected = torch.autograd.grad((plain * weights).sum(), tensors)
    for gradient, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, other)


@pytest.mark.parametrize("difference", [False, True])
def test_gradients_with_dropout_are_those_of_the_function_with_its_mask(difference: bool) -> None:
    torch.manual_seed(0)
    graph = relation_graphs(batch_of([[0, 1, 0, 2, 1, 1, 0, 1, 2, 0], [0]]), 2, 1)["inter_speaker"]
    maps = HEADS * (2 if difference else 1)

    def drop(ends_NM2: Tensor, relation_MR: Tensor, coefficients_H: Tensor) -> Tensor:
        torch.manual_seed(7)
        band = attention_band(ends_NM2, relation_MR, coefficients_H if difference else None, graph, 0.4)
        return graph.neighbourhood.unblock(band)

    assert torch.autograd.gradcheck(drop, (doubles(11, maps, 2), doubles(maps, len(Relation)), doubles(HEADS)))


def test_dropout_drops_entries_of_the_attention_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    graph = relation_graphs(batch_of([[0, 1] * 20]), 5, 5)["inter_speaker"]
    ends = doubles(40, HEADS, 2)
    kept = attention_band(ends, None, None, graph, 0.0)
    draws = torch.stack([attention_band(ends, None, None, graph, 0.25) for _ in range(300)])
    assert ((draws == 0) | torch.isclose(draws, kept / 0.75)).all()
    assert (draws[:, kept > 0] == 0).double().mean() == pytest.approx(0.25, abs=0.01)
    torch.testing.assert_close(draws.mean(0), kept, atol=0.12, rtol=0)


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=4),
    past=st.integers(0, 9),
    future=st.integers(0, 9),
    heads=st.integers(1, 3),
)
def test_mixing_equals_a_dense_product(lengths: list[int], past: int, future: int, heads: int) -> None:
    torch.manual_seed(0)
    hood = Neighbourhood.of(batch_of([[0] * length for length in lengths]), past, future)
    attention = doubles(hood.count, hood.size, heads, hood.width)
    values_ND = doubles(hood.rows, 3)
    ours = mix(attention, values_ND, hood)
    plain = torch.einsum("ijh,jd->ihd", to_dense(attention, hood), values_ND)
    torch.testing.assert_close(ours, plain)
    weights = torch.randn_like(plain)
    gradients = torch.autograd.grad((ours * weights).sum(), (attention, values_ND))
    expected = torch.autograd.grad((plain * weights).sum(), (attention, values_ND))
    for gradient, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, other)


@pytest.mark.parametrize(
    ("function", "shapes"),
    [
        (lambda a, v: mix(a, v, Neighbourhood(rows=11, past=2, future=1, size=4)), [(3, 4, 2, 7), (11, 3)]),
    ],
)
def test_gradients_are_derivatives(function: Callable[..., Tensor], shapes: list[tuple[int, ...]]) -> None:
    torch.manual_seed(0)
    assert torch.autograd.gradcheck(function, [doubles(*shape) for shape in shapes])


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("maps", [2, 4])
def test_ends_equal_an_einsum_beside_what_else_the_rows_are_for(maps: int, transposed: bool) -> None:
    torch.manual_seed(0)
    weight, vectors_M2C, weights = doubles(2, 5, 8), doubles(maps, 2, 16 // maps), torch.randn(5, maps, 2).double()
    rows = doubles(5, 2, 8)
    z_LHD = weight.transpose(0, 1) if transposed else rows * 1
    ours = ends(z_LHD, vectors_M2C)
    plain = torch.einsum("lmc,mec->lme", z_LHD.flatten(1).unflatten(1, (maps, -1)), vectors_M2C)
    torch.testing.assert_close(ours, plain)
    inputs = (weight if transposed else rows, vectors_M2C)
    gradients = torch.autograd.grad((ours * weights).sum() + (z_LHD**3).sum(), inputs, retain_graph=True)
    expected = torch.autograd.grad((plain * weights).sum() + (z_LHD**3).sum(), inputs)
    for gradient, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, other)


def test_bfloat16_is_close() -> None:
    torch.manual_seed(0)
    graph = relation_graphs(batch_of([[0, 1] * 20, [0]]), 5, 5)["inter_speaker"]
    ends, values = doubles(41, HEADS, 2).detach().float(), doubles(41, 8).detach().float()
    weight = torch.randn(HEADS, 8, 8) / 3

    def layer(ends: Tensor, values: Tensor) -> Tensor:
        attention = attention_band(ends, None, None, graph, 0.0)
        assert attention.dtype == torch.float32
        return torch.einsum("nhi,hio->nho", mix(attention, values, graph.neighbourhood), weight)

    single = layer(ends, values)
    with torch.autocast("cpu", torch.bfloat16):
        half = layer(ends.bfloat16(), values.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), single, atol=0.05, rtol=0.05)
