"""``python -m merc.train``: one run trains, evaluates and writes a run folder."""

import json
import logging
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, TypeVar

import lightning as L
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import Logger
from lightning.pytorch.overrides.distributed import UnrepeatedDistributedSampler
from omegaconf import DictConfig
from torch.utils.data import DataLoader

from merc import cli
from merc.balancing import build_policy
from merc.combinations import refuse_contradictions
from merc.config import check_plugins, instantiate, plain
from merc.data.datamodule import ConversationDataModule
from merc.errors import MercError, check_choice, first_words
from merc.files import write_json
from merc.memory import has_room, keep_freed_memory
from merc.models.lightning_module import EmotionRecognition, load_checkpoint
from merc.models.precision import multiplies_bfloat16, multiply_with
from merc.ranges import refuse_out_of_range
from merc.reporting.corpus import record_corpus, refuse_other_features
from merc.reporting.costs import measure_costs
from merc.reporting.environment import describe_environment
from merc.reporting.history import summarize
from merc.reporting.loggers import log_closing, open_logger
from merc.reporting.predictions import predict, write_predictions
from merc.reporting.profiling import StepProfile
from merc.reporting.progress import TrainingProgress
from merc.reporting.quiet import quiet_lightning
from merc.reporting.recorder import Recorder
from merc.reporting.run_folder import RunFolder, claim, run_name, run_path
from merc.reporting.tables import closing_line, closing_tables, show
from merc.resuming import AtomicCheckpoints, EpochSeeds, UntouchedWhileWritten, seed_everything

logger = logging.getLogger(__name__)

Module = TypeVar("Module", bound=EmotionRecognition)

PRECISIONS = ("32-true", "16-mixed", "bf16-mixed")
"""Those that leave the batches as they are; Lightning also takes them without what follows the hyphen."""


def main() -> None:
    """The command."""
    cli.run(train, "train")


def train(cfg: DictConfig, observers: Sequence[L.Callback] = ()) -> dict[str, Any]:
    """Train, evaluate and write the run folder; go on with the run that is there when ``resume`` is set.

    Args:
        cfg: the composed configuration, see conf/train.yaml.
        observers: callbacks that only look on, such as those that measure.

    Returns:
        The content of metrics.json (empty in the helper processes of a distributed run).

    Raises:
        MercError: the data, the configuration or the run folder do not allow the run, or it ran out of disk or memory.
        KeyboardInterrupt: the run was stopped; its message says how to go on.
    """
    quiet_lightning()
    keep_freed_memory()
    _refuse_seeds_at_once(cfg)
    if cfg.compile is not None:
        if observers:
            raise MercError(f"compile={cfg.compile}: what is measured here cannot be compiled. Leave compile=null.")
        return _train_compiled(cfg)
    config = run_config(cfg)
    name = run_name_of(cfg)
    folder = RunFolder(run_path(cfg, name))
    group = name if cfg.run_dir else folder.path.parent.name
    if rank_zero_only.rank != 0:  # type: ignore[attr-defined]
        fit_run(config, folder, group, observers)
        return {}
    if not _sweeping():  # in a sweep the run's folder keeps the message
        refuse_mistakes(config)
    if not cfg.overwrite:
        refuse_other_features(folder)
    with claim(folder, config, resume=cfg.resume, overwrite=cfg.overwrite):
        if not folder.finished:
            if _sweeping():
                refuse_mistakes(config)
            write_json(folder.environment, describe_environment())
            fit_run(config, folder, group, observers)
    return show_scores(folder)


def _train_compiled(cfg: DictConfig) -> dict[str, Any]:
    """The run as a stack of one seed."""
    from merc.stacking import refuse_stacking, train_together  # which import this module

    if not _sweeping():  # in a sweep the run's folder keeps the message
        config = run_config(cfg)
        refuse_mistakes(config)
        refuse_stacking([config])
    stack = deepcopy(cfg)
    stack.seed = [cfg.seed]
    for error in train_together(stack):
        if error is not None:
            raise error
    return _read_metrics(RunFolder(run_path(cfg, run_name_of(cfg))))


def _read_metrics(folder: RunFolder) -> dict[str, Any]:
    metrics: dict[str, Any] = json.loads(folder.metrics.read_text(encoding="utf-8"))
    return metrics


def show_scores(folder: RunFolder) -> dict[str, Any]:
    """Print the scores of a finished run, in a sweep on one line; returns the content of metrics.json."""
    metrics = _read_metrics(folder)
    if _sweeping():
        print(closing_line(metrics, folder.path), flush=True)
    else:
        show(closing_tables(metrics, folder.path))
    return metrics


def run_config(cfg: DictConfig) -> dict[str, Any]:
    """The plain resolved configuration of a run, without what is the same run for another table or beside others.

    Raises:
        MercError: it is an experiment, and not in a sweep.
    """
    config = plain(cfg)
    _refuse_single_experiment(config)
    return {key: value for key, value in config.items() if key not in ("experiment", "variants", "seeds_per_process")}


def refuse_mistakes(config: Mapping[str, Any]) -> None:
    """Refuse what can be seen to be wrong before anything is built.

    Raises:
        MercError: stages contradict each other, a number is out of range, or a plugin is not there.
    """
    refuse_contradictions(config)
    refuse_out_of_range(config)
    check_plugins(config["plugins"])


def _sweeping() -> bool:
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def _refuse_single_experiment(config: Mapping[str, Any]) -> None:
    # The helpers of a distributed run are started with the overrides of one job.
    if "experiment" in config and not _sweeping() and rank_zero_only.rank == 0:  # type: ignore[attr-defined]
        name = config["experiment"]["name"]
        raise MercError(f"The experiment {name} is several runs. Add -m to run them: -m experiment={name}.")


def _refuse_seeds_at_once(cfg: DictConfig) -> None:
    number = cfg.get("seeds_per_process", 1)
    if number != 1 and not _sweeping() and rank_zero_only.rank == 0:  # type: ignore[attr-defined]
        raise MercError(
            f"seeds_per_process={number} is for several runs. Add -m and list the seeds: "
            f"-m seed=1,2,3,4 seeds_per_process={number}."
        )


def run_name_of(cfg: DictConfig) -> str:
    """``<model>-<data>``, the choices on the command line."""
    return run_name(HydraConfig.get().runtime.choices) if HydraConfig.initialized() else str(cfg.corpus.name)


def build_run(config: dict[str, Any], kind: type[Module]) -> tuple[ConversationDataModule, Module]:
    """The data and the module of a run, drawn with its seed; the process multiplies as the run wants it from now on."""
    multiply_with(config["matmul_precision"])
    seed_everything(config["seed"])
    data: ConversationDataModule = instantiate(config["data"], config["plugins"])
    data.setup()
    module = kind(config, data.info)
    module.evaluation_splits = data.evaluation_splits
    return data, module


def fit_run(config: dict[str, Any], folder: RunFolder, group: str, observers: Sequence[L.Callback] = ()) -> None:
    """Everything between an empty run folder, or a checkpoint in it, and a complete one."""
    data, module = build_run(config, EmotionRecognition)
    with open_logger(config, folder, group) as logger:
        checkpoints = AtomicCheckpoints()
        recorder = Recorder(folder, checkpoints)
        trainer = build_trainer(
            config,
            callbacks=[*_train_callbacks(config, recorder), UntouchedWhileWritten(checkpoints), *observers],
            plugins=[checkpoints],
            logger=logger or False,
            default_root_dir=folder.path,
        )
        if trainer.is_global_zero:
            record_corpus(folder, data)
        if has_room(trainer.strategy.root_device, data.feature_bytes):
            data.reside(trainer.strategy.root_device)
        checkpoint = folder.last if config["resume"] and folder.last.exists() else None
        evaluation = [_share(loader, trainer) for loader in data.val_dataloader()]
        run_trainer(trainer, module, data.train_dataloader(), evaluation, checkpoint)
        if trainer.is_global_zero:
            close_run(trainer, module, data, recorder, logger)


def _train_callbacks(config: dict[str, Any], recorder: Recorder) -> list[L.Callback]:
    callbacks = [EpochSeeds(config["seed"]), build_policy(config)]
    if config["profile_steps"]:
        callbacks.append(StepProfile(recorder.folder, config["profile_steps"]))
    if config["trainer"]["enable_progress_bar"]:
        callbacks.append(TrainingProgress())
    callbacks.append(recorder)  # last: progress shows an epoch that it refuses
    return [callback for callback in callbacks if callback is not None]


_EVALUATION = "Whole splits are evaluated once, after every epoch."
_OWN = "Lightning gets those that merc needs."

DECIDED = {
    "callbacks": _OWN,
    "plugins": _OWN,
    "logger": "Choose one with logger=wandb or logger=tensorboard.",
    "default_root_dir": "Choose the run folder with run_dir=….",
    "enable_checkpointing": "Every run keeps its checkpoints.",
    "enable_model_summary": "python -m merc.models shows the parts of every model.",
    "barebones": "Try a run with debug=fast, time it with debug=profiler.",
    "fast_dev_run": "Try a run with debug=fast.",
    "overfit_batches": "Train on fewer batches with +trainer.limit_train_batches=….",
    "check_val_every_n_epoch": _EVALUATION,
    "val_check_interval": _EVALUATION,
    "num_sanity_val_steps": _EVALUATION,
    "limit_test_batches": _EVALUATION,
    "limit_predict_batches": _EVALUATION,
    "reload_dataloaders_every_n_epochs": "The data stay what they are throughout a run.",
}
"""Arguments of Lightning's Trainer that are no user's to set → what to do, or know, instead."""


def build_trainer(config: dict[str, Any], **arguments: Any) -> L.Trainer:
    """Lightning's Trainer with the settings under ``trainer``; what merc does itself is switched off there.

    Args:
        config: the plain resolved configuration.
        arguments: of the Trainer, beside the settings.

    Raises:
        MercError: the settings contradict each other, decide what merc decides, or ask for hardware that is not there.
    """
    settings = config["trainer"]
    _refuse_decided(settings, partial_evaluation=bool(config["profile_steps"]))
    precision = str(settings.get("precision") or PRECISIONS[0])
    precision = {name.split("-")[0]: name for name in PRECISIONS}.get(precision, precision)
    check_choice("trainer.precision", precision, PRECISIONS)
    own = {
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "check_val_every_n_epoch": 1,
    }
    try:
        trainer: L.Trainer = instantiate(settings, config["plugins"], **own, **arguments)
    except (MisconfigurationException, ValueError) as error:
        raise MercError(f"The trainer cannot be set up: {error} Look at the keys under trainer.") from error
    if precision == "bf16-mixed" and not multiplies_bfloat16(trainer.strategy.root_device):
        logger.warning(
            "trainer.precision=%s: this device only imitates bfloat16, which takes many times as long; "
            "choose trainer.precision=32-true here.",
            precision,
        )
    return trainer


def _refuse_decided(settings: Mapping[str, Any], partial_evaluation: bool) -> None:
    """Refuse what is merc's to decide; a run whose scores nobody reads may evaluate parts of the splits."""
    for key in settings:
        if key in DECIDED:
            raise MercError(f"trainer.{key} is none of the keys that can be set. {DECIDED[key]} Leave it out.")
    batches = settings.get("limit_val_batches")
    whole = batches is None or (isinstance(batches, float) and batches == 1)  # 1 is a single batch
    if not whole and (batches == 0 or not partial_evaluation):
        raise MercError(f"trainer.limit_val_batches={batches} may leave a part out. {_EVALUATION} Leave it out.")


def run_trainer(
    trainer: L.Trainer, module: L.LightningModule, training: Any, evaluation: Sequence[Any], checkpoint: Path | None
) -> None:
    """Train, and explain what goes wrong.

    Args:
        trainer: of :func:`build_trainer`.
        module: what is trained.
        training: its loader, or several, of which each step gets a batch.
        evaluation: a loader for each evaluated split.
        checkpoint: to go on from.

    Raises:
        MercError: Lightning refuses the run, or the device ran out of memory.
        KeyboardInterrupt: the run was stopped.
    """
    try:
        # A checkpoint holds plain values and tensors only.
        trainer.fit(
            module,
            train_dataloaders=training,
            val_dataloaders=evaluation,
            ckpt_path=checkpoint,
            weights_only=True,
        )
    except MisconfigurationException as error:
        raise MercError(f"Lightning refuses the run: {error} Look at the keys under trainer.") from error
    except SystemExit as stop:  # Lightning's answer to Ctrl-C and SIGTERM
        raise KeyboardInterrupt(
            "Stopped. The same command with resume=true goes on from its last checkpoint."
        ) from stop
    except torch.OutOfMemoryError as error:
        raise MercError(
            "The device ran out of memory. Lower hyperparameters.batch_size or hyperparameters.hidden_dim (in a sweep "
            "also seeds_per_process), or try trainer.precision=bf16-mixed."
        ) from error
    except torch._dynamo.exc.TorchDynamoException as error:
        raise MercError(
            f"torch.compile cannot compile the training step; leave compile=null. ({first_words(error)})"
        ) from error


def _share(loader: DataLoader[int], trainer: L.Trainer) -> DataLoader[int]:
    """This process' share of the dialogues; Lightning's own would count some twice to make the shares equal."""
    if trainer.world_size == 1:
        return loader
    sampler = UnrepeatedDistributedSampler(
        loader.dataset, num_replicas=trainer.world_size, rank=trainer.global_rank, shuffle=False
    )
    return DataLoader(loader.dataset, loader.batch_size, sampler=sampler, collate_fn=loader.collate_fn)


def close_run(
    trainer: L.Trainer,
    module: EmotionRecognition,
    data: ConversationDataModule,
    recorder: Recorder,
    logger: Logger | None,
) -> None:
    """Write metrics.json, costs, and the predictions of the selected epoch, of the last one without validation."""
    folder = recorder.folder
    # Once more: a run that was killed behind its last checkpoint has no other occasion.
    recorder.write_history(trainer)
    metrics = summarize(recorder.history)
    checkpoint = folder.selected if "selected" in metrics else folder.last
    module.load_state_dict(load_checkpoint(checkpoint)["state_dict"])
    module.to(trainer.strategy.root_device)
    splits = {
        split: (data.parts[split], predict(module, data.loader(split), trainer.precision_plugin.forward_context()))
        for split in data.evaluation_splits
    }
    write_predictions(folder.predictions, splits)
    write_json(folder.costs, measure_costs(trainer, module, data, recorder.history))
    write_json(folder.metrics, metrics)
    if logger is not None:
        log_closing(logger, metrics, splits)


if __name__ == "__main__":
    # Other processes of a sweep find the functions of an importable module, not those of __main__.
    from merc.train import main

    main()
