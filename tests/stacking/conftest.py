"""Stacks of small models."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import pytest
import torch

from merc.data.conversation import CorpusInfo
from merc.data.stacked import Frame
from merc.stacking.module import Member, StackedRecognition
from tests.conftest import CLASSES, DIMS

STILL = ("hyperparameters.dropout=0", "graph.default.dropout=0")
"""Overrides without which masks are drawn; cross-modal edges have a rate of their own."""

INFO = CorpusInfo(dims=DIMS, label_names=CLASSES, speaker_slots=3, class_counts=(4, 3, 2, 1))


@pytest.fixture
def make_members(make_config: Callable[..., dict[str, Any]]) -> Callable[..., list[Member]]:
    """Modules in training mode, each initialised by itself, of one configuration."""

    def make(count: int, *overrides: str) -> list[Member]:
        heads = ("hyperparameters.heads=4", "hyperparameters.fusion_heads=2")
        config = make_config(*heads, *overrides)
        torch.manual_seed(0)
        return [Member(config, INFO).train() for _ in range(count)]

    return make


def stack(members: Sequence[Member], compile: str | None = None, frame: Frame | None = None) -> StackedRecognition:
    """A stack of copies, without a trainer to log to."""
    stacked = StackedRecognition([deepcopy(member) for member in members], compile, frame)
    stacked.log = lambda *_, **__: None  # type: ignore[method-assign, assignment]
    return stacked
