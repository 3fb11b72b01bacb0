"""What modality dropout drops, rescales and keeps."""

from collections.abc import Callable

import pytest
import torch

from merc.balancing import ModalityDropout
from merc.data.conversation import ConversationBatch

MODALITIES = ("text", "audio", "visual")


def mechanism(q: tuple[float, ...], execute: float = 1.0) -> ModalityDropout:
    module = ModalityDropout(MODALITIES, execute)
    module.probabilities.copy_(torch.tensor(q))
    module.active = True
    return module


@pytest.fixture
def batch(make_batch: Callable[..., ConversationBatch]) -> ConversationBatch:
    return make_batch(lengths=(3, 2) * 500)


def ones(batch: ConversationBatch) -> dict[str, torch.Tensor]:
    return {m: torch.ones(len(batch.labels), 2, requires_grad=True) for m in MODALITIES}


def test_whole_dialogues_lose_a_modality_and_the_rest_is_rescaled(batch: ConversationBatch) -> None:
    torch.manual_seed(0)
    rows, kept = mechanism((0.5, 0.2, 0.0))(ones(batch), batch)
    scale = 1 / (1 - 0.7 / 3)
    per_dialogue = {m: batch.pad(x[:, 0]) for m, x in rows.items()}
    for modality, share in (("text", 0.5), ("audio", 0.8), ("visual", 1.0)):
        first = per_dialogue[modality][:, 0]
        torch.testing.assert_close(first[first > 0], torch.full_like(first[first > 0], scale))
        assert (first > 0).float().mean().item() == pytest.approx(share, abs=0.04)
        assert torch.equal(per_dialogue[modality], torch.where(batch.mask, first[:, None], 0.0))
    assert kept is not None
    assert kept.all()


def test_dialogues_without_any_modality_are_marked(batch: ConversationBatch) -> None:
    torch.manual_seed(0)
    rows, kept = mechanism((0.5, 0.5, 0.5))(ones(batch), batch)
    alive = sum(x[:, 0] for x in rows.values()) > 0
    assert kept is not None
    assert torch.equal(kept, alive)
    assert batch.pad(kept.float())[:, 0].mean().item() == pytest.approx(1 - 0.125, abs=0.03)


def test_gradient_is_the_factor_and_does_not_reach_the_probabilities(batch: ConversationBatch) -> None:
    torch.manual_seed(0)
    module = mechanism((0.3, 0.0, 0.0))
    module.probabilities.requires_grad_(True)
    rows = ones(batch)
    dropped, _ = module(rows, batch)
    sum(x.sum() for x in dropped.values()).backward()
    torch.testing.assert_close(rows["audio"].grad, torch.full_like(rows["audio"], 1 / 0.9))
    assert torch.equal(rows["text"].grad, dropped["text"].detach())
    assert module.probabilities.grad is None


def test_some_batches_are_left_alone_and_counted(make_batch: Callable[..., ConversationBatch]) -> None:
    torch.manual_seed(0)
    batch = make_batch()
    module = mechanism((1.0, 0.5, 0.5), execute=0.25)
    touched = sum(int(not module(ones(batch), batch)[0]["text"].any()) for _ in range(400))
    assert module.executed == touched
    assert touched / 400 == pytest.approx(0.25, abs=0.06)


def test_everything_dropped_is_finite_and_marked(make_batch: Callable[..., ConversationBatch]) -> None:
    batch = make_batch()
    rows, kept = mechanism((1.0, 1.0, 1.0))(ones(batch), batch)
    assert all(not x.any() for x in rows.values())
    assert kept is not None
    assert not kept.any()


def test_nothing_happens_before_a_policy_switches_it_on(make_batch: Callable[..., ConversationBatch]) -> None:
    batch = make_batch()
    module = mechanism((0.9, 0.9, 0.9))
    module.active = False
    rows, kept = module(given := ones(batch), batch)
    assert kept is None
    assert all(rows[m] is given[m] for m in MODALITIES)
