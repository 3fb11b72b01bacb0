"""The state of an optimiser over stacked parameters, and those of the single runs that it stands for."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

SHARED = "step"
"""What the optimisers count for all parameters of a tensor together; everything else has the tensor's shape."""

ELEMENTWISE = ("Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "RAdam", "RMSprop", "SGD")
"""Optimisers of torch.optim that treat every number by itself, and so a stack as its parts."""


def own_state(state: Mapping[str, Any], index: int) -> dict[str, Any]:
    """What of the state of an optimiser over (S, ...) parameters belongs to one seed, in the form of a single run."""
    own = {
        number: {
            name: value[index] if isinstance(value, Tensor) and name != SHARED else value
            for name, value in entries.items()
        }
        for number, entries in state["state"].items()
    }
    return {**state, "state": own}


def joined_state(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The state of an optimiser over (S, ...) parameters from those of S single runs after equally many steps."""
    first = states[0]
    joined = {
        number: {
            name: torch.stack([state["state"][number][name] for state in states])
            if isinstance(value, Tensor) and name != SHARED
            else value
            for name, value in entries.items()
        }
        for number, entries in first["state"].items()
    }
    return {**first, "state": joined}
