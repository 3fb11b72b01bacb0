"""Factories shared by the tests."""

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.core.hydra_config import HydraConfig

from merc.balancing import build_policy
from merc.config import compose, plain
from merc.data.conversation import ConversationBatch, CorpusInfo
from merc.models.build import build_model
from merc.models.emotion_model import EmotionModel
from merc.models.lightning_module import EmotionRecognition

DIMS = {"text": 7, "audio": 5, "visual": 3}
CLASSES = ("calm", "glad", "gloomy", "cross")


@pytest.fixture(autouse=True)
def commands_leave_nothing_behind() -> Iterator[None]:
    """Forget what a command that a test ran in this process told Hydra, the loggers and PyTorch."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision("highest")
    HydraConfig.instance().cfg = None
    root.handlers[:] = handlers
    root.setLevel(level)
    for name in [name for name in logging.root.manager.loggerDict if name.split(".")[0] == "hydra"]:
        logging.getLogger(name).setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def golden_files() -> list[Path]:
    return sorted((Path(__file__).parent / "golden").glob("*.safetensors"))


@pytest.fixture
def make_batch() -> Callable[..., ConversationBatch]:
    """A random batch: dialogue lengths, dimensions, speakers and a seed."""

    def make(
        lengths: Sequence[int] = (4, 1, 9), dims: dict[str, int] | None = None, speakers: int = 3, seed: int = 0
    ) -> ConversationBatch:
        generator = torch.Generator().manual_seed(seed)
        rows = sum(lengths)
        return ConversationBatch(
            features={m: torch.randn(rows, d, generator=generator) for m, d in (dims or DIMS).items()},
            speakers=torch.randint(speakers, (rows,), generator=generator),
            labels=torch.randint(len(CLASSES), (rows,), generator=generator),
            lengths=tuple(lengths),
        )

    return make


@pytest.fixture
def make_config() -> Callable[..., dict[str, Any]]:
    """The plain configuration of a small model, with overrides."""

    def make(*overrides: str) -> dict[str, Any]:
        small = ["data=synthetic_meld", "hyperparameters.hidden_dim=16", "hyperparameters.window=3"]
        return plain(compose([*small, *overrides]))

    return make


@pytest.fixture
def make_model(make_config: Callable[..., dict[str, Any]]) -> Callable[..., EmotionModel]:
    """A small seeded model, with overrides of its configuration."""

    def make(*overrides: str, dims: dict[str, int] | None = None) -> EmotionModel:
        torch.manual_seed(0)
        info = CorpusInfo(dims=dims or DIMS, label_names=CLASSES, speaker_slots=3, class_counts=(4, 3, 2, 1))
        return build_model(make_config(*overrides), info)

    return make


def begin_balancing(module: EmotionRecognition) -> EmotionRecognition:
    """Balanced from now on, if at all."""
    policy: Any = build_policy(module.config)
    if policy is not None:
        policy.setup(None, module, "fit")
        policy.active = True
        if module.model.balancing is not None:
            module.model.balancing.active = True
    return module
