"""What a training step asks of the machine, counted, not timed: operators, memory, waiting for the device.

The bounds lie a little above what is needed today. A change that exceeds one should say why it is worth it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader

from merc.balancing import build_policy
from merc.data.conversation import ConversationBatch, CorpusInfo
from merc.kernels.library import loaded
from merc.models.lightning_module import EmotionRecognition
from tests.conftest import begin_balancing

DIMS = {"text": 7, "audio": 5, "visual": 3}
INFO = CorpusInfo(
    dims=DIMS, label_names=("calm", "glad", "gloomy", "cross"), speaker_slots=3, class_counts=(4, 3, 2, 1)
)
MODELS = ("model=amb_dsgdn", "model=amb_dsgdn_released", "model=redifu", "model=redifu_released")
by_operators = pytest.mark.skipif(not loaded(), reason="there is no C++ compiler")
WINDOW = "denoiser.default.window=10"

Make = Callable[..., ConversationBatch]
Configure = Callable[..., dict[str, Any]]


def fresh(function: Any) -> bool:
    """Whether an operator makes new tensors: its results share no memory with what it got."""
    return any(result.alias_info is None for result in function._schema.returns)


class Counts(TorchDispatchMode):
    """Counts what PyTorch is asked to do, autograd's part included.

    Attributes:
        operators: PyTorch's that compute or copy, also inside merc's own, which are counted by their nodes; views and
            empty tensors are free.
        allocated: bytes of new tensors.
        largest: most elements that a tensor's memory has room for.
        waits: operators that hand a number or a shape from the device to the host.
    """

    WAITING = ("_local_scalar_dense", "nonzero", "_unique2", "unique_dim", "bincount", "equal", "masked_select")

    def __init__(self) -> None:
        super().__init__()
        self.operators = 0
        self.allocated = 0
        self.largest = 0
        self.waits: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.operators += not (func.is_view or func.overloadpacket.__name__.startswith("empty"))
        if func.overloadpacket.__name__ in self.WAITING or _blocking_upload(func, args, kwargs or {}, result):
            self.waits.append(str(func))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                size = tensor.untyped_storage().nbytes() * fresh(func)
                self.allocated += size
                self.largest = max(self.largest, size // tensor.element_size())
        return result


def _blocking_upload(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> bool:
    if func.overloadpacket.__name__ not in ("_to_copy", "copy_"):
        return False
    source = args[1] if func.overloadpacket.__name__ == "copy_" else args[0]
    non_blocking = kwargs.get("non_blocking", False) or (len(args) > 2 and args[2])
    return source.device != result.device and not non_blocking


def on_the_host(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``torch.tensor``, which waits for the device when it is given one."""

    def checked(*args: Any, device: Any = None, **kwargs: Any) -> Tensor:
        assert device is None or torch.device(device).type == "cpu", "torch.tensor(device=…) waits for the device"
        return make(*args, **kwargs)

    return checked


def configured(make_config: Configure, choices: str, *more: str) -> dict[str, Any]:
    """The configuration of a small model behind its warm-up."""
    heads = ("hyperparameters.heads=4", "hyperparameters.fusion_heads=2") if "redifu" in choices else ()
    return make_config(*choices.split(), *heads, "hyperparameters.warmup_epochs=0", *more)


class EachStep(L.Callback):
    """Counts of every training step, from the batch on the device to its end."""

    def __init__(self) -> None:
        self.steps: list[Counts] = []

    def on_train_batch_start(self, *_: Any) -> None:
        self.steps.append(Counts())
        self.steps[-1].__enter__()

    def on_train_batch_end(self, *_: Any) -> None:
        self.steps[-1].__exit__(None, None, None)


def trained(config: dict[str, Any], batches: Sequence[ConversationBatch]) -> list[Counts]:
    """Counts of every step of one epoch with Lightning's Trainer, balancing and the sums of losses included."""
    torch.manual_seed(0)
    policy, counter = build_policy(config), EachStep()
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=1,
        limit_val_batches=0,
        callbacks=[counter] if policy is None else [policy, counter],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.fit(EmotionRecognition(config, INFO), DataLoader(batches, batch_size=None))
    return counter.steps


def counted(config: dict[str, Any], batch: ConversationBatch) -> Counts:
    """Counts of forward and backward pass."""
    torch.manual_seed(0)
    module = EmotionRecognition(config, INFO).train()
    counts = Counts()
    with counts:
        module.objective(module(batch), batch.labels)["total"].backward()
    return counts


@by_operators
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("model", "bound"),
    [
        ("model=amb_dsgdn", 610),
        ("model=amb_dsgdn_released", 630),
        ("model=redifu", 660),
        ("model=redifu_released", 740),
    ],
)
def test_operators_of_a_training_step(make_config: Configure, make_batch: Make, model: str, bound: int) -> None:
    steps = trained(configured(make_config, model), [make_batch(lengths=(9, 5, 12, 3))] * 2)
    operators = steps[1].operators  # the first one also makes the optimiser's state
    assert operators <= bound, f"{operators} operators, {bound} are allowed"


@by_operators
@pytest.mark.parametrize(
    ("model", "bound"),
    [
        ("model=amb_dsgdn", 265),
        ("model=amb_dsgdn_released", 280),
        ("model=redifu", 393),
        ("model=redifu_released", 445),
    ],
)
def test_nodes_of_a_training_step(make_config: Configure, make_batch: Make, model: str, bound: int) -> None:
    """Autograd calls each of them, which takes as long as a small product."""
    module, batch = EmotionRecognition(configured(make_config, model), INFO).train(), make_batch(lengths=(9, 5, 12, 3))
    todo, nodes = [module.objective(module(batch), batch.labels)["total"].grad_fn], set()
    while todo:
        node = todo.pop()
        if node is not None and node not in nodes:
            nodes.add(node)
            todo += [following for following, _ in node.next_functions]
    assert len(nodes) <= bound, f"{len(nodes)} nodes, {bound} are allowed"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model", [*MODELS, "balancing=ogm_ge"])
def test_no_training_step_waits_for_a_number(make_config: Configure, make_batch: Make, model: str) -> None:
    for step in trained(configured(make_config, model), [make_batch(lengths=(9, 5)), make_batch(lengths=(4,))]):
        assert step.waits == []


@pytest.mark.parametrize(
    "choice",
    [
        *MODELS,
        "balancing=ogm_ge",
        "denoiser=differential graph=gcn fusion=gated classifier=single_head objective=fused balancing=none",
        "graph=gat graph/cross_modal=attention fusion=text_guided_diffusion objective=focal",
    ],
)
def test_a_step_can_be_queued_on_a_device_that_tells_nothing(
    make_config: Configure, make_batch: Make, monkeypatch: pytest.MonkeyPatch, choice: str
) -> None:
    """The meta device has no numbers to wait for: whatever asks for one fails."""
    module = begin_balancing(EmotionRecognition(configured(make_config, choice), INFO).to("meta").train())
    monkeypatch.setattr(torch, "tensor", on_the_host(torch.tensor))
    batch = make_batch(lengths=(5, 3)).to("meta")
    for _ in range(2):  # the policies' own state follows to the device in the first step
        counts = Counts()
        with counts:
            module.objective(module(batch), batch.labels)["total"].backward()
    assert counts.waits == []


@pytest.mark.parametrize(
    "choice",
    [
        *MODELS,
        "denoiser=transformer",
        "denoiser=diff_transformer",
        "denoiser=differential",
        f"denoiser=transformer {WINDOW}",
        f"denoiser=diff_transformer {WINDOW}",
        f"denoiser=differential {WINDOW}",
        "denoiser=recurrent",
        "graph=gcn",
        "graph=gat",
        "graph=relational_gat",
        "graph/cross_modal=attention",
    ],
)
def test_no_tensor_of_all_pairs_of_utterances(make_config: Configure, make_batch: Make, choice: str) -> None:
    length = 2048
    counts = counted(configured(make_config, choice), make_batch(lengths=(length,)))
    assert counts.largest < length**2, f"a tensor has room for {counts.largest} elements, {length}² are too many"


@pytest.mark.parametrize(
    "choice",
    [
        *(f"denoiser={name} {WINDOW}" for name in ("transformer", "diff_transformer", "differential")),
        *(f"denoiser=none graph={name}" for name in ("differential", "relational_gat", "gat", "gcn")),
        "denoiser=none graph/cross_modal=attention",
    ],
)
def test_memory_of_a_step_grows_with_the_dialogue_not_with_its_square(
    make_config: Configure, make_batch: Make, choice: str
) -> None:
    config = configured(make_config, choice)
    longer, shorter = (counted(config, make_batch(lengths=(length,))).allocated for length in (4096, 1024))
    assert longer / shorter < 4.2, f"{longer / shorter:.2f} times the bytes for 4 times the utterances"


@by_operators
@pytest.mark.parametrize(
    ("model", "bound"),
    [
        ("model=amb_dsgdn", 310),
        ("model=amb_dsgdn_released", 327),
        ("model=redifu", 496),
        ("model=redifu_released", 710),
    ],
)
def test_bytes_allocated_per_utterance(make_config: Configure, make_batch: Make, model: str, bound: int) -> None:
    """In rows of hidden_dim numbers in single precision."""
    config = configured(make_config, model, "hyperparameters.hidden_dim=128")
    batch = make_batch(lengths=(10,) * 32)
    rows = counted(config, batch).allocated / (4 * 128 * sum(batch.lengths))
    assert rows <= bound, f"{rows:.0f} rows per utterance, {bound} are allowed"
