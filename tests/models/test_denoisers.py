"""Denoisers against their equations."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from merc.data.conversation import ConversationBatch
from merc.errors import MercError
from merc.models.denoisers import RecurrentDenoiser
from merc.models.denoisers.diff_transformer import DiffAttention, DiffTransformerDenoiser
from merc.models.denoisers.differential import LocalDelta, ShiftedDifference
from merc.models.denoisers.positions import SinusoidalPositions
from merc.models.denoisers.transformer import DialogueAttention, TransformerDenoiser


def test_positions_are_sines_and_cosines_beyond_any_table() -> None:
    positions = SinusoidalPositions(6)
    vectors = positions(torch.tensor([0, 3, 700]), longest=701)
    for row, position in zip(vectors, (0, 3, 700), strict=True):
        for j in range(3):
            angle = position / 10000 ** (2 * j / 6)
            assert row[2 * j] == pytest.approx(math.sin(angle), abs=1e-4)
            assert row[2 * j + 1] == pytest.approx(math.cos(angle), abs=1e-4)


def test_attention_stays_inside_the_dialogue(make_batch: Callable[..., ConversationBatch]) -> None:
    torch.manual_seed(0)
    attention = DialogueAttention(8, heads=2, dropout=0.0)
    batch = make_batch(lengths=(4, 1, 7))
    x_ND = torch.randn(12, 8)
    ours = attention(x_ND, batch)
    query, key, value = attention.query_key_value(x_ND).chunk(3, dim=-1)
    rows = []
    for i in range(12):
        same = [j for j in range(12) if batch.dialogues[j] == batch.dialogues[i]]
        heads = []
        for head in (slice(0, 4), slice(4, 8)):
            weights = torch.stack([query[i, head] @ key[j, head] / 2 for j in same]).softmax(0)
            heads.append(sum(w * value[j, head] for w, j in zip(weights, same, strict=True)))
        rows.append(torch.cat(heads))
    torch.testing.assert_close(ours, attention.output(torch.stack(rows)), atol=1e-5, rtol=1e-4)


def test_layers_behind_the_first_normalise_their_input(make_batch: Callable[..., ConversationBatch]) -> None:
    denoiser = TransformerDenoiser(8, heads=2, layers=3, dropout=0.1)
    assert [layer.normalize_input for layer in denoiser.layers] == [False, True, True]
    denoiser(torch.randn(14, 8), torch.randn(14, 8), make_batch()).sum().backward()
    unused = [name for name, parameter in denoiser.named_parameters() if parameter.grad is None]
    assert unused == ["layers.0.attention_norm.weight", "layers.0.attention_norm.bias"]


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(MercError, match="heads=3"):
        DialogueAttention(8, heads=3, dropout=0.0)


def test_differential_attention_of_two_projections_equals_its_equations(
    make_batch: Callable[..., ConversationBatch],
) -> None:
    torch.manual_seed(0)
    attention = DiffAttention(8, heads=2, dropout=0.0, depth=3)
    nn.init.uniform_(attention.norm.weight)
    batch = make_batch(lengths=(4, 1, 7))
    x_ND = torch.randn(12, 8)
    ours = attention(x_ND, batch)
    query, key, value = attention.query_key_value(x_ND).chunk(3, dim=-1)
    initial = 0.8 - 0.6 * math.exp(-0.3 * 2)
    left, right = (math.exp(dot.item()) for dot in (attention.lambda_query * attention.lambda_key).sum(-1))
    coefficient = left - right + initial
    # Channels of the maps: those of both heads' first maps, then those of their second maps.
    maps = {(head, sign): slice(4 * sign + 2 * head, 4 * sign + 2 * head + 2) for head in (0, 1) for sign in (0, 1)}
    rows = []
    for i in range(12):
        same = [j for j in range(12) if batch.dialogues[j] == batch.dialogues[i]]
        heads = []
        for head in (0, 1):
            first, second = (
                torch.stack([query[i, part] @ key[j, part] / math.sqrt(2) for j in same]).softmax(0)
                for part in (maps[head, 0], maps[head, 1])
            )
            values = value[same, 4 * head : 4 * head + 4]
            mixed = sum((a - coefficient * b) * v for a, b, v in zip(first, second, values, strict=True))
            normed = mixed / (mixed.square().mean() + 1e-5).sqrt() * attention.norm.weight
            heads.append((1 - initial) * normed)
        rows.append(torch.cat(heads))
    torch.testing.assert_close(ours, attention.output(torch.stack(rows)), atol=1e-5, rtol=1e-4)


def test_depth_of_the_differential_layers_counts_from_one() -> None:
    denoiser = DiffTransformerDenoiser(8, heads=2, layers=3, dropout=0.1)
    initial = [layer.attention.lambda_init for layer in denoiser.layers]
    assert initial == pytest.approx([0.2, 0.8 - 0.6 * math.exp(-0.3), 0.8 - 0.6 * math.exp(-0.6)])
    assert all(layer.normalize_input for layer in denoiser.layers)


@pytest.mark.parametrize("bidirectional", [True, False])
def test_recurrence_equals_cells_along_each_dialogue(
    make_batch: Callable[..., ConversationBatch], bidirectional: bool
) -> None:
    torch.manual_seed(0)
    denoiser = RecurrentDenoiser(5, layers=1, dropout=0.4, bidirectional=bidirectional).eval()
    batch = make_batch(lengths=(4, 1, 7))
    x_ND, speaker_ND = torch.randn(12, 5), torch.randn(12, 5)
    inputs = x_ND + speaker_ND
    states = []
    for suffix in ("", "_reverse") if bidirectional else ("",):
        cell = nn.GRUCell(5, 5)
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            getattr(cell, name).data.copy_(getattr(denoiser.gru, f"{name}_l0{suffix}"))
        by_row: dict[int, torch.Tensor] = {}
        for b in range(3):
            order = [i for i in range(12) if batch.dialogues[i] == b]
            state = torch.zeros(5)
            for i in reversed(order) if suffix else order:
                state = by_row[i] = cell(inputs[i], state)
        states.append(torch.stack([by_row[i] for i in range(12)]))
    expected = inputs + denoiser.output(torch.cat(states, dim=1))
    torch.testing.assert_close(denoiser(x_ND, speaker_ND, batch), expected, atol=1e-5, rtol=1e-4)


def test_both_maps_of_every_head_need_their_width() -> None:
    with pytest.raises(MercError, match=r"heads=4 heads of two attention maps.* multiple of 8"):
        DiffAttention(12, heads=4, dropout=0.0, depth=1)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize("kind", ["plain", "difference", "shifted"])
def test_attention_maps_are_what_the_layers_sum_their_values_with(
    make_batch: Callable[..., ConversationBatch], kind: str, window: int | None, causal: bool
) -> None:
    torch.manual_seed(0)
    layer = {
        "plain": lambda: DialogueAttention(8, 2, 0.3, window),
        "difference": lambda: DiffAttention(8, 2, 0.3, depth=2, window=window),
        "shifted": lambda: ShiftedDifference(8, 2, 0.3, head_scale=True, window=window),
    }[kind]().eval()
    batch = replace(make_batch(lengths=(4, 1, 7)), causal=causal)
    x_ND = torch.randn(12, 8)
    maps_NHN = layer.attention_maps(x_ND, batch)
    value_NHV = layer.query_key_value(x_ND)[:, -8:].unflatten(-1, (2, 4))
    summed = torch.einsum("ihj,jhv->ihv", maps_NHN, value_NHV)
    if isinstance(layer, DiffAttention):
        summed = (1 - layer.lambda_init) * layer.norm(summed)
    if isinstance(layer, ShiftedDifference):
        summed = layer.weight * summed
    torch.testing.assert_close(layer.output(summed.flatten(1)), layer(x_ND, batch))
    place = batch.positions[None, :] - batch.positions[:, None]
    outside = (batch.dialogues[:, None] != batch.dialogues) | (place.abs() > (window or 12)) | (causal & (place > 0))
    assert not maps_NHN.transpose(0, 1)[:, outside].any()


@pytest.mark.parametrize("causal", [False, True])
def test_the_local_delta_is_that_of_each_dialogue_alone(
    make_batch: Callable[..., ConversationBatch], causal: bool
) -> None:
    torch.manual_seed(0)
    delta = LocalDelta(6)
    batch = replace(make_batch(lengths=(4, 1, 7)), causal=causal)
    x_ND = torch.randn(12, 6)
    start = 0
    for length, out in zip(batch.lengths, delta(x_ND, batch).split(batch.lengths), strict=True):
        x_LD = x_ND[start : start + length]
        around = F.pad(x_LD, (0, 0, 2, 0) if causal else (0, 0, 1, 1)).unfold(0, 3, 1)
        local_LD = torch.einsum("ldk,dk->ld", around, delta.convolution.weight[:, 0]) + delta.convolution.bias
        expected = x_LD + delta.alpha * delta.gate(x_LD).sigmoid() * delta.norm(local_LD)
        torch.testing.assert_close(out, expected)
        start += length
