"""Every alternative of every stage beside every alternative of every other stage.

The alternatives are the files under conf/, so that a new one is tried without a change here. Pairs that are refused as
contradictory are left out; all others occur in at least one of the combinations that are built, trained for a step,
saved and restored.
"""

import random
from collections.abc import Callable
from itertools import combinations, product
from pathlib import Path
from typing import Any, Literal

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from merc.balancing import build_policy
from merc.combinations import refuse_contradictions
from merc.config import compose, plain
from merc.data.conversation import ConversationBatch, CorpusInfo
from merc.errors import MercError
from merc.models.lightning_module import EmotionRecognition

CONF = Path(__file__).resolve().parents[2] / "conf"
STAGES = ("denoiser", "graph", "gate", "balancing", "fusion", "classifier", "objective")
CHOICES = {stage: sorted(p.stem for p in (CONF / stage).glob("*.yaml") if p.stem[0] != "_") for stage in STAGES}
INFO = CorpusInfo(
    dims={"text": 7, "audio": 5, "visual": 3},
    label_names=("calm", "glad", "gloomy", "cross"),
    speaker_slots=3,
    class_counts=(4, 3, 2, 1),
)

Row = tuple[str, ...]
Configure = Callable[[Row], dict[str, Any]]


@pytest.fixture(scope="module")
def configure() -> Configure:
    """Stage choices → the configuration of a small model, put together from stages that were composed once."""
    small = ["data=synthetic_meld", "hyperparameters.hidden_dim=16", "hyperparameters.window=3"]
    base = plain(compose(small))
    stages = {
        stage: {name: plain(compose([*small, f"{stage}={name}"]))[stage] for name in names}
        for stage, names in CHOICES.items()
    }
    return lambda row: {**base, **{stage: stages[stage][name] for stage, name in zip(STAGES, row, strict=True)}}


def pairs(row: Row) -> set[tuple[tuple[str, str], ...]]:
    return set(combinations(zip(STAGES, row, strict=True), 2))


def accepted(configure: Configure) -> list[Row]:
    """All combinations that are not refused."""

    def accepts(row: Row) -> bool:
        try:
            refuse_contradictions(configure(row))
        except MercError:
            return False
        return True

    return [row for row in product(*CHOICES.values()) if accepts(row)]


def covering(rows: list[Row]) -> list[Row]:
    """Some of the rows, in which every pair of the rows occurs: of some random ones, always the one with most news."""
    generator = random.Random(0)  # noqa: S311
    missing = set().union(*map(pairs, rows))
    chosen: list[Row] = []
    while missing:
        needed = min(missing)
        candidates = generator.sample(rows, min(100, len(rows)))
        candidates.append(next(row for row in rows if needed in pairs(row)))
        best = max(candidates, key=lambda row: len(pairs(row) & missing))
        chosen.append(best)
        missing -= pairs(best)
    return chosen


class FiniteGradients(L.Callback):
    """Every parameter that is trained has a finite gradient when the optimiser steps."""

    def __init__(self, what: str) -> None:
        self.what = what

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        for name, parameter in pl_module.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None, f"{self.what}: no gradient on {name}"
                assert parameter.grad.isfinite().all(), f"{self.what}: gradient of {name}"


def trained(
    config: dict[str, Any],
    batch: ConversationBatch,
    folder: Path,
    what: str,
    precision: Literal["32-true", "bf16-mixed"] = "32-true",
) -> EmotionRecognition:
    """The module after one step of the trainer, balancing included."""
    torch.manual_seed(0)
    module = EmotionRecognition(config, INFO)
    policy = build_policy(config)
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=1,
        limit_val_batches=0,
        callbacks=[FiniteGradients(what), *([] if policy is None else [policy])],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=folder,
        precision=precision,
    )
    trainer.fit(module, DataLoader([batch], batch_size=None))
    return module.eval()


def picked(batch: ConversationBatch, dialogue: int) -> ConversationBatch:
    rows = batch.dialogues == dialogue
    return ConversationBatch(
        features={m: x[rows] for m, x in batch.features.items()},
        speakers=batch.speakers[rows],
        labels=batch.labels[rows],
        lengths=(batch.lengths[dialogue],),
    )


def restored(module: EmotionRecognition, path: Path) -> EmotionRecognition:
    checkpoint: dict[str, Any] = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, path)
    return EmotionRecognition.from_checkpoint(path)


def check_works(config: dict[str, Any], batch: ConversationBatch, folder: Path, what: str) -> None:
    """One training step with finite gradients, a checkpoint, and predictions that depend on the dialogue alone."""
    module = trained(config, batch, folder, what)
    with torch.no_grad():
        together = module(batch)
        assert together.fused.isfinite().all(), what
        assert torch.equal(restored(module, folder / "last.ckpt")(batch).fused, together.fused), what
        if config["model"]["pad_dialogues"]:  # then they depend on the others, by definition
            return
        for dialogue in range(len(batch.lengths)):
            expected = together.fused[batch.dialogues == dialogue]
            alone = module(picked(batch, dialogue)).fused
            torch.testing.assert_close(alone, expected, atol=1e-5, rtol=1e-4, msg=lambda m: f"{what}: {m}")


def check_works_in_mixed_precision(config: dict[str, Any], batch: ConversationBatch, folder: Path, what: str) -> None:
    """One training step with finite gradients, and predictions near those of single precision."""
    module = trained(config, batch, folder, what, precision="bf16-mixed")
    with torch.no_grad():
        exact = module(batch).fused
        with torch.autocast("cpu", torch.bfloat16):
            rounded = module(batch).fused
    torch.testing.assert_close(rounded.float(), exact, atol=0.2, rtol=0.1, msg=lambda m: f"{what}: {m}")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*(num_workers|isinstance|log).*")
def test_every_pair_of_alternatives_works(
    configure: Configure, make_batch: Callable[..., ConversationBatch], tmp_path: Path
) -> None:
    rows = covering(accepted(configure))
    for stage, name in ((stage, name) for stage, names in CHOICES.items() for name in names):
        assert any((stage, name) in zip(STAGES, row, strict=True) for row in rows), f"{stage}={name} is never accepted"
    batch = make_batch(lengths=(5, 1, 12, 3))
    for row in rows:
        what = " ".join(f"{stage}={name}" for stage, name in zip(STAGES, row, strict=True))
        check_works(configure(row), batch, tmp_path, what)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*(num_workers|isinstance|log).*")
def test_every_alternative_works_in_mixed_precision(
    configure: Configure, make_batch: Callable[..., ConversationBatch], tmp_path: Path
) -> None:
    batch = make_batch(lengths=(5, 1, 12, 3))
    for row in covering(accepted(configure)):
        check_works_in_mixed_precision(configure(row), batch, tmp_path, " ".join(row))


@pytest.mark.filterwarnings("ignore:.*(num_workers|isinstance|log).*")
@pytest.mark.parametrize("model", sorted(path.stem for path in (CONF / "model").glob("*.yaml")))
def test_every_model_works_in_mixed_precision(
    model: str, make_batch: Callable[..., ConversationBatch], tmp_path: Path
) -> None:
    small = ["hyperparameters.hidden_dim=16", "hyperparameters.heads=4", "hyperparameters.fusion_heads=2"]
    config = plain(compose([f"model={model}", "data=synthetic_meld", *small]))
    check_works_in_mixed_precision(config, make_batch(lengths=(5, 1, 12, 3)), tmp_path, model)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*(num_workers|isinstance|log).*")
@pytest.mark.parametrize("model", ["redifu", "redifu_released"])
def test_every_alternative_works_with_the_other_method(
    model: str, make_batch: Callable[..., ConversationBatch], tmp_path: Path
) -> None:
    base = [f"model={model}", "data=synthetic_meld", "hyperparameters.hidden_dim=16", "hyperparameters.window=3"]
    base += ["hyperparameters.heads=4", "hyperparameters.fusion_heads=2", "graph.share_relations=false"]
    batch = make_batch(lengths=(5, 1, 12, 3))
    tried = 0
    for stage, name in ((stage, name) for stage, names in CHOICES.items() for name in names):
        config = plain(compose([*base, f"{stage}={name}"]))
        try:
            refuse_contradictions(config)
        except MercError:
            continue
        check_works(config, batch, tmp_path, f"{model} {stage}={name}")
        tried += 1
    assert tried > 20


def test_the_combinations_cover_every_pair_that_is_not_refused() -> None:
    rows = [row for row in product("ab", "cde", "fg", "h", "ij", "kl", "m") if not (row[0] == "a" and row[1] == "c")]
    chosen = covering(rows)
    assert set(chosen) <= set(rows)
    assert len(chosen) < len(rows) / 2
    for first, second in combinations(range(7), 2):
        wanted = {(row[first], row[second]) for row in rows}
        assert {(row[first], row[second]) for row in chosen} == wanted
