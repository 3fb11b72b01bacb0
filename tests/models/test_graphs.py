"""Graph layers against their equations, written out per edge."""

import math
from collections.abc import Callable

import networkx as nx
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from merc.data.conversation import ConversationBatch
from merc.errors import MercError
from merc.models.graphs import GCN, DiffRGCN, RelationalGAT
from merc.models.graphs.differential import DifferentialAttention
from merc.models.graphs.neighbourhood import RelationGraph, relation_graphs
from merc.models.graphs.relational_gat import RelationalAttention
from merc.models.lambdas import initial_lambda


def edges(graph: RelationGraph, batch: ConversationBatch) -> list[list[tuple[int, int]]]:
    """For every row, the (source row, relation) pairs of its edges."""
    dense = graph.dense()
    start = 0
    result = []
    for b, length in enumerate(batch.lengths):
        for i in range(length):
            result.append([(start + j, int(dense[b, i, j])) for j in range(length) if dense[b, i, j]])
        start += length
    return result


def attention_by_loops(z_ND: Tensor, left: Tensor, right: Tensor, relation: Tensor, neighbours: list) -> list[Tensor]:
    """Softmax over each row's edges of LeakyReLU(left·z_i + right·z_j + score of the relation)."""
    return [
        torch.stack([F.leaky_relu(left @ z_ND[i] + right @ z_ND[j] + relation[r], 0.2) for j, r in row]).softmax(0)
        for i, row in enumerate(neighbours)
    ]


@pytest.fixture
def batch(make_batch: Callable[..., ConversationBatch]) -> ConversationBatch:
    return make_batch(lengths=(6, 1, 11))


def inter_speaker(batch: ConversationBatch) -> RelationGraph:
    return relation_graphs(batch, past=3, future=2)["inter_speaker"]


@pytest.mark.parametrize("normalize", [False, True])
def test_differential_attention_equals_its_equations(batch: ConversationBatch, normalize: bool) -> None:
    torch.manual_seed(1)
    layer = DifferentialAttention(5, 8, heads=2, dropout=0.0, depth=3, normalize=normalize)
    x_NI = torch.randn(18, 5)
    graph = inter_speaker(batch)
    ours = layer(x_NI, graph).unflatten(1, (2, 8))
    neighbours = edges(graph, batch)
    scores = layer.scores
    for head in range(2):
        z_ND = x_NI @ layer.weight[head]
        maps = []
        for sign, half in enumerate((z_ND[:, :4], z_ND[:, 4:])):
            left, right, relation = scores.vector[2 * head + sign].split([4, 4, 10])
            maps.append(attention_by_loops(half, left, right, scores.relation_table[head] @ relation, neighbours))
        products = (layer.lambda_left[head] * layer.lambda_right[head]).sum(-1)
        coefficient = products[0].exp() - products[1].exp() + 0.8 - 0.6 * math.exp(-0.9)
        rows = [
            sum((p - coefficient * n) * z_ND[j] for p, n, (j, _) in zip(maps[0][i], maps[1][i], row, strict=True))
            for i, row in enumerate(neighbours)
        ]
        expected = torch.stack(rows)
        if normalize:
            expected = F.gelu((1 - layer.lambda_init) * F.layer_norm(expected, (8,)))
        torch.testing.assert_close(ours[:, head], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("relational", [True, False])
def test_relational_attention_equals_its_equations(batch: ConversationBatch, relational: bool) -> None:
    torch.manual_seed(1)
    layer = RelationalAttention(5, 8, heads=2, dropout=0.0, relational=relational)
    x_NI = torch.randn(18, 5)
    graph = inter_speaker(batch)
    ours = layer(x_NI, graph).unflatten(1, (2, 8))
    neighbours = edges(graph, batch)
    scores = layer.scores
    for head in range(2):
        z_ND = x_NI @ layer.weight[head]
        left, right = scores.vector[head, :8], scores.vector[head, 8:16]
        of_relation = scores.relation_table[0] @ scores.vector[head, 16:] if relational else torch.zeros(6)
        attention = attention_by_loops(z_ND, left, right, of_relation, neighbours)
        rows = [
            sum(a * z_ND[j] for a, (j, _) in zip(attention[i], row, strict=True)) for i, row in enumerate(neighbours)
        ]
        torch.testing.assert_close(ours[:, head], F.gelu(F.layer_norm(torch.stack(rows), (8,))), atol=1e-5, rtol=1e-4)


def test_gcn_equals_networkx_normalised_adjacency(batch: ConversationBatch) -> None:
    torch.manual_seed(1)
    layer = GCN(8, dropout=0.0)
    x_ND = torch.randn(18, 8)
    graph = relation_graphs(batch, past=3, future=3)["inter_speaker"]
    network = nx.Graph([(i, j) for i, row in enumerate(edges(graph, batch)) for j, _ in row])
    adjacency = nx.to_numpy_array(network, nodelist=range(18))
    scale = np.diag(adjacency.sum(1) ** -0.5)
    mixed = torch.from_numpy(scale @ adjacency @ scale).float() @ layer.linear(x_ND)
    torch.testing.assert_close(layer(x_ND, graph), layer.norm(x_ND, mixed.relu()), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "layer",
    [
        lambda: DiffRGCN(8, heads=2, dropout=0.2, output_depth=1, normalize=True),
        lambda: DiffRGCN(8, heads=3, dropout=0.2, output_depth=2, normalize=False),
        lambda: RelationalGAT(8, heads=2, dropout=0.2, relational=True),
        lambda: RelationalGAT(8, heads=2, dropout=0.2, relational=False),
        lambda: GCN(8, dropout=0.2),
    ],
)
def test_every_parameter_learns(batch: ConversationBatch, layer: Callable[[], torch.nn.Module]) -> None:
    torch.manual_seed(1)
    module = layer()
    module(torch.randn(18, 8), inter_speaker(batch)).square().sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_lambda_has_the_published_value_and_scale() -> None:
    assert initial_lambda(1) == pytest.approx(0.3555090676, abs=1e-10)
    torch.manual_seed(0)
    layer = DifferentialAttention(4, 512, heads=200, dropout=0.0, depth=1, normalize=False)
    coefficients = layer.coefficients().detach()
    assert coefficients.mean() == pytest.approx(0.36, abs=0.06)
    assert coefficients.std() == pytest.approx(0.24, abs=0.05)


def test_differential_attention_rows_sum_to_one_minus_lambda(batch: ConversationBatch) -> None:
    torch.manual_seed(1)
    layer = DifferentialAttention(5, 8, heads=1, dropout=0.0, depth=1, normalize=False)
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[0, 0, 0] = 1.0  # every row of value 1 passes 1 in channel 0 of the values
    ones = torch.zeros(18, 5)
    ones[:, 0] = 1.0
    summed = layer(ones, inter_speaker(batch))[:, 0]
    torch.testing.assert_close(summed, (1 - layer.coefficients()).expand(18))


@pytest.mark.parametrize("in_dim", [5, 16])  # the sum before or behind the linear map
def test_attention_maps_are_what_the_layers_sum_their_values_with(batch: ConversationBatch, in_dim: int) -> None:
    torch.manual_seed(0)
    graph = inter_speaker(batch)
    edges_NN = torch.zeros(18, 18, dtype=torch.bool)
    for i, row in enumerate(edges(graph, batch)):
        edges_NN[i, [j for j, _ in row]] = True
    for layer in (
        DifferentialAttention(in_dim, 8, heads=3, dropout=0.3, depth=1, normalize=True).eval(),
        RelationalAttention(in_dim, 8, heads=3, dropout=0.3, relational=True).eval(),
    ):
        x_NI = torch.randn(18, in_dim)
        maps_NHN = layer.attention_maps(x_NI, graph)
        z_NHD = torch.stack([x_NI @ weight for weight in layer.weight], dim=1)
        summed_NF = torch.einsum("ihj,jhd->ihd", maps_NHN, z_NHD).flatten(1)
        torch.testing.assert_close(summed_NF, layer.aggregate(x_NI, graph))
        assert torch.equal(maps_NHN.ne(0).any(1), edges_NN)


def test_odd_width_is_refused() -> None:
    with pytest.raises(MercError, match="even hidden_dim"):
        DifferentialAttention(4, 7, heads=1, dropout=0.0, depth=1, normalize=True)
