"""Attention in tiles and pieces against plain attention, one dialogue after the other."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from merc.data.conversation import ConversationBatch
from merc.models import attention
from merc.models.attention import attend

HEADS, WIDTH = 2, 3
LENGTHS = st.lists(st.integers(1, 14), min_size=1, max_size=5)


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small tiles and pieces, so that short dialogues go through all of them."""
    monkeypatch.setattr("merc.data.conversation.TILE", 60)
    monkeypatch.setattr(attention, "TILE", 60)
    monkeypatch.setattr(attention, "PIECE", 3)


def batch_of(lengths: list[int], padded: bool = False, causal: bool = False) -> ConversationBatch:
    rows = torch.zeros(sum(lengths), dtype=torch.int64)
    batch = ConversationBatch({}, speakers=rows, labels=rows, lengths=tuple(lengths), causal=causal)
    return batch.with_padding(speaker=0) if padded else batch


def inputs(batch: ConversationBatch, difference: bool = False, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Random queries and keys of all maps, values of all heads, in double precision."""
    torch.manual_seed(seed)
    rows, maps = sum(batch.lengths), HEADS * (2 if difference else 1)
    query, key = torch.randn(2, rows, maps, WIDTH, dtype=torch.float64)
    value = torch.randn(rows, HEADS, WIDTH + 1, dtype=torch.float64)
    return query.requires_grad_(), key.requires_grad_(), value.requires_grad_()


def visible_rows(batch: ConversationBatch, to_padding: bool, window: int | None) -> list[list[int]]:
    """The rows that each row receives from, by the definition."""
    sources, start = [], 0
    for length in batch.lengths:
        for i in range(length):
            sources.append(
                [
                    start + j
                    for j in range(length)
                    if (to_padding or batch.present is None or batch.present[start + j])
                    and not (batch.causal and j > i)
                    and (window is None or abs(i - j) <= window)
                ]
            )
        start += length
    return sources


def attend_by_loops(query: Tensor, key: Tensor, value: Tensor, sources: list[list[int]], difference: bool) -> Tensor:
    """(N, H, V); nothing is received where nothing is visible."""
    rows = []
    for i, visible in enumerate(sources):
        maps = torch.einsum("mq,jmq->mj", query[i], key[visible]).softmax(-1)
        heads = maps[0::2] - maps[1::2] if difference else maps
        rows.append(torch.einsum("hj,jhv->hv", heads, value[visible]))
    return torch.stack(rows)


@pytest.mark.usefixtures("small_pieces")
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=LENGTHS,
    causal=st.booleans(),
    difference=st.booleans(),
    padded=st.booleans(),
    to_padding=st.booleans(),
    window=st.none() | st.integers(0, 6),
    scale=st.sampled_from([1.0, 0.3]),
    seed=st.integers(0, 99),
)
def test_results_and_gradients_equal_plain_attention(
    lengths: list[int],
    causal: bool,
    difference: bool,
    padded: bool,
    to_padding: bool,
    window: int | None,
    scale: float,
    seed: int,
) -> None:
    batch = batch_of(lengths, padded, causal)
    tensors = inputs(batch, difference, seed)
    sources = visible_rows(batch, to_padding, window)
    # What is received where there is nothing to receive is never used.
    used = torch.tensor([bool(visible) for visible in sources])[:, None, None]
    settings_ = {"scale": scale, "difference": difference, "to_padding": to_padding, "window": window}
    ours = attend(*tensors, batch, 0.0, **settings_) * used
    query, key, value = tensors
    plain = attend_by_loops(scale * query, key, value, sources, difference) * used
    torch.testing.assert_close(ours, plain)
    weights = torch.randn_like(plain)
    gradients = torch.autograd.grad((ours * weights).sum(), tensors)
    expected = torch.autograd.grad((plain * weights).sum(), tensors)
    for gradient, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, other)


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("difference", [False, True])
def test_gradients_with_dropout_are_those_of_the_function_with_its_mask(difference: bool) -> None:
    batch = batch_of([9, 2, 1], causal=True)

    def drop(*tensors: Tensor) -> Tensor:
        torch.manual_seed(7)
        return attend(*tensors, batch, 0.4, difference=difference, window=5)

    assert torch.autograd.gradcheck(drop, inputs(batch, difference))


@pytest.mark.usefixtures("small_pieces")
def test_dropout_drops_single_entries_of_the_attention_and_keeps_the_mean() -> None:
    batch = batch_of([12])
    query, key, _ = inputs(batch)
    value = torch.eye(12, dtype=torch.float64)[:, None].repeat(1, HEADS, 1)  # the output is then the attention
    kept = attend(query, key, value, batch, 0.0)
    torch.manual_seed(0)
    draws = torch.stack([attend(query, key, value, batch, 0.5) for _ in range(400)])
    assert ((draws == 0) | torch.isclose(draws, 2 * kept)).all()
    assert (draws == 0).double().mean() == pytest.approx(0.5, abs=0.01)
    torch.testing.assert_close(draws.mean(0), kept, atol=0.1, rtol=0)


def test_a_dialogue_in_pieces_equals_one_in_a_single_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = batch_of([70, 3])
    tensors = inputs(batch, difference=True)
    results = []
    for pairs in (1, 2**20):
        monkeypatch.setattr(attention, "TILE", pairs)
        out = attend(*tensors, batch, 0.0, difference=True, window=20)
        results.append([out, *torch.autograd.grad(out.square().sum(), tensors)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_an_unused_window_changes_nothing() -> None:
    batch = batch_of([9, 4])
    tensors = inputs(batch)
    assert torch.equal(attend(*tensors, batch, 0.0, window=8), attend(*tensors, batch, 0.0))


def test_bfloat16_is_close() -> None:
    batch = batch_of([30, 11, 2])
    tensors = [x.float().detach().requires_grad_() for x in inputs(batch)]
    single = attend(*tensors, batch, 0.0)
    with torch.autocast("cpu", torch.bfloat16):
        half = attend(*tensors, batch, 0.0)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), single, atol=0.03, rtol=0.03)
    for low, high in zip(
        *(torch.autograd.grad(out.float().sum(), tensors) for out in (half, single)),
        strict=True,
    ):
        assert low.dtype == torch.float32
        torch.testing.assert_close(low, high, atol=0.05, rtol=0.05)


def test_rows_of_a_dialogue_see_nothing_of_others(make_batch: Callable[..., ConversationBatch]) -> None:
    batch = replace(make_batch(lengths=(5, 8)), causal=False)
    query, key, value = inputs(batch)
    before = attend(query, key, value, batch, 0.0)
    after = attend(query, torch.cat([key[:5], 9 * key[5:]]), torch.cat([value[:5], -value[5:]]), batch, 0.0)
    assert torch.equal(after[:5], before[:5])
    assert not torch.allclose(after[5:], before[5:])
