"""CUDA graphs: what is asked of PyTorch for them, the same numbers, and what does not hang on when they were recorded.

What a GPU makes of it is in tests/stacking/test_gpu.py.
"""

import gc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from merc.balancing.policy import build_policy
from merc.data.conversation import ConversationBatch
from merc.data.stacked import Frame
from merc.errors import MercError
from merc.stacking.module import StackedRecognition
from merc.stacking.refusals import refuse_stacking
from merc.stacking.replay import MOST_RECORDINGS, Replayed
from tests.stacking.conftest import STILL, Captured, Recordings, stack
from tests.stacking.test_compile import FRAME, batches, of_lengths
from tests.stacking.test_module import CHOICES, Make, Members, sgd, steps
from tests.stacking.test_training import PowerCutError, alone, cut, folders, outcome, together


def evaluate(stacked: StackedRecognition, own: list[ConversationBatch]) -> None:
    """Two batches of validation."""
    stacked.eval()
    with torch.inference_mode():
        for _ in range(2):
            stacked.validation_step(own, 0)
    stacked.on_validation_epoch_end()
    stacked.train()


@pytest.mark.parametrize("choice", [CHOICES[0], *(pytest.param(c, marks=pytest.mark.slow) for c in CHOICES[1:])])
def test_replayed_steps_equal_others(
    make_members: Members, make_batch: Make, recordings: Recordings, choice: str
) -> None:
    members = make_members(2, *choice.split(), *STILL)

    def run(mode: str | None) -> tuple[list[float], dict[str, Tensor], list[Any]]:
        stacked = stack(members, mode, FRAME)
        losses = steps(sgd(stacked.stacked), lambda i: stacked.training_step(batches(make_batch, i), i), 4)
        evaluate(stacked, batches(make_batch, 0))
        return losses, dict(stacked.seeds[1].state_dict()), [member.scores for member in stacked.seeds]

    (replayed, ours, our_scores), (others, expected, scores) = run("cudagraphs"), run(None)
    assert replayed == pytest.approx(others, rel=1e-5)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
    for one, other in zip(our_scores, scores, strict=True):
        assert one["validation"]["confusion_matrix"] == other["validation"]["confusion_matrix"]


@pytest.mark.parametrize("mode", ["cudagraphs", "default"])
def test_balancing_is_a_part_of_the_graph(
    make_members: Members, make_batch: Make, recordings: Recordings, captured: Captured, mode: str
) -> None:
    overrides = ("hyperparameters.warmup_epochs=1", "hyperparameters.execute_probability=1")
    members = make_members(2, *STILL, *overrides, "hyperparameters.base_probability=0")

    def run(mode: str | None) -> tuple[list[float], list[dict[str, float]]]:
        stacked = stack(members, mode, FRAME)
        policies: list[Any] = [build_policy(member.config) for member in stacked.seeds]
        for policy, member in zip(policies, stacked.seeds, strict=True):
            policy.setup(None, member, "fit")

        def loss(step: int) -> Tensor:
            for policy in policies:
                policy.active = policy.mechanism.active = step > 1
            return stacked.training_step(batches(make_batch, step % 2), step)

        losses = steps(sgd(stacked.stacked), loss, 2)
        evaluate(stacked, batches(make_batch, 0))
        losses += steps(sgd(stacked.stacked), lambda step: loss(step + 2), 3)
        evaluate(stacked, batches(make_batch, 0))
        return losses, [policy.summary() for policy in policies]

    (ours, our_states), (others, states) = run(mode), run(None)
    assert ours == pytest.approx(others, rel=1e-5)
    for one, other in zip(our_states, states, strict=True):
        assert one == pytest.approx(other, rel=1e-5)
        assert one["executed"] == 3  # not the times that it ran to be recorded
        assert one["score_text"] > 0
    assert captured.graphs == (2 if mode == "default" else 0)
    # Two sizes before balancing and two behind the warm-up; evaluation is the same.
    assert len(recordings.sizes) == (5 if mode == "cudagraphs" else 0)


def test_what_is_drawn_does_not_hang_on_when_graphs_were_recorded(
    make_members: Members, make_batch: Make, recordings: Recordings
) -> None:
    def losses(recorded_before: bool) -> float:
        stacked = stack(make_members(2), "cudagraphs", FRAME)
        if recorded_before:
            stacked.training_step(batches(make_batch, 0), 0)
        torch.manual_seed(7)
        return stacked.training_step(batches(make_batch, 0), 1).item()

    assert losses(False) == losses(True)
    assert len(recordings.sizes) == 2


def test_few_sizes_are_recorded_and_the_others_computed(recordings: Recordings) -> None:
    def double(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        return weights["w"] * 2 * x

    weight, replayed = torch.ones((), requires_grad=True), Replayed(double)
    for _ in range(2):
        for size in range(1, MOST_RECORDINGS + 3):
            weight.grad = None
            replayed({"w": weight}, torch.full((size,), 3.0)).sum().backward()
            assert weight.grad == 6 * size
    assert gc.isenabled()
    assert [shape for (shape,) in recordings.sizes] == [(size,) for size in range(1, MOST_RECORDINGS + 1)]


def test_what_cannot_be_recorded_is_explained(recordings: Recordings) -> None:
    def refuse(weights: dict[str, Tensor]) -> Tensor:
        raise RuntimeError("CUDA error: operation not permitted\nwhen stream is capturing")

    with pytest.raises(MercError, match=r"leave compile=null\. \(CUDA error: operation not permitted when stream"):
        Replayed(refuse)({"w": torch.ones(1)})


@pytest.mark.parametrize("rows", [1, 12, 13, 47, 100])
def test_frames_of_few_sizes_hold_every_batch(rows: int) -> None:
    largest = Frame(rows=100, longest=9, count=30)
    own: list[ConversationBatch] = [of_lengths([1] * rows), of_lengths([1])]
    frames = {largest.fitting([of_lengths([1] * n), of_lengths([1])], 8).rows for n in range(1, 101)}
    assert len(frames) <= 8
    assert max(frames) == 100
    assert rows <= largest.fitting(own, 8).rows < rows + 100 / 8 + 1
    assert largest.fitting(own, 1) == largest


def test_without_a_gpu_it_is_refused(make_config: Callable[..., dict[str, Any]]) -> None:
    with pytest.raises(MercError, match=r"cannot be compiled: compile=cudagraphs .* GPU .* Leave compile=null"):
        refuse_stacking([make_config("compile=cudagraphs", "trainer=cpu")])


@pytest.mark.slow
@pytest.mark.parametrize("seeds", ["1", "1,2"])
def test_replayed_runs_that_were_cut_off_go_on_as_if_nothing_had_happened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recordings: Recordings, seeds: str
) -> None:
    trained = partial(alone if seeds == "1" else together, seeds=seeds)
    whole = ("compile=cudagraphs", "hyperparameters.warmup_epochs=1", "trainer.max_epochs=3")
    trained(tmp_path / "whole", *whole)
    with monkeypatch.context() as patch:
        cut(patch, seed=int(seeds[-1]), epoch=1, before_writing=False)
        with pytest.raises(PowerCutError):
            trained(tmp_path / "cut", *whole)
    torch.manual_seed(12345)
    trained(tmp_path / "cut", *whole, "resume=true")
    assert list(map(outcome, folders(tmp_path / "cut"))) == list(map(outcome, folders(tmp_path / "whole")))
