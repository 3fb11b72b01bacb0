"""Batches of several seeds filled up to one size: structure from tensors against structure from lengths."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.func import vmap

from merc.data.conversation import ConversationBatch
from merc.data.stacked import FramedBatch, stack_batches

LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=5)
STRUCTURE = ("sizes", "starts", "dialogues", "positions", "previous", "places", "occupied", "mask")


def batch_of(lengths: list[int]) -> ConversationBatch:
    rows = torch.arange(1, sum(lengths) + 1)
    return ConversationBatch({"text": rows[:, None].float()}, speakers=rows % 2, labels=rows, lengths=tuple(lengths))


def structure(batch: ConversationBatch) -> dict[str, Tensor]:
    return {name: getattr(batch, name) for name in STRUCTURE} | {"padded": batch.pad(batch.labels)}


@settings(max_examples=50, deadline=None)
@given(st.lists(LENGTHS, min_size=1, max_size=3), st.booleans())
def test_structure_equals_that_of_the_same_lengths(batches: list[list[int]], causal: bool) -> None:
    stack = stack_batches([batch_of(lengths) for lengths in batches])
    ours = vmap(lambda fields: structure(FramedBatch(**fields, lengths=(), causal=causal)))(stack.fields)
    for i, sizes in enumerate(stack.fields["frame"].sum(-1).tolist()):
        rows = sum(sizes)
        expected = ConversationBatch(
            {}, speakers=torch.zeros(rows), labels=stack.fields["labels"][i], lengths=tuple(sizes), causal=causal
        )
        for name, value in structure(expected).items():
            if name in ("places", "occupied", "mask", "padded") and max(sizes) < stack.fields["frame"].shape[-1]:
                continue  # the longest dialogue of all gives the layout its width
            assert torch.equal(ours[name][i], value), name


@settings(max_examples=50, deadline=None)
@given(st.lists(LENGTHS, min_size=1, max_size=3))
def test_real_rows_come_first_and_the_others_are_dialogues_no_longer_than_real_ones(batches: list[list[int]]) -> None:
    stack = stack_batches([batch_of(lengths) for lengths in batches])
    longest = max(max(lengths) for lengths in batches)
    for i, lengths in enumerate(batches):
        count = sum(lengths)
        assert stack.real[i].tolist() == [True] * count + [False] * (stack.real.shape[1] - count)
        assert stack.fields["labels"][i, :count].tolist() == list(range(1, count + 1))
        assert not stack.fields["features"]["text"][i, count:].any()
        sizes = stack.fields["frame"][i].sum(-1).tolist()
        assert sizes[: len(lengths)] == lengths
        assert sum(sizes) == stack.real.shape[1]
        assert max(sizes) <= longest


def test_batches_of_one_size_get_no_rows(make_batch: Callable[..., ConversationBatch]) -> None:
    assert stack_batches([make_batch((4, 2)), make_batch((4, 2))]).real.all()


def test_lengths_are_nobodys(make_batch: Callable[..., ConversationBatch]) -> None:
    stack = stack_batches([make_batch((4, 2))])
    with pytest.raises(ValueError, match="empty"):
        vmap(lambda fields: max(FramedBatch(**fields, lengths=()).lengths))(stack.fields)
