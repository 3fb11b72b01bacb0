"""A stack against its seeds alone: losses, gradients, steps, scores."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from merc.balancing import ModalityDropout
from merc.balancing.policy import build_policy
from merc.data.conversation import ConversationBatch
from merc.models.lightning_module import EmotionRecognition
from merc.stacking.module import Member, StackedRecognition
from tests.conftest import begin_balancing
from tests.models.test_counts import Counts, on_the_host
from tests.stacking.conftest import STILL, stack

Make = Callable[..., ConversationBatch]
Members = Callable[..., list[Member]]

LENGTHS = ((4, 1, 9), (2, 2), (7, 3, 1, 1))
CHOICES = (
    "model=amb_dsgdn",
    "model=amb_dsgdn_released",
    "model=redifu graph.cross_modal.dropout=0",
    "model=redifu_released model.pad_dialogues=false graph=relational_gat",
    "denoiser=differential graph=gcn fusion=concat classifier=single_head objective=fused balancing=none",
    "denoiser=diff_transformer denoiser.default.window=2 graph.self_loops=false",
    "denoiser=differential graph.future=0 fusion=modality_attention gate=sigmoid",
    "denoiser.audio=none graph.visual=none classifier=weighted_logits",
    "graph=gat fusion=gated classifier=single_head objective=fused balancing=none",
    "graph=relational_gat graph.share_relations=true fusion=cross_attention",
    "graph/cross_modal=attention graph.cross_modal.dropout=0",
    "denoiser=none fusion=low_rank classifier=single_head objective=fused balancing=none",
    "objective=focal hyperparameters.class_weights=inverse_frequency",
)


def batches(make_batch: Make, seed: int = 0) -> list[ConversationBatch]:
    return [make_batch(lengths, seed=seed + i) for i, lengths in enumerate(LENGTHS)]


def losses_of(module: EmotionRecognition, batch: ConversationBatch) -> Tensor:
    total: Tensor = module.objective(module(batch), batch.labels)["total"]
    return total


def sgd(parameters: Iterable[nn.Parameter]) -> Optimizer:
    """Adam would make large steps of the rounding in gradients that are 0."""
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def steps(optimizer: Optimizer, loss: Callable[[int], Tensor], count: int) -> list[float]:
    """The loss of every step."""
    losses = []
    for step in range(count):
        optimizer.zero_grad()
        value = loss(step)
        value.backward()
        optimizer.step()
        losses.append(value.item())
    return losses


@pytest.mark.parametrize("choice", CHOICES)
def test_some_steps_equal_those_of_each_seed_alone(make_members: Members, make_batch: Make, choice: str) -> None:
    members = make_members(3, *choice.split(), *STILL)
    stacked = stack(members)
    sums = steps(sgd(stacked.stacked), lambda step: stacked.training_step(batches(make_batch, step), step), 3)
    alone = [
        steps(sgd(module.parameters()), lambda step, i=i, m=module: losses_of(m, batches(make_batch, step)[i]), 3)  # type: ignore[misc]
        for i, module in enumerate(members)
    ]
    torch.testing.assert_close(torch.tensor(sums), torch.tensor(alone).sum(0), rtol=1e-5, atol=1e-5)
    for member, module in zip(stacked.seeds, members, strict=True):
        torch.testing.assert_close(dict(member.state_dict()), dict(module.state_dict()), rtol=1e-4, atol=1e-5)


def end_epoch(stacked: StackedRecognition, evaluated: Sequence[ConversationBatch]) -> None:
    """What Lightning does behind the last training step; every split is the same batch of each seed."""
    stacked.on_train_epoch_end()
    stacked.eval()
    with torch.inference_mode():
        for split in range(len(stacked.seeds[0].evaluation_splits)):
            stacked.validation_step(evaluated, 0, split)
    stacked.on_validation_epoch_end()


def test_every_seed_has_the_losses_and_scores_of_its_own(make_members: Members, make_batch: Make) -> None:
    members = make_members(3, *STILL)
    stacked = stack(members)
    stacked.training_step(batches(make_batch), 0)
    stacked.training_step(batches(make_batch, 5), 1)
    end_epoch(stacked, batches(make_batch))
    for i, (member, module) in enumerate(zip(stacked.seeds, members, strict=True)):
        two = [batches(make_batch)[i], batches(make_batch, 5)[i]]
        losses = [losses_of(module, batch).item() * batch.rows for batch in two]
        assert member.logged["train/loss"] == pytest.approx(sum(losses) / sum(batch.rows for batch in two), rel=1e-5)
        module.eval().log_dict = lambda *_: None  # type: ignore[method-assign, assignment]
        with torch.inference_mode():
            module.validation_step(two[0], 0, 0)
            module.validation_step(two[0], 0, 1)
        module.on_validation_epoch_end()
        for split, scores in module.scores.items():
            ours = member.scores[split]
            assert ours["confusion_matrix"] == scores["confusion_matrix"]
            assert ours["loss"] == pytest.approx(scores["loss"], rel=1e-5)


def test_rows_of_nobody_change_nothing(make_members: Members, make_batch: Make) -> None:
    members = make_members(2, *STILL)
    results = []
    for other in ((3, 2, 5), (3, 2, 20, 20)):
        stacked = stack(members)
        stacked.training_step([make_batch((3, 2, 5)), make_batch(other, seed=1)], 0).backward()
        results.append([parameter.grad[0] for parameter in stacked.stacked if parameter.grad is not None])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-6)


def test_a_seed_that_is_lost_leaves_the_others_alone(make_members: Members, make_batch: Make) -> None:
    members = make_members(3, *STILL)
    sound, lost = stack(members), stack(members)
    with torch.no_grad():
        for parameter in lost.seeds[1].parameters():
            parameter.fill_(float("nan"))
    for stacked in (sound, lost):
        stacked.training_step(batches(make_batch), 0).backward()
    for ours, expected in zip(lost.stacked, sound.stacked, strict=True):
        if ours.grad is not None and expected.grad is not None:
            torch.testing.assert_close(ours.grad[::2], expected.grad[::2])


def test_progress_is_that_of_the_seeds_that_are_not_lost(make_members: Members, make_batch: Make) -> None:
    stacked = stack(make_members(3, *STILL))
    shown: dict[str, float] = {}
    stacked.log = lambda name, value, **_: shown.update({name: float(value)})  # type: ignore[method-assign, assignment]
    with torch.no_grad():
        for parameter in stacked.seeds[1].parameters():
            parameter.fill_(float("nan"))
    stacked.training_step(batches(make_batch), 0)
    end_epoch(stacked, batches(make_batch))
    first, lost, third = stacked.seeds
    assert math.isnan(lost.logged["train/loss"])
    assert shown["train/loss"] == pytest.approx((first.logged["train/loss"] + third.logged["train/loss"]) / 2)
    for split in first.scores:
        sound = [member.scores[split]["weighted_f1"] for member in (first, third)]
        assert shown[f"{split}/weighted_f1"] == pytest.approx(sum(sound) / 2)


def same(members: Sequence[Member]) -> StackedRecognition:
    """A stack of the first seed several times."""
    return stack([members[0]] * len(members))


def losses_of_all(stacked: StackedRecognition, own: Sequence[ConversationBatch]) -> list[float]:
    """Loss of each seed, summed over its utterances."""
    stacked.mean_losses.take()
    stacked.training_step(own, 0)
    means = stacked.mean_losses.take()["train/loss"].tolist()
    return [mean * batch.rows for mean, batch in zip(means, own, strict=True)]


def total(stacked: StackedRecognition, batch: ConversationBatch) -> list[float]:
    """The same of one batch for all."""
    return losses_of_all(stacked, [batch] * len(stacked.seeds))


@pytest.mark.parametrize("rates", [(), (*STILL[1:], "denoiser=none"), (*STILL[:1],)])
def test_equal_seeds_get_different_masks_and_the_same_stack_the_same(
    make_members: Members, make_batch: Make, rates: tuple[str, ...]
) -> None:
    stacked = same(make_members(3, *rates))
    torch.manual_seed(1)
    first = total(stacked, make_batch())
    assert len(set(first)) == 3
    torch.manual_seed(1)
    assert total(stacked, make_batch()) == first


def balancing(stacked: StackedRecognition) -> list[ModalityDropout]:
    return [member.model.balancing for member in stacked.seeds]  # type: ignore[misc]


def test_modalities_are_dropped_by_each_seed_for_itself(make_members: Members, make_batch: Make) -> None:
    stacked = same(make_members(3, *STILL, "balancing=fixed", "hyperparameters.execute_probability=0.7"))
    for mechanism in balancing(stacked):
        mechanism.active = True
        mechanism.probabilities.fill_(0.5)
    torch.manual_seed(1)
    losses = [total(stacked, make_batch()) for _ in range(10)]
    assert any(len(set(three)) == 3 for three in losses)
    executed = [int(mechanism.executed) for mechanism in balancing(stacked)]
    assert 0 < sum(executed) < 30
    assert len(set(executed)) > 1


def test_a_seed_that_was_lost_in_warm_up_leaves_the_others_balanced(make_members: Members, make_batch: Make) -> None:
    stacked = stack(make_members(3, *STILL, "balancing=fixed", "hyperparameters.execute_probability=1"))
    before = losses_of_all(stacked, batches(make_batch))
    for i, mechanism in enumerate(balancing(stacked)):
        mechanism.active = i > 0  # nobody calls the policy of a lost seed
        mechanism.probabilities.fill_(0.5)
    torch.manual_seed(1)
    losses = losses_of_all(stacked, batches(make_batch))
    assert [int(mechanism.executed) for mechanism in balancing(stacked)][1:] == [1, 1]
    changed = [loss != pytest.approx(without, rel=1e-5) for loss, without in zip(losses, before, strict=True)]
    assert changed[1:] == [True, True]


@pytest.mark.parametrize(
    ("metric", "alone"),
    [
        ("balancing=adaptive", False),
        ("balancing=adaptive_released", False),
        ("balancing.policy.metric._target_=torchmetrics.classification.MulticlassAccuracy", True),
    ],
)
def test_every_seed_balances_by_its_own_scores(
    make_members: Members, make_batch: Make, metric: str, alone: bool
) -> None:
    overrides = ("hyperparameters.execute_probability=0", "balancing.policy.warmup_epochs=0", metric)
    members = make_members(3, *STILL, *overrides)
    stacked = stack(members)
    policies = []
    for module in (*stacked.seeds, *members):
        policy: Any = build_policy(module.config)
        policy.setup(None, module, "fit")
        policy.active = policy.mechanism.active = True
        policies.append(policy)
    assert {mechanism.acts_alone for mechanism in balancing(stacked)} == {alone}
    stacked.training_step(batches(make_batch), 0)
    for module, batch in zip(members, batches(make_batch), strict=True):
        module(batch)
    for ours, expected in zip(policies[:3], policies[3:], strict=True):
        assert ours.summary() == pytest.approx(expected.summary())
        assert sum(ours.summary().values()) > 0
    assert policies[0].summary() != policies[1].summary()


@pytest.mark.parametrize("choice", ["model=amb_dsgdn", "model=redifu"])
def test_ten_seeds_ask_for_fewer_operators_than_three_alone(
    make_members: Members, make_batch: Make, monkeypatch: pytest.MonkeyPatch, choice: str
) -> None:
    monkeypatch.setattr("tests.models.test_counts._blocking_upload", lambda *_: False)  # knows single runs alone
    monkeypatch.setattr("merc.kernels.loaded", lambda: False)  # as on a GPU
    members = make_members(10, *choice.split(), "hyperparameters.warmup_epochs=0")
    stacked, batch = stack(members), make_batch((9, 5, 12, 3))
    for module in (*stacked.seeds, members[0]):
        begin_balancing(module)
    with Counts() as ten:
        stacked.training_step([batch] * 10, 0).backward()
    with Counts() as one:
        losses_of(members[0], batch).backward()
    assert ten.operators < 3 * one.operators
    assert ten.waits == []


@pytest.mark.parametrize(
    "choice",
    [
        "model=amb_dsgdn",
        "model=redifu",
        "denoiser=differential graph=gcn fusion=gated classifier=single_head objective=fused balancing=none",
    ],
)
def test_a_step_of_all_can_be_queued_on_a_device_that_tells_nothing(
    make_members: Members, make_batch: Make, monkeypatch: pytest.MonkeyPatch, choice: str
) -> None:
    stacked = stack(make_members(3, *choice.split(), "hyperparameters.warmup_epochs=0")).to("meta")
    # Between these two devices PyTorch makes new parameters, elsewhere they stay the same.
    stacked.weights = {
        name: torch.empty_like(weight, device="meta").requires_grad_(weight.requires_grad)
        for name, weight in stacked.weights.items()
    }
    for module in stacked.seeds:
        begin_balancing(module)
    monkeypatch.setattr(torch, "tensor", on_the_host(torch.tensor))
    for _ in range(2):
        stacked.training_step([batch.to("meta") for batch in batches(make_batch)], 0).backward()
    stacked.eval()
    with torch.inference_mode():
        stacked.validation_step([batch.to("meta") for batch in batches(make_batch)], 0)


@pytest.mark.parametrize("choice", ["model=amb_dsgdn", "model=redifu graph.cross_modal.dropout=0"])
def test_bfloat16_is_close(make_members: Members, make_batch: Make, choice: str) -> None:
    members = make_members(3, *choice.split(), *STILL)
    stacked = stack(members)
    with torch.autocast("cpu", torch.bfloat16):
        ours = stacked.training_step(batches(make_batch), 0)
        alone = [losses_of(module, batch) for module, batch in zip(members, batches(make_batch), strict=True)]
    assert ours.item() == pytest.approx(sum(loss.item() for loss in alone), rel=0.02)
    for loss in (ours, *alone):
        loss.backward()
    for i, module in enumerate(members):
        expected = torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])
        own = torch.cat([p.grad[i].flatten() for p in stacked.stacked if p.grad is not None])
        assert (own - expected).norm() < 0.1 * expected.norm()
