"""What is measured: each subject repeats one epoch, sample after sample, whenever it is its turn.

A subject is a function of overrides of a training run and of :class:`Turns`; it runs in a process of its own and ends
with it. Samples are seconds by name, those of epochs under ``train`` and ``evaluate``.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from tempfile import TemporaryDirectory
from typing import Any

import lightning as L
import torch
from lightning.pytorch.profilers import Profiler
from torch import Tensor
from torch.utils.data import DataLoader

from merc.bench.floor import Floor, linear_maps
from merc.bench.machine import Idleness
from merc.bench.reference import Boxes, reference_of
from merc.config import compose, instantiate, plain
from merc.data.conversation import ConversationBatch
from merc.data.datamodule import ConversationDataModule
from merc.models.build import build_model
from merc.models.lightning_module import EmotionRecognition
from merc.models.precision import multiply_with
from merc.resuming import AtomicCheckpoints, seed_everything
from merc.train import train

DTYPES = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16}
EPOCHS = 10_000  # more than anybody measures

Sample = dict[str, float]


class Turns:
    """The subject's end of the line to the one who measures.

    Args:
        connection: receives a number for every sample that is wanted, sends the sample.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.idleness = Idleness()

    def wait(self) -> None:
        """Until the next sample is wanted."""
        self.connection.recv()
        self.idleness = Idleness()
        self.idleness.__enter__()

    def done(self, seconds: Mapping[str, float]) -> None:
        """Hand over a sample."""
        self.idleness.__exit__()
        self.connection.send((dict(seconds), self.idleness.others))


class Stopwatch:
    """Seconds by name; what is measured inside something else does not count there."""

    def __init__(self) -> None:
        self.seconds: Sample = {}
        self.running: list[str] = []
        self.since = time.perf_counter()

    def start(self, name: str) -> None:
        """What comes now belongs to ``name``."""
        self._charge()
        self.running.append(name)

    def stop(self) -> None:
        """What comes now belongs to what ran before."""
        self._charge()
        self.running.pop()

    def _charge(self) -> None:
        now = time.perf_counter()
        if self.running:
            self.seconds[self.running[-1]] = self.seconds.get(self.running[-1], 0.0) + now - self.since
        self.since = now

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        """The seconds of a block."""
        self.start(name)
        yield
        self.stop()


@dataclass(frozen=True)
class Setting:
    """Everything that a training run of the product makes before its first step."""

    config: dict[str, Any]
    data: ConversationDataModule

    @classmethod
    def of(cls, overrides: Sequence[str]) -> "Setting":
        """Compose the configuration, read the data."""
        config = plain(compose(overrides))
        multiply_with(config["matmul_precision"])
        seed_everything(config["seed"])
        data: ConversationDataModule = instantiate(config["data"])
        data.setup()
        return cls(config, data)

    def module(self) -> EmotionRecognition:
        """The product's model in its training contract."""
        return EmotionRecognition(self.config, self.data.info)

    def batches(self, split: str) -> DataLoader[ConversationBatch]:
        """The batches of ``train`` or ``test``."""
        loader: Any = self.data.train_dataloader() if split == "train" else self.data.loader(split)
        return loader


def floor(overrides: Sequence[str], turns: Turns, own: bool = False) -> None:
    """The necessary matrix products alone, in the precision of the run.

    Args:
        overrides: of the product's run.
        turns: whose turn it is.
        own: as the product does them, not by ``torch.mm``.
    """
    setting = Setting.of(overrides)
    if not own:
        multiply_with("highest")
    with torch.device("meta"):
        model = build_model(setting.config, setting.data.info)
    maps = {split: [linear_maps(model, b.to("meta")) for b in setting.batches(split)] for split in ("train", "test")}
    dtype = DTYPES[setting.config["trainer"]["precision"]]
    epoch = {
        "train": Floor(maps["train"], True, dtype, own),
        "evaluate": Floor(maps["test"], False, dtype, own),
    }
    while True:
        turns.wait()
        watch = Stopwatch()
        for name, products in epoch.items():
            with watch.time(name):
                products.run()
        turns.done(watch.seconds)


def product(overrides: Sequence[str], turns: Turns) -> None:
    """Epochs of ``python -m merc.train``, with all that it does; ``write``: its files, until they are there."""
    _train(overrides, _EpochClock(turns))


def stages(overrides: Sequence[str], turns: Turns) -> None:
    """The same, the training part of an epoch split by what takes the time."""
    _train(overrides, _StageClock(turns))


def _train(overrides: Sequence[str], clock: L.Callback) -> None:
    with TemporaryDirectory() as folder:
        train(compose([*overrides, f"run_dir={folder}/run", f"trainer.max_epochs={EPOCHS}"]), [clock])


class _EpochClock(L.Callback):
    """Waits for its turn before every epoch, and measures it."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns
        self.watch = Stopwatch()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.watch.running:  # the epoch before has ended with its checkpoint
            checkpoints = trainer.strategy.checkpoint_io
            assert isinstance(checkpoints, AtomicCheckpoints)
            checkpoints.wait()  # whoever comes next has the cores to itself
            self.watch.stop()
            self.turns.done(self.watch.seconds)
        self.turns.wait()
        self.watch = Stopwatch()
        self.watch.start("train")

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.watch.start("evaluate")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.watch.stop()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.watch.stop()
        self.watch.start("write")


class _StageClock(_EpochClock):
    """Charges the time to the stages of the model and to what Lightning says that it does."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        trainer.profiler = _ActionClock(self)  # type: ignore[attr-defined]
        assert isinstance(pl_module, EmotionRecognition)
        for name, module in [*pl_module.model.named_children(), ("objective", pl_module.objective)]:
            # Before all other hooks, so that a policy that listens to a stage counts as part of it.
            module.register_forward_pre_hook(lambda *_, name=name: self.begin_stage(name), prepend=True)
            module.register_forward_hook(lambda *_: self.watch.stop())

    def begin_stage(self, name: str) -> None:
        """What comes now belongs to a stage: to the one that runs already, where a policy that listens asks another."""
        outer = next((running for running in self.watch.running if running.startswith(STAGE)), f"{STAGE}{name}")
        self.begin(outer)

    def begin(self, name: str) -> None:
        """What comes now belongs to ``name``, in evaluation apart."""
        self.watch.start(f"{EVALUATION}: {name}" if EVALUATION in self.watch.running else name)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_epoch_start(trainer, pl_module)
        self.watch = Stopwatch()
        self.watch.start("framework")

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.watch.start(EVALUATION)


EVALUATION, STAGE = "evaluation", "forward: "

ACTIONS = {
    "dataloader_next": "data",
    "batch_to_device": "data",
    "training_step": "metrics and logging",
    ".backward": "backward",
    "optimizer_step": "optimiser",
    "zero_grad": "optimiser",
}
"""Part of the name of an action of Lightning's → what its own time is called."""


class _ActionClock(Profiler):
    """Lightning's actions, charged by a clock."""

    def __init__(self, clock: _StageClock) -> None:
        super().__init__()
        self.clock = clock

    def start(self, action_name: str) -> None:
        if name := _called(action_name):
            self.clock.begin(name)

    def stop(self, action_name: str) -> None:
        if _called(action_name):
            self.clock.watch.stop()


def _called(action: str) -> str | None:
    return next((name for part, name in ACTIONS.items() if part in action and "[Callback]" not in action), None)


def loop(overrides: Sequence[str], turns: Turns) -> None:
    """Nothing but forward, backward and optimiser step, over the batches and with the module of the product."""
    setting = Setting.of(overrides)
    batches, train_on = setting.batches("train"), bare_training(setting)
    while True:
        turns.wait()
        watch = Stopwatch()
        with watch.time("train"):
            train_on(batches)
        turns.done(watch.seconds)


def bare_training(setting: Setting) -> Callable[[Iterable[ConversationBatch]], None]:
    """A function that trains the product's module on batches: forward, backward and optimiser step."""
    module = setting.module()
    configured = module.configure_optimizers()
    optimizer = configured[0][0] if isinstance(configured, tuple) else configured

    def loss(batch: ConversationBatch) -> Tensor:
        total: Tensor = module.objective(module(batch), batch.labels)["total"]
        return total

    return partial(_epoch, loss=loss, optimizer=optimizer)


def reference(overrides: Sequence[str], turns: Turns, name: str, share: int) -> None:
    """The plain reference of a model, over the first batches of each split, scaled to the padded rows of all.

    Args:
        overrides: of the product's run.
        turns: whose turn it is.
        name: a key of :data:`merc.bench.reference.REFERENCES`.
        share: how many batches.
    """
    setting = Setting.of(overrides)
    info, config = setting.data.info, setting.config
    model = reference_of(name, build_model(config, info), config, info)
    optimizer = torch.optim.Adam(model.parameters(), config["optimizer"]["lr"])
    batches = {split: list(setting.batches(split)) for split in ("train", "test")}
    scale = {split: _padded_rows(all_of) / _padded_rows(all_of[:share]) for split, all_of in batches.items()}

    def loss(batch: ConversationBatch) -> Tensor:
        boxes = Boxes.of(batch, config["graph"]["past"], info.speaker_slots)
        return model.losses(model(boxes), boxes)["total"]

    while True:
        turns.wait()
        watch = Stopwatch()
        model.train()
        with watch.time("train"):
            _epoch(batches["train"][:share], loss, optimizer)
        model.eval()
        with watch.time("evaluate"), torch.no_grad():
            for batch in batches["test"][:share]:
                loss(batch)
        seconds = watch.seconds
        turns.done({"train": seconds["train"] * scale["train"], "evaluate": seconds["evaluate"] * scale["test"]})


def _padded_rows(batches: Sequence[ConversationBatch]) -> int:
    return sum(batch.count * batch.longest for batch in batches)


def _epoch(batches: Any, loss: Callable[[ConversationBatch], Tensor], optimizer: torch.optim.Optimizer) -> None:
    for batch in batches:
        optimizer.zero_grad()
        loss(batch).backward()
        optimizer.step()
