"""What a run cost: the content of costs.json.

Times are those of this machine, with whatever else it did; parameters and operations are properties of the model.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from statistics import median
from typing import Any

import lightning as L
import torch

from merc.data.datamodule import ConversationDataModule
from merc.models.costs import flops_per_utterance
from merc.models.emotion_model import count_parameters
from merc.models.lightning_module import EmotionRecognition
from merc.reporting.history import Epoch
from merc.reporting.predictions import predict


def measure_costs(
    trainer: L.Trainer, module: EmotionRecognition, data: ConversationDataModule, history: Sequence[Epoch]
) -> dict[str, Any]:
    """Time one pass over the test split and sum up what training took.

    Args:
        trainer: behind training.
        module: on its device, warm: it has predicted the test split before.
        data: what it was trained on.
        history: every epoch of the run.

    Returns:
        ``parameters``, frozen ones included; ``flops_per_utterance`` of a forward pass, see
        :func:`merc.models.costs.flops_per_utterance`; ``train_seconds`` of all epochs with their evaluation;
        ``train_seconds_per_epoch``, ``train_batch_seconds`` and ``train_utterances_per_second`` without it, of the
        median epoch, these four under ``seeds_at_once`` where they are of several seeds;
        ``inference_seconds_per_utterance``, ``inference_utterances_per_second`` and
        ``inference_flops_per_second``, with the making of batches; ``device``, ``precision``,
        ``matmul_precision`` and ``threads``.
    """
    flops = _flops(module, data)
    per_utterance = _inference_seconds(module, data, trainer.precision_plugin.forward_context)
    per_batch = trainer.world_size * _utterances_per_batch(data)
    training = _training(history, int(trainer.num_training_batches), per_batch)
    return {
        "parameters": count_parameters(module.model),
        "flops_per_utterance": flops,
        **_of_a_run(training, history),
        "inference_seconds_per_utterance": per_utterance,
        "inference_utterances_per_second": 1 / per_utterance,
        "inference_flops_per_second": flops / per_utterance,
        "device": _device_name(module.device),
        "precision": str(trainer.precision),
        "matmul_precision": torch.get_float32_matmul_precision(),
        "threads": torch.get_num_threads(),
    }


def _of_a_run(training: dict[str, float], history: Sequence[Epoch]) -> dict[str, Any]:
    """What training took, where it is that of a run alone.

    Where several seeds were trained at once, if only for some epochs, it is that of all: it stands by itself under
    ``seeds_at_once``, with their largest number, where no report takes it for the time of a run.
    """
    seeds = max(epoch.get("seeds_at_once", 1) for epoch in history)  # absent in older checkpoints
    return training if seeds == 1 else {"seeds_at_once": {"seeds": seeds} | training}


def _training(history: Sequence[Epoch], batches: int, utterances_per_batch: float) -> dict[str, float]:
    seconds = [epoch["values"]["seconds"] for epoch in history]
    epoch_seconds = median(total - epoch["evaluation_seconds"] for total, epoch in zip(seconds, history, strict=True))
    return {
        "train_seconds": sum(seconds),
        "train_seconds_per_epoch": epoch_seconds,
        "train_batch_seconds": epoch_seconds / batches,
        "train_utterances_per_second": utterances_per_batch * batches / epoch_seconds,
    }


def _utterances_per_batch(data: ConversationDataModule) -> float:
    """On average over the training part."""
    return len(data.parts["train"].labels) / len(data.train_dataloader())


def _flops(module: EmotionRecognition, data: ConversationDataModule) -> float:
    """On the run's own device: not every part can do without computing."""
    return flops_per_utterance(module.model.eval(), (batch.to(module.device) for batch in data.loader("test")))


def _inference_seconds(
    module: EmotionRecognition, data: ConversationDataModule, precision: Callable[[], AbstractContextManager[Any]]
) -> float:
    started = time.perf_counter()
    predict(module, data.loader("test"), precision())
    return (time.perf_counter() - started) / len(data.parts["test"].labels)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
