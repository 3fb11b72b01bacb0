"""What only a GPU can show: the numbers of the CPU, steps that wait for nothing, recorded steps that equal others.

Skipped where there is none.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from merc.config import compose
from merc.data.conversation import ConversationBatch
from merc.stacking.module import Member, StackedRecognition
from merc.train import train
from tests.conftest import begin_balancing
from tests.models.test_counts import MODELS
from tests.stacking.conftest import STILL
from tests.stacking.test_compile import FRAME, batches
from tests.stacking.test_module import CHOICES, Make, Members, sgd, steps
from tests.stacking.test_replay import evaluate
from tests.stacking.test_training import PowerCutError, cut, folders, table, together

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU of NVIDIA's")

GPU = torch.device("cuda")


@contextmanager
def no_waiting() -> Iterator[None]:
    """What waits for the device is an error inside."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def on_gpu(members: list[Member], mode: str | None) -> StackedRecognition:
    """A stack, balanced if its configuration says so."""
    frames = (FRAME, FRAME) if mode else ()
    stacked = StackedRecognition([member.to(GPU) for member in members], mode, *frames)
    stacked.log = lambda *_, **__: None  # type: ignore[method-assign, assignment]
    for member in stacked.seeds:
        begin_balancing(member)
    return stacked


@pytest.mark.parametrize("model", MODELS)
def test_losses_and_gradients_are_those_of_the_cpu(make_members: Members, make_batch: Make, model: str) -> None:
    module, batch = make_members(1, model)[0].eval(), make_batch((9, 5, 12, 3))

    def gradients(device: torch.device) -> dict[str, Tensor]:
        module.to(device).zero_grad()
        losses = module.objective(module(batch.to(device)), batch.labels.to(device))
        losses["total"].backward()
        of = {name: p.grad.cpu() for name, p in module.named_parameters() if p.grad is not None}
        return {"loss": losses["total"].detach().cpu(), **of}

    torch.testing.assert_close(gradients(GPU), gradients(torch.device("cpu")), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("model", [*MODELS, "balancing=ogm_ge"])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_no_training_step_waits(make_members: Members, make_batch: Make, model: str, precision: torch.dtype) -> None:
    module = begin_balancing(make_members(1, model)[0].to(GPU))
    optimizer = torch.optim.Adam(module.parameters(), fused=True)
    own = [make_batch(lengths).to(GPU) for lengths in ((9, 5, 12), (4, 2))]

    def step(batch: ConversationBatch) -> None:
        with torch.autocast("cuda", precision, enabled=precision != torch.float32, cache_enabled=False):
            loss = module.training_step(batch, 0)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    step(own[0])  # makes handles, and the optimiser's state
    with no_waiting():
        for batch in own:
            step(batch)


@pytest.mark.parametrize("choice", CHOICES)
def test_replayed_steps_and_evaluation_equal_others(make_members: Members, make_batch: Make, choice: str) -> None:
    # Dropping goes through all its operators, and drops nothing.
    balanced = ("hyperparameters.execute_probability=1", "hyperparameters.base_probability=0")

    def numbers(mode: str | None) -> tuple[list[float], list[Any], list[int]]:
        stacked = on_gpu(make_members(2, *choice.split(), *STILL, *balanced), mode)
        own = [[batch.to(GPU) for batch in batches(make_batch, step)] for step in range(6)]
        losses = steps(sgd(stacked.stacked), lambda step: stacked.training_step(own[step], step), 6)
        for _ in range(2):
            evaluate(stacked, own[0])
        executed = [int(getattr(member.model.balancing, "executed", 0)) for member in stacked.seeds]
        return losses, [member.scores for member in stacked.seeds], executed

    (losses, scores, executed), (others, expected, of_others) = numbers("cudagraphs"), numbers(None)
    assert losses == pytest.approx(others, rel=1e-4)
    assert executed == of_others
    for one, other in zip(scores, expected, strict=True):
        assert one["validation"]["confusion_matrix"] == other["validation"]["confusion_matrix"]
        assert one["validation"]["loss"] == pytest.approx(other["validation"]["loss"], rel=1e-4)


@pytest.mark.parametrize("choice", ["model=amb_dsgdn", "model=redifu"])
def test_no_replayed_step_waits_and_every_one_draws_masks_of_its_own(
    make_members: Members, make_batch: Make, choice: str
) -> None:
    stacked = on_gpu(make_members(2, *choice.split(), "hyperparameters.warmup_epochs=0"), "cudagraphs")
    own = [batch.to(GPU) for batch in batches(make_batch, 0)]

    def losses() -> list[Tensor]:
        drawn = []
        for step in range(3):
            loss = stacked.training_step(own, step)
            loss.backward()
            stacked.stacked.zero_grad()
            drawn.append(loss.detach())
        return drawn

    losses()
    torch.manual_seed(1)
    with no_waiting():
        first = losses()
    torch.manual_seed(1)
    again = [loss.item() for loss in losses()]
    assert again == pytest.approx([loss.item() for loss in first], rel=1e-5)
    assert len(set(again)) == 3


@pytest.mark.parametrize("seeds", ["1", "1,2"])
def test_replayed_runs_that_were_cut_off_go_on_as_if_nothing_had_happened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seeds: str
) -> None:
    overrides = ("compile=cudagraphs", "trainer=gpu", "hyperparameters.warmup_epochs=1", "trainer.max_epochs=4")
    trained = partial(together, seeds=seeds)
    assert not any(trained(tmp_path / "whole", *overrides))
    with monkeypatch.context() as patch:
        cut(patch, seed=int(seeds[-1]), epoch=2, before_writing=False)
        with pytest.raises(PowerCutError):
            trained(tmp_path / "cut", *overrides)
    assert not any(trained(tmp_path / "cut", *overrides, "resume=true"))
    for ours, expected in zip(folders(tmp_path / "cut"), folders(tmp_path / "whole"), strict=True):
        rows = list(zip(table(ours), table(expected), strict=True))
        assert len(rows) == 4
        for one, other in rows:
            assert one["train/loss"] == pytest.approx(other["train/loss"], rel=1e-3)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_replayed_run_learns_as_well_as_another(tmp_path: Path, precision: str) -> None:
    def score(mode: str) -> float:
        overrides = ["data=synthetic_iemocap", "data.size=0.3", "trainer=gpu", "trainer.max_epochs=8"]
        small = ["hyperparameters.hidden_dim=128", "hyperparameters.learning_rate=3e-4", f"run_dir={tmp_path / mode}"]
        metrics = train(compose([*overrides, *small, f"trainer.precision={precision}", f"compile={mode}"]))
        return float(metrics["last"]["weighted_f1"])

    assert score("cudagraphs") == pytest.approx(score("null"), abs=0.1)
