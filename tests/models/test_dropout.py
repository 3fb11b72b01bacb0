"""Cheap dropout: how often, how much, independent of what came before, the same again from the same key."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from merc.models.dropout import Dropout, Masks, RandomBytes, dropout

CPU = torch.device("cpu")


def stream(seed: int = 0) -> RandomBytes:
    torch.manual_seed(seed)
    return RandomBytes.draw(CPU)


@pytest.mark.parametrize("p", [0.11, 0.5, 0.6])
def test_entries_are_dropped_as_often_as_asked_and_the_mean_stays(p: float) -> None:
    torch.manual_seed(0)
    kept = dropout(torch.ones(1000, 1000), p)
    assert (kept == 0).float().mean() == pytest.approx(p, abs=1 / 512 + 0.002)
    assert kept.unique().numel() == 2
    assert kept.mean() == pytest.approx(1.0, abs=0.006)


@settings(max_examples=30, deadline=None)
@given(p=st.floats(0, 1), seed=st.integers(0, 2**32 - 1))
def test_gradient_passes_where_the_entry_was_kept_scaled_alike(p: float, seed: int) -> None:
    torch.manual_seed(seed)
    x = torch.randn(7, 9, requires_grad=True)
    out = dropout(x, p)
    out.sum().backward()
    torch.testing.assert_close(out, x * x.grad)


def test_limits() -> None:
    x = torch.randn(5, 5)
    assert dropout(x, 0.0) is x
    assert not dropout(x, 1.0).any()
    assert Dropout(0.9).eval()(x) is x


def test_bytes_are_uniform_and_unrelated() -> None:
    first = stream().take(2**22).numpy().astype(np.int64)
    counts = np.bincount(first, minlength=256)
    assert ((counts - len(first) / 256) ** 2 / (len(first) / 256)).sum() / 255 < 1.4
    for lag in (1, 4, 16, 1024, 4096, 2**20):  # also the lags at which a counter-based generator may repeat itself
        pairs = np.bincount(256 * first[:-lag] + first[lag:], minlength=2**16)
        expected = (len(first) - lag) / 2**16
        assert ((pairs - expected) ** 2 / expected).sum() / (2**16 - 1) < 1.03, lag
    other = stream(1).take(2**22).numpy()
    assert abs(np.corrcoef(first, other)[0, 1]) < 0.003


def test_a_stream_goes_on_and_starts_again() -> None:
    source = stream()
    whole = source.again().take(4096)
    assert torch.equal(torch.cat([source.take(1024), source.take(3072)]), whole)
    assert torch.equal(source.again().take(4096), whole)


def test_masks_follow_the_seed_and_differ_from_call_to_call() -> None:
    x = torch.ones(64, 64)
    torch.manual_seed(3)
    first, second = dropout(x, 0.5), dropout(x, 0.5)
    torch.manual_seed(3)
    assert torch.equal(dropout(x, 0.5), first)
    assert not torch.equal(first, second)


@settings(max_examples=30, deadline=None)
@given(shapes=st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=3), min_size=1, max_size=6))
def test_masks_start_again(shapes: list[list[int]]) -> None:
    masks = Masks(0.4, stream())
    first = [masks.take(shape) for shape in shapes]
    again = masks.again()
    assert all(torch.equal(again.take(shape), mask) for shape, mask in zip(shapes, first, strict=True))
    assert [list(mask.shape) for mask in first] == shapes
