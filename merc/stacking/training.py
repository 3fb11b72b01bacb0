"""Several seeds of one configuration in one process, each with the run folder that it would have alone."""

import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig
from torch.utils.data import DataLoader

from merc.balancing import build_policy
from merc.data.conversation import ConversationBatch
from merc.data.datamodule import ConversationDataModule
from merc.data.stacked import Frame
from merc.files import write_json
from merc.memory import has_room, keep_freed_memory
from merc.models.lightning_module import load_checkpoint
from merc.reporting.corpus import record_corpus, refuse_other_features
from merc.reporting.environment import describe_environment
from merc.reporting.loggers import open_logger
from merc.reporting.progress import TrainingProgress
from merc.reporting.quiet import quiet_lightning
from merc.reporting.recorder import Recorder
from merc.reporting.run_folder import RunFolder, claim, run_path
from merc.resuming import AtomicCheckpoints, EpochSeeds
from merc.stacking.module import Member, StackedRecognition
from merc.stacking.refusals import refuse_different_data, refuse_stacking
from merc.stacking.replay import CUDA_GRAPHS
from merc.stacking.seeds import Seed, SeedCallbacks
from merc.train import (
    build_run,
    build_trainer,
    close_run,
    fit_run,
    refuse_mistakes,
    run_config,
    run_name_of,
    run_trainer,
    show_scores,
)


def train_together(cfg: DictConfig) -> list[Exception | None]:
    """Train the seeds of a configuration at once, as :func:`merc.train.train` does one; go on with those that began.

    Seeds whose checkpoints are of the same epoch share one training, others have trainings of their own, one after the
    other. What befalls a seed alone, such as a folder that another process has, leaves the others to go on.

    Args:
        cfg: the composed configuration, with the list of seeds as its ``seed``.

    Returns:
        What kept each seed from finishing, in their order; None where it finished.

    Raises:
        KeyboardInterrupt: the runs were stopped.
    """
    quiet_lightning()
    keep_freed_memory()
    runs = [_Run.of(cfg, seed) for seed in cfg.seed]
    with ExitStack() as claims:
        for run in runs:
            claims.enter_context(run.claimed)
            run.start(resume=cfg.resume, overwrite=cfg.overwrite)
        for group in _equally_far([run for run in runs if run.error is None and not run.folder.finished]):
            _train(group)
    return [run.error for run in runs]


@dataclass
class _Run:
    """The run of one seed.

    Attributes:
        config: plain and resolved.
        folder: where it writes.
        group: what the runs of several seeds have in common, for a logger.
        claimed: holds the folder until it is closed.
        epoch: that of its last checkpoint, from 0; -1 where it begins.
        error: what ended it.
    """

    config: dict[str, Any]
    folder: RunFolder
    group: str
    claimed: ExitStack = field(default_factory=ExitStack)
    epoch: int = -1
    error: Exception | None = None

    @classmethod
    def of(cls, cfg: DictConfig, seed: int) -> "_Run":
        own = deepcopy(cfg)
        own.seed = seed
        name = run_name_of(own)
        folder = RunFolder(run_path(own, name))
        return cls(run_config(own), folder, name if own.run_dir else folder.path.parent.name)

    def start(self, *, resume: bool, overwrite: bool) -> None:
        """Take hold of the folder."""
        try:
            if not overwrite:
                refuse_other_features(self.folder)
            self.claimed.enter_context(claim(self.folder, self.config, resume=resume, overwrite=overwrite))
            if self.folder.finished:
                show_scores(self.folder)
            else:
                if resume and self.folder.last.exists():
                    self.epoch = int(load_checkpoint(self.folder.last)["epoch"])
                refuse_mistakes(self.config)
                write_json(self.folder.environment, describe_environment() | {"command": self._command()})
        except Exception as error:
            self.fail(error)

    def _command(self) -> list[str]:
        """The command line, with this seed in place of the list."""
        return [f"seed={self.config['seed']}" if argument.startswith("seed=") else argument for argument in sys.argv]

    def fail(self, error: Exception) -> None:
        """End here; the folder's status says why."""
        self.error = error
        with suppress(type(error)), self.claimed:
            raise error

    def finish(self) -> None:
        """The folder is complete."""
        self.claimed.close()
        show_scores(self.folder)


def _let_go(error: BaseException) -> None:
    """Clear what the frames of an error hold: a whole stack on the device, while the next one is trained."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        # The traceback ends where the error was caught, and a frame also keeps those that called it.
        for caller, _ in traceback.walk_stack(frame):
            with suppress(RuntimeError):  # it still runs
                caller.clear()
    for earlier in (error.__cause__, error.__context__):
        if earlier is not None:
            _let_go(earlier)


def _equally_far(runs: Sequence[_Run]) -> list[list[_Run]]:
    """Runs whose checkpoints are of the same epoch, in groups."""
    groups: dict[int, list[_Run]] = {}
    for run in runs:
        groups.setdefault(run.epoch, []).append(run)
    return list(groups.values())


def _train(group: Sequence[_Run]) -> None:
    """Train some runs at once, and one by itself as ever; each finishes or fails."""
    try:
        if len(group) == 1 and group[0].config["compile"] is None:
            fit_run(group[0].config, group[0].folder, group[0].group)
            group[0].finish()
        else:
            _fit(group)
    except Exception as error:
        for run in group:
            if run.error is None:
                run.fail(error)
    for run in group:
        if run.error is not None:
            _let_go(run.error)


def _fit(runs: Sequence[_Run]) -> None:
    """What :func:`merc.train.fit_run` does, for all seeds at once."""
    refuse_stacking([run.config for run in runs])
    built = [build_run(run.config, Member) for run in runs]
    for run, (data, _) in zip(runs, built, strict=True):
        record_corpus(run.folder, data)
    with ExitStack() as opened:
        loggers = [opened.enter_context(open_logger(run.config, run.folder, run.group)) for run in runs]
        _fit_built(runs, [data for data, _ in built], [module for _, module in built], loggers)
    for run in runs:
        if run.error is None:
            run.finish()


def _fit_built(
    runs: Sequence[_Run],
    data: Sequence[ConversationDataModule],
    modules: Sequence[Member],
    loggers: Sequence[Logger | None],
) -> None:
    config, checkpoints = runs[0].config, AtomicCheckpoints()
    seeds = [
        Seed(module, _callbacks(run, checkpoints, len(runs)), logger)
        for module, run, logger in zip(modules, runs, loggers, strict=True)
    ]
    progress = [TrainingProgress()] if config["trainer"]["enable_progress_bar"] else []
    trainer = build_trainer(
        config,
        callbacks=[EpochSeeds(*(run.config["seed"] for run in runs)), *progress, SeedCallbacks(seeds, checkpoints)],
        plugins=[checkpoints],
        logger=False,
        default_root_dir=runs[0].folder.path,
    )
    device = trainer.strategy.root_device
    training, evaluation = _loaders(data, device)
    # On the device before they are stacked: the seeds' parameters are views of the stack, which must not move any more.
    stack = StackedRecognition([module.to(device) for module in modules], config["compile"], *_frames(config, data))
    stack.callbacks = [seed.callbacks for seed in seeds]
    checkpoint = None
    if runs[0].epoch >= 0:
        checkpoint, stack.resumed = runs[0].folder.last, [load_checkpoint(run.folder.last) for run in runs]
    try:
        run_trainer(trainer, stack, training, evaluation, checkpoint)
    finally:
        stack.free_graphs()
        for run, seed in zip(runs, seeds, strict=True):
            if seed.error is not None:
                run.fail(seed.error)
    for run, seed, own in zip(runs, seeds, data, strict=True):
        if run.error is None:
            _close(run, trainer, seed, own)


def _frames(config: dict[str, Any], data: Sequence[ConversationDataModule]) -> tuple[Frame | None, Frame | None]:
    """What holds every batch of training, and of evaluation; None where batches are as large as they are."""
    if config["compile"] is None:
        return None, None
    training = Frame.of_any([own.parts["train"].lengths for own in data], data[0].batch_size)
    if config["compile"] != CUDA_GRAPHS:  # torch.compile leaves evaluation alone
        return training, None
    evaluated = [own.parts[split].lengths for own in data for split in own.evaluation_splits]
    return training, Frame.of_any(evaluated, data[0].evaluation_batch_size)


def _close(run: _Run, trainer: L.Trainer, seed: Seed, data: ConversationDataModule) -> None:
    """Complete the folder of one seed; where that fails, the others are completed all the same."""
    try:
        close_run(trainer, seed.module, data, seed.recorder, seed.logger)
    except Exception as error:
        run.fail(error)


def _loaders(
    data: Sequence[ConversationDataModule], device: torch.device
) -> tuple[list[DataLoader[int]], list["_SideBySide"]]:
    """A loader of the training part for each seed, and for each evaluated split one of all seeds."""
    if has_room(device, sum(own.feature_bytes for own in data)):
        for own in data:
            own.reside(device)
    training = [own.train_dataloader() for own in data]
    evaluation = [own.val_dataloader() for own in data]
    loaders = [[first, *others] for first, others in zip(training, evaluation, strict=True)]
    refuse_different_data([own.info for own in data], loaders)
    return training, [_SideBySide(of_split) for of_split in zip(*evaluation, strict=True)]


def _callbacks(run: _Run, checkpoints: AtomicCheckpoints, seeds_at_once: int) -> list[Any]:
    policy = build_policy(run.config)
    return [*([] if policy is None else [policy]), Recorder(run.folder, checkpoints, seeds_at_once)]


class _SideBySide:
    """A batch of each loader at a time.

    Args:
        loaders: of equally many batches.
    """

    def __init__(self, loaders: Sequence[DataLoader[int]]) -> None:
        self.loaders = loaders

    def __iter__(self) -> Iterator[tuple[ConversationBatch, ...]]:
        loaders: Sequence[Iterable[Any]] = self.loaders
        return zip(*loaders, strict=True)

    def __len__(self) -> int:
        return len(self.loaders[0])
