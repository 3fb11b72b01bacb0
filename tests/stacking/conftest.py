"""Stacks of small models."""

import gc
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

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


class Captured:
    """A backend of torch.compile that runs what it is given as it is, and counts it."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: Sequence[Tensor], **_: Any) -> Callable[..., Any]:
        self.graphs += 1
        return graph.forward


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> Iterator[Captured]:
    """In place of inductor, which takes a minute for each model."""
    backend = Captured()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    yield backend
    torch.compiler.reset()


class Recordings:
    """Does what :func:`torch.cuda.make_graphed_callables` does, with operators called where CUDA replays them.

    So inputs are copied to where those of the recording lie; outputs and gradients lie in the same place every time.

    Attributes:
        sizes: the shapes of the inputs of every recording, weights left out.
    """

    def __init__(self) -> None:
        self.sizes: list[list[torch.Size]] = []

    def __call__(
        self, function: Callable[..., Any], samples: tuple[Any, ...], num_warmup_iters: int, allow_unused_input: bool
    ) -> Callable[..., Any]:
        assert allow_unused_input
        assert not gc.isenabled(), "a recording that is freed meanwhile would end this one"
        self.sizes.append([x.shape for x in tree_leaves(samples[1:])])
        static = tree_leaves(samples)
        trained = [x for x in static if x.requires_grad]
        for _ in range(num_warmup_iters):
            outputs, structure = tree_flatten(function(*samples))
        places = [x.detach().clone() for x in outputs]
        of_trained = [torch.empty_like(x) for x in trained]

        class Graphed(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, *inputs: Tensor) -> tuple[Tensor, ...]:
                with torch.no_grad():
                    for own, given in zip(static, inputs, strict=True):
                        if own.data_ptr() != given.data_ptr():
                            own.copy_(given)
                with torch.enable_grad():
                    ctx.outputs = tree_leaves(function(*samples))
                for place, value in zip(places, ctx.outputs, strict=True):
                    place.copy_(value.detach())
                return tuple(place.detach() for place in places)

            @staticmethod
            def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
                pairs = [pair for pair in zip(ctx.outputs, gradients, strict=True) if pair[0].requires_grad]
                outputs, of_outputs = zip(*pairs, strict=True)
                found = torch.autograd.grad(outputs, trained, of_outputs, allow_unused=True)
                for place, gradient in zip(of_trained, found, strict=True):
                    if gradient is not None:
                        place.copy_(gradient)
                own = iter([None if x is None else place for place, x in zip(of_trained, found, strict=True)])
                of_static = [next(own) if x.requires_grad else None for x in static]
                return tuple(None if place is None else place.detach() for place in of_static)

        return lambda *inputs: tree_unflatten(Graphed.apply(*tree_leaves(inputs)), structure)


@pytest.fixture
def recordings(monkeypatch: pytest.MonkeyPatch) -> Recordings:
    """CUDA graphs on the CPU."""
    made = Recordings()
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", made)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda _: torch.get_rng_state())
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, _: torch.set_rng_state(state))
    monkeypatch.setattr("merc.stacking.refusals.has_cuda", lambda _: True)
    return made
