"""A function's operators, forward and backward, recorded once and replayed by CUDA.

A training step of these models is thousands of operators, each of which a GPU does in a few microseconds: it waits for
Python, PyTorch and the driver to call the next one. A CUDA graph calls them all at once. Nothing is compiled, so a
graph is there after a few steps.
"""

import gc
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from merc.errors import MercError, first_words

CUDA_GRAPHS = "cudagraphs"
"""What ``compile`` is called that does it."""

Function = Callable[..., Any]
"""Called with tensors in nested containers, returns such."""

MOST_RECORDINGS = 16
"""Sizes of inputs that have a graph of their own, which takes memory and the time of some calls."""


class Replayed:
    """The function, as a graph for every size of its inputs, recorded when that first comes.

    Memory of activations, outputs and gradients is used again by the next call: whatever shall outlive it must be
    copied, and gradients of several calls cannot be added up in place. Sizes behind the first :data:`MOST_RECORDINGS`
    are computed operator by operator.

    Args:
        function: called with weights, which always lie in the same place, and inputs; asks nothing of the device. It
            may change weights that are not trained.

    Raises:
        MercError: CUDA refuses to record it.
    """

    def __init__(self, function: Function) -> None:
        self.function = function
        self._recorded: dict[tuple[Any, ...], Function] = {}

    def __call__(self, weights: dict[str, Tensor], *inputs: Any) -> Any:
        """What the function returns."""
        size = tuple((x.shape, x.dtype, x.requires_grad) for x in tree_leaves(inputs))
        if size not in self._recorded:
            if len(self._recorded) == MOST_RECORDINGS:
                return self.function(weights, *inputs)
            self._recorded[size] = self._record(weights, inputs)
        return self._recorded[size](weights, *inputs)

    def _record(self, weights: dict[str, Tensor], inputs: tuple[Any, ...]) -> Function:
        # Weights are the same numbers in tensors of their own, since those of the training may be part of a graph of
        # autograd's by now that is not recorded.
        samples = (tree_map(_alias, weights), *tree_map(lambda x: _alias(x.clone()), inputs))
        device = next(iter(weights.values())).device
        # Recording runs the function some times; nothing in the run may hang on when that was.
        state = torch.cuda.get_rng_state(device)
        kept = [(weight, weight.clone()) for weight in weights.values() if not weight.requires_grad]
        try:
            with _undisturbed():
                recorded: Function = torch.cuda.make_graphed_callables(
                    self.function, samples, num_warmup_iters=1 if self._recorded else 2, allow_unused_input=True
                )
        except RuntimeError as error:
            for cause in (error, error.__context__):  # a recording that ran out of memory fails once more when it ends
                if isinstance(cause, torch.OutOfMemoryError):
                    raise cause from None
            raise MercError(
                f"A step cannot be recorded as a CUDA graph; leave compile=null. ({first_words(error)})"
            ) from error
        torch.cuda.set_rng_state(state, device)
        with torch.no_grad():
            for weight, value in kept:
                weight.copy_(value)
        return recorded


@contextmanager
def _undisturbed() -> Iterator[None]:
    """No garbage is collected: a recording ends in an error when another one, of an earlier run, is freed meanwhile.

    Nor does PyTorch warn of streams that are those of the recording by design.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The AccumulateGrad node's stream")
            yield
    finally:
        if collects:
            gc.enable()


def _alias(tensor: Tensor) -> Tensor:
    """The same memory, a leaf for autograd."""
    return tensor.detach().requires_grad_(tensor.requires_grad and torch.is_grad_enabled())
