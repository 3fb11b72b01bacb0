from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from merc.data.conversation import Conversations, CorpusInfo, Features

LENGTHS = st.lists(st.integers(1, 7), min_size=1, max_size=6)


def make_conversations(lengths: Sequence[int]) -> Conversations:
    """Conversations in which the one-dimensional text feature of an utterance is its row number."""
    rows = torch.arange(sum(lengths))
    return Conversations(
        features={"text": rows[:, None].float(), "audio": torch.stack([rows, -rows], dim=1).float()},
        speakers=rows % 2,
        labels=rows % 3,
        lengths=tuple(lengths),
        dialogue_ids=tuple(f"d{i}" for i in range(len(lengths))),
        utterance_ids=tuple(f"u{i}" for i in rows.tolist()),
        splits=tuple("train" for _ in lengths),
        label_names=("a", "b", "c"),
    )


def naive_pad(rows: Tensor, lengths: Sequence[int]) -> Tensor:
    padded = torch.zeros(len(lengths), max(lengths), *rows.shape[1:])
    row = 0
    for dialogue, length in enumerate(lengths):
        for position in range(length):
            padded[dialogue, position] = rows[row]
            row += 1
    return padded


@given(LENGTHS, st.integers(0, 20))
@settings(max_examples=30, deadline=None)
def test_filler_stands_behind_the_utterances_in_dialogues_of_its_own(lengths: list[int], rows: int) -> None:
    batch = make_conversations(lengths).batch(range(len(lengths)))
    filled = batch.with_filler(rows)
    assert filled.lengths[: len(lengths)] == batch.lengths
    assert sum(filled.lengths) == sum(lengths) + rows == len(filled.labels) == len(filled.features["audio"])
    assert max(filled.lengths) == max(lengths)
    assert min(filled.lengths) > 0
    assert torch.equal(filled.features["audio"][filled.utterances], batch.features["audio"])
    assert torch.equal(filled.dialogues[filled.utterances], batch.dialogues)


@given(LENGTHS, st.lists(st.integers(1, 3), max_size=2))
@settings(max_examples=30, deadline=None)
def test_pad_agrees_with_a_loop_and_unpad_inverts_it(lengths: list[int], tail: list[int]) -> None:
    batch = make_conversations(lengths).batch(range(len(lengths)))
    rows = torch.randn(sum(lengths), *tail)
    padded = batch.pad(rows)
    assert torch.equal(padded, naive_pad(rows, lengths))
    assert torch.equal(batch.unpad(padded), rows)


@given(LENGTHS)
@settings(max_examples=30, deadline=None)
def test_structure_of_the_rows(lengths: list[int]) -> None:
    batch = make_conversations(lengths).batch(range(len(lengths)))
    assert batch.dialogues.tolist() == [i for i, n in enumerate(lengths) for _ in range(n)]
    assert batch.positions.tolist() == [position for n in lengths for position in range(n)]
    assert batch.mask.tolist() == [[position < n for position in range(max(lengths))] for n in lengths]


def test_gradients_flow_through_padding_to_every_row() -> None:
    batch = make_conversations([2, 1]).batch([0, 1])
    rows = torch.zeros(3, 4, requires_grad=True)
    (batch.pad(rows) * 2).sum().backward()
    assert rows.grad is not None
    assert torch.equal(rows.grad, torch.full((3, 4), 2.0))


@given(LENGTHS, st.data())
@settings(max_examples=30, deadline=None)
def test_a_batch_holds_the_rows_of_its_dialogues_in_order(lengths: list[int], data: st.DataObject) -> None:
    conversations = make_conversations(lengths)
    chosen = data.draw(st.permutations(range(len(lengths))).map(lambda order: order[: 1 + order[0]]))
    starts = [0, *accumulate(lengths)]
    expected = [row for i in chosen for row in range(starts[i], starts[i] + lengths[i])]

    assert conversations.rows(chosen).tolist() == expected
    batch = conversations.batch(chosen)
    assert batch.features["text"][:, 0].tolist() == expected
    assert batch.features["audio"][:, 1].tolist() == [-row for row in expected]
    assert batch.labels.tolist() == [row % 3 for row in expected]
    assert batch.speakers.tolist() == [row % 2 for row in expected]
    assert batch.lengths == tuple(lengths[i] for i in chosen)


@given(LENGTHS, st.data())
@settings(max_examples=30, deadline=None)
def test_a_selection_is_a_corpus_of_its_own(lengths: list[int], data: st.DataObject) -> None:
    conversations = make_conversations(lengths)
    chosen = data.draw(st.permutations(range(len(lengths))))
    selected = conversations.select(chosen)

    assert selected.dialogue_ids == tuple(f"d{i}" for i in chosen)
    assert selected.utterance_ids == tuple(f"u{int(x)}" for x in selected.features["text"][:, 0])
    back = selected.select([chosen.index(i) for i in range(len(lengths))])
    assert torch.equal(back.features["audio"], conversations.features["audio"])
    assert back.utterance_ids == conversations.utterance_ids


def test_selecting_no_dialogue_leaves_no_rows() -> None:
    empty = make_conversations([2, 3]).select([])
    assert empty.lengths == ()
    assert empty.features["audio"].shape == (0, 2)


def test_a_batch_moves_as_a_whole() -> None:
    moved = make_conversations([2, 3]).batch([0, 1]).to("meta")
    assert {x.device.type for x in (*moved.features.values(), moved.speakers, moved.labels)} == {"meta"}
    assert moved.lengths == (2, 3)


def test_corpus_info_survives_a_checkpoint() -> None:
    info = CorpusInfo({"visual": 3, "text": 5}, ("a", "b"), 4, (7, 8))
    assert CorpusInfo.from_dict(info.to_dict()) == info
    assert info.modalities == ("visual", "text")
    with pytest.raises(KeyError):
        CorpusInfo.from_dict({"dims": {}})


def test_parts_share_the_tables_and_batches_gather_their_rows() -> None:
    conversations = make_conversations([2, 3, 1, 4])
    part = conversations.select([3, 0, 2]).select([0, 2])
    assert isinstance(part.features, Features)
    assert part.features.tables["text"] is conversations.features["text"]
    assert part.features["text"][:, 0].tolist() == [6, 7, 8, 9, 5]
    assert part.batch([1, 0]).features["text"][:, 0].tolist() == [5, 6, 7, 8, 9]
    assert part.dims == conversations.dims


def test_rows_that_follow_each_other_are_not_copied() -> None:
    conversations = make_conversations([2, 3, 1, 4])
    table = conversations.features["text"]
    together = conversations.batch([1, 2]).features["text"]
    assert together.data_ptr() == table[2:].data_ptr()
    assert together.equal(table[2:6])
    for apart in ([1, 3], [2, 1]):
        copied = conversations.batch(apart).features["text"]
        assert copied.untyped_storage().data_ptr() != table.untyped_storage().data_ptr()
        assert copied.equal(table[conversations.rows(apart)])


def test_scaled_features_are_scaled_wherever_they_are_read() -> None:
    conversations = make_conversations([2, 3])
    scales = {m: (torch.tensor([1.0]).double(), torch.tensor([4.0]).double()) for m in conversations.features}
    features = Features.of(conversations.features).scaled(scales)
    assert features["text"][:, 0].tolist() == [-0.25, 0, 0.25, 0.5, 0.75]
    assert features.select(torch.tensor([4, 1]))["text"][:, 0].tolist() == [0.75, 0]
    assert features["text"].dtype == torch.float32


@given(lengths=LENGTHS, chunk=st.integers(1, 30), offset=st.floats(-1e3, 1e3), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_moments_are_those_of_all_rows_together(lengths: list[int], chunk: int, offset: float, seed: int) -> None:
    table = offset + torch.randn(sum(lengths), 3, generator=torch.Generator().manual_seed(seed))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("merc.data.conversation.CHUNK", chunk)
        mean, deviation = Features({"text": table}).moments("text")
    np.testing.assert_allclose(mean, table.double().numpy().mean(0), atol=1e-9, rtol=1e-12)
    np.testing.assert_allclose(deviation, table.double().numpy().std(0), atol=1e-9, rtol=1e-9)
