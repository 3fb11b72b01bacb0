"""The Transformer denoiser against its equations."""

import math
from collections.abc import Callable

import pytest
import torch

from merc.data.conversation import ConversationBatch
from merc.errors import MercError
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
