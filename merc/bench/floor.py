"""The floor: the matrix products that no implementation of a model can do without, and nothing else.

A linear map from I to O channels of N rows costs one product forward, one for the gradient of its weight and, unless
its input is data, one for the gradient of its input: 2·N·I·O floating-point operations each.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from merc.data.conversation import ConversationBatch
from merc.models.emotion_model import EmotionModel
from merc.models.linear import linear, product

PRODUCTS = {nn.functional.linear, torch.matmul, torch.mm, Tensor.matmul, Tensor.mm, Tensor.__matmul__}


@dataclass(frozen=True)
class LinearMap:
    """A linear map as a model applies it to a batch.

    Attributes:
        weight: name of the parameter.
        rows: N.
        inputs: I.
        outputs: O; those of all heads.
        of_data: the input is data and needs no gradient.
    """

    weight: str
    rows: int
    inputs: int
    outputs: int
    of_data: bool

    def flops(self, training: bool) -> int:
        """Floating-point operations: forward only, or with the gradients."""
        products = 1 if not training else 2 if self.of_data else 3
        return products * 2 * self.rows * self.inputs * self.outputs


def linear_maps(model: EmotionModel, batch: ConversationBatch) -> list[LinearMap]:
    """The linear maps of a forward pass, found by running it: on the meta device nothing is computed.

    They are the ``nn.Linear`` weights, by the products in which they occur, in whole or in part; the same rows through
    the same weight count once. Maps that a module applies by other means, such as the (H, I, O) weights of graph
    attention, are counted at the calls of the module that holds them, or of the one around it. Rows of padding count
    for a model that depends on them.

    Args:
        model: any; its mode and gradients stay as they are.
        batch: on the device of the model.
    """
    matrices = {name: weight for name, weight in model.named_parameters() if _is_map(model, name, weight)}
    prepared = model.prepared(batch)
    with _calls(model) as rows_of, _Products(matrices) as products, torch.no_grad():
        model.classify(model.encode(prepared), prepared)
    found = list(products.found.values())
    for name in matrices.keys() - {linear_map.weight for linear_map in found}:
        heads, inputs, outputs = _shape(matrices[name])
        found += [LinearMap(name, count, inputs, heads * outputs, False) for count in _nearest(rows_of, name)]
    return found


def _is_map(model: nn.Module, name: str, weight: Tensor) -> bool:
    owner = model.get_submodule(name.rpartition(".")[0])
    ours = not type(owner).__module__.startswith("torch.")
    if isinstance(owner, nn.Linear):
        return weight.ndim == 2
    return ours and weight.ndim == 3 and name.endswith(".weight")


def _shape(weight: Tensor) -> tuple[int, int, int]:
    """Heads, inputs, outputs."""
    return (1, weight.shape[1], weight.shape[0]) if weight.ndim == 2 else tuple(weight.shape)  # type: ignore[return-value]


class _Products(TorchFunctionMode):
    """Collects the products with some weights or with slices of them."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.names = {weight.untyped_storage()._cdata: name for name, weight in weights.items() if weight.ndim == 2}
        self.found: dict[tuple[Any, ...], LinearMap] = {}
        self.alive: list[Tensor] = []  # so that no two inputs share an id

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in PRODUCTS:
            self._record(*args[:2])
        return func(*args, **(kwargs or {}))

    def _record(self, x: Tensor, weight: Tensor) -> None:
        name = self.names.get(weight.untyped_storage()._cdata)
        if name is None:
            return
        self.alive.append(x)
        inputs = x.shape[-1]
        key = (name, weight.storage_offset(), weight.numel(), id(x))
        rows, outputs = x.numel() // inputs, weight.numel() // inputs
        self.found[key] = LinearMap(name, rows, inputs, outputs, name.startswith("projection."))


@contextmanager
def _calls(model: nn.Module) -> Iterator[dict[str, list[int]]]:
    """Module → the rows of the first tensor that it was given, for each of its calls."""
    calls: dict[str, list[int]] = {}
    handles: list[RemovableHandle] = []
    for name, module in model.named_modules():

        def note(_: nn.Module, inputs: tuple[Any, ...], name: str = name) -> None:
            if inputs and isinstance(inputs[0], Tensor):
                calls.setdefault(name, []).append(inputs[0].numel() // inputs[0].shape[-1])

        handles.append(module.register_forward_pre_hook(note))
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _nearest(calls: dict[str, list[int]], parameter: str) -> list[int]:
    """The calls of the module that holds a parameter, or of the closest one around it that was called with rows."""
    owner = parameter.rpartition(".")[0]
    while owner and owner not in calls:
        owner = owner.rpartition(".")[0]
    if not owner:
        raise RuntimeError(f"No module that holds {parameter} was called with rows.")
    return calls[owner]


def flops(maps: Iterable[LinearMap], training: bool) -> int:
    """Floating-point operations of some linear maps."""
    return sum(linear_map.flops(training) for linear_map in maps)


class Floor:
    """The products of some batches: ``torch.mm`` into tensors that are there already, or as the product does them.

    Args:
        batches: the linear maps of each batch.
        training: the gradients' products, too.
        dtype: float32, or bfloat16.
        own: by :func:`merc.models.linear.linear` and the like.
        device: where to compute.
    """

    def __init__(
        self,
        batches: Iterable[Iterable[LinearMap]],
        training: bool,
        dtype: torch.dtype,
        own: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        self.options: dict[str, Any] = {"dtype": dtype, "device": device}
        self.buffers: dict[tuple[str, int, int], Tensor] = {}
        self.own = own
        maps = [linear_map for batch in batches for linear_map in batch]
        most = max(linear_map.rows for linear_map in maps)
        self.products = [run for m in maps for run in self._products(m, most, training)]

    def _products(self, m: LinearMap, most: int, training: bool) -> Iterator[Callable[[], Any]]:
        x_NI, dx_NI = (self._buffer(role, most, m.inputs)[: m.rows] for role in ("x", "dx"))
        y_NO, dy_NO = (self._buffer(role, most, m.outputs)[: m.rows] for role in ("y", "dy"))
        weight_OI, dweight_OI = (self._buffer(f"{role} of {m.weight}", m.outputs, m.inputs) for role in ("w", "dw"))
        if self.own:
            yield lambda: linear(x_NI, weight_OI)
            if training:
                yield lambda: product(dy_NO.T, x_NI)
                if not m.of_data:
                    yield lambda: product(dy_NO, weight_OI)
            return
        yield lambda: torch.mm(x_NI, weight_OI.T, out=y_NO)
        if training:
            yield lambda: torch.mm(dy_NO.T, x_NI, out=dweight_OI)
            if not m.of_data:
                yield lambda: torch.mm(dy_NO, weight_OI, out=dx_NI)

    def _buffer(self, role: str, rows: int, columns: int) -> Tensor:
        """A tensor that all products of the same role and shape share."""
        key = (role, rows, columns)
        if key not in self.buffers:
            self.buffers[key] = torch.randn(rows, columns, **self.options)
        return self.buffers[key]

    @torch.inference_mode()
    def run(self) -> None:
        """All products once."""
        for run in self.products:
            run()
