"""Relation graphs against three nested loops, windows against slices."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from merc.data.conversation import ConversationBatch
from merc.models.graphs.neighbourhood import Neighbourhood, relation_graphs

DIALOGUES = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=14), min_size=1, max_size=5)


def batch_of(dialogues: list[list[int]], causal: bool = False) -> ConversationBatch:
    speakers = torch.tensor([speaker for dialogue in dialogues for speaker in dialogue])
    lengths = tuple(len(dialogue) for dialogue in dialogues)
    return ConversationBatch({}, speakers=speakers, labels=torch.zeros_like(speakers), lengths=lengths, causal=causal)


def adjacency_by_loops(dialogues: list[list[int]], past: int, future: int) -> dict[str, torch.Tensor]:
    longest = max(len(dialogue) for dialogue in dialogues)
    inter = torch.zeros(len(dialogues), longest, longest, dtype=torch.int64)
    intra = inter.clone()
    for b, dialogue in enumerate(dialogues):
        for i, receiver in enumerate(dialogue):
            for j, source in enumerate(dialogue):
                if i == j:
                    inter[b, i, j] = intra[b, i, j] = 1
                elif i - past <= j < i:
                    (intra if receiver == source else inter)[b, i, j] = 2 if receiver == source else 5
                elif i < j <= i + future:
                    (intra if receiver == source else inter)[b, i, j] = 3 if receiver == source else 4
    return {"inter_speaker": inter, "intra_speaker": intra}


@settings(max_examples=60, deadline=None)
@given(dialogues=DIALOGUES, past=st.integers(0, 20), future=st.integers(0, 20), causal=st.booleans())
def test_relations_equal_loops(dialogues: list[list[int]], past: int, future: int, causal: bool) -> None:
    batch = batch_of(dialogues, causal)
    expected = adjacency_by_loops(dialogues, past, 0 if causal else future)
    for name, graph in relation_graphs(batch, past, future).items():
        assert torch.equal(graph.dense(), expected[name])


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=4), past=st.integers(0, 9), future=st.integers(0, 9))
def test_windows_are_the_rows_around_each_block(lengths: list[int], past: int, future: int) -> None:
    batch = batch_of([[0] * length for length in lengths])
    hood = Neighbourhood.of(batch, past, future)
    rows = torch.arange(hood.rows)[:, None]
    assert torch.equal(hood.unblock(hood.blocks(rows)), rows)
    windows = hood.windows(rows, fill=-1)
    assert windows.shape == (hood.count, hood.width, 1)
    for block in range(hood.count):
        start = block * hood.size - hood.past
        expected = [row if 0 <= row < hood.rows else -1 for row in range(start, start + hood.width)]
        assert windows[block, :, 0].tolist() == expected


def test_size_of_the_structure_grows_with_rows_not_with_their_square() -> None:
    sizes = [
        graph.relations.numel()
        for length in (500, 1000, 2000)
        for graph in relation_graphs(batch_of([[0] * length]), past=5, future=5).values()
    ]
    assert sizes[-1] <= 4.2 * sizes[0]
