"""Loggers beside the run folder's own files: Weights & Biases and TensorBoard."""

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger

from merc.config import instantiate
from merc.data.conversation import Conversations
from merc.errors import MercError
from merc.models.prediction import Prediction
from merc.reporting.run_folder import RunFolder
from merc.reporting.tables import SUMMARY
from merc.reporting.wandb_account import run_group, tag, wandb_mode
from merc.sweeping.manifest import sweeps_of


@contextmanager
def open_logger(config: Mapping[str, Any], folder: RunFolder, group: str) -> Iterator[Logger | None]:
    """The logger that a configuration chooses, closed in the end whatever happens; None for ``logger=none``.

    Args:
        config: the plain resolved configuration.
        folder: the run folder.
        group: what the runs of several seeds have in common.

    Raises:
        MercError: the logger's package is not installed.
    """
    node = config["logger"]
    if node["_target_"] is None:
        yield None
        return
    logger: Logger = instantiate(node, config["plugins"], folder=folder, group=group, seed=config["seed"])
    logger.log_hyperparams(dict(config))
    try:
        yield logger
    finally:
        _finish(logger)


def wandb_logger(folder: RunFolder, group: str, seed: int, project: str, entity: str | None, mode: str) -> WandbLogger:
    """A Weights & Biases run that belongs to a run folder: resuming the folder resumes it.

    A run of a sweep is grouped with its experiment and variant and tagged with all experiments that share it.

    Args:
        folder: the run folder; its path and first start name the run.
        group: group of a run of no sweep.
        seed: becomes the job type.
        project: project of the run.
        entity: team; None: the account's own.
        mode: online, offline, disabled, or auto: what WANDB_MODE says, else online with an account and offline without.

    Raises:
        MercError: the service refuses the run or cannot be reached.
    """
    import wandb

    sweeps = sweeps_of(folder.path)
    logger = WandbLogger(
        name=f"{group}-seed={seed}",
        save_dir=os.environ.get("WANDB_DIR", folder.path),
        id=run_id(folder),
        project=project,
        entity=entity,
        group=run_group(*sweeps[0]) if sweeps else group,
        tags=sorted({tag(sweep.experiment) for sweep, _ in sweeps}),
        job_type=f"seed={seed}",
        mode=wandb_mode(mode),
        settings=wandb.Settings(silent=True, console="off"),
    )
    try:
        _ = logger.experiment
    except wandb.errors.Error as error:
        raise MercError(f"Weights & Biases refuses the run: {error} Set logger.mode=offline to log locally.") from error
    return logger


def tensorboard_logger(folder: RunFolder, group: str, seed: int) -> TensorBoardLogger:
    """TensorBoard event files in the run folder's ``tensorboard/``.

    Raises:
        MercError: TensorBoard is not installed.
    """
    try:
        return TensorBoardLogger(folder.path, name="", version="tensorboard")
    except ModuleNotFoundError as error:
        raise MercError("TensorBoard is not installed. Install it: pip install 'merc[tensorboard]'.") from error


def log_closing(
    logger: Logger, metrics: Mapping[str, Any], splits: Mapping[str, tuple[Conversations, Prediction]]
) -> None:
    """Log the content of metrics.json, and to Weights & Biases confusion matrix and predictions of every split."""
    summary = {
        f"{epoch}/test/{name}": float(scores[name]) for epoch, scores in metrics.items() for name in ("epoch", *SUMMARY)
    }
    logger.log_metrics(summary)
    if isinstance(logger, WandbLogger):
        import wandb

        logger.experiment.summary.update(summary)
        logger.experiment.log({f"{split}/confusion_matrix": _confusion(wandb, *splits[split]) for split in splits})
        logger.experiment.log({f"{split}/predictions": _predictions(wandb, *splits[split]) for split in splits})


def _confusion(wandb: Any, conversations: Conversations, prediction: Prediction) -> Any:
    return wandb.plot.confusion_matrix(
        y_true=conversations.labels.tolist(),
        preds=torch.argmax(prediction.fused, 1).tolist(),
        class_names=list(conversations.label_names),
    )


def _predictions(wandb: Any, conversations: Conversations, prediction: Prediction) -> Any:
    """A row for each utterance: its id, label and prediction, and the probability of the latter."""
    names = conversations.label_names
    probability_N, predicted_N = prediction.fused.softmax(1).max(1)
    labels = [names[label] for label in conversations.labels.tolist()]
    predicted = [names[label] for label in predicted_N.tolist()]
    rows = zip(conversations.utterance_ids, labels, predicted, probability_N.tolist(), strict=True)
    return wandb.Table(columns=["utterance", "label", "prediction", "probability"], data=[list(row) for row in rows])


def run_id(folder: RunFolder) -> str:
    """The identity of a run at Weights & Biases: that of its folder and first start."""
    name = f"{folder.path.resolve()} {folder.read_status().get('started')}"
    return hashlib.sha256(name.encode()).hexdigest()[:12]


def _finish(logger: Logger) -> None:
    if isinstance(logger, WandbLogger):
        import wandb

        # Otherwise the next run of this process would go on in this one.
        wandb.finish()
    else:
        logger.finalize("success")
