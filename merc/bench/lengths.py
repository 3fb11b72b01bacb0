"""What one stage of the model costs, in dialogues of any length."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log
from statistics import median
from typing import Any

import numpy as np
import torch

from merc.bench.machine import forget_peak, peak_resident, resident
from merc.config import compose, plain
from merc.data.conversation import ConversationBatch, CorpusInfo
from merc.models.build import build_model
from merc.models.emotion_model import EmotionModel

MODALITIES = ("audio", "visual")  # those for which every method has a denoiser
ALONE = ("denoiser=none", "graph=none", "balancing=none")


@dataclass(frozen=True)
class LengthCost:
    """Forward and backward pass of a stage.

    Attributes:
        length: utterances of every dialogue.
        seconds: of a pass over all utterances.
        memory: bytes at the peak, beyond what was there before.
    """

    length: int
    seconds: float
    memory: int


def length_costs(choice: str, settings: Mapping[str, Any], rounds: int) -> list[LengthCost]:
    """A stage's costs in dialogues of increasing length.

    Args:
        choice: overrides that choose the stage, separated by spaces.
        settings: ``lengths`` of conf/bench_scale.yaml.
        rounds: passes that are timed, behind one that warms up.
    """
    model = stage(choice, settings)
    lengths = sorted(settings["of_dialogues"])
    _seconds(model, dialogues_of(lengths[0], settings))  # loads what is loaded once
    costs: list[LengthCost] = []
    for length in lengths:
        batch = dialogues_of(length, settings)
        forget_peak()
        before = resident()
        _seconds(model, batch)
        memory = max(0, peak_resident() - before)
        seconds = median(_seconds(model, batch) for _ in range(rounds))
        costs.append(LengthCost(length, seconds, memory))
        if seconds > settings["seconds_at_most"]:
            break
    return costs


def stage(choice: str, settings: Mapping[str, Any]) -> EmotionModel:
    """A model in training mode with a single stage between the projection and the classifier."""
    sizes = [f"hyperparameters.hidden_dim={settings['hidden_dim']}", f"hyperparameters.window={settings['window']}"]
    modalities = f"data.modalities=[{','.join(MODALITIES)}]"
    overrides = (modalities, *ALONE, *sizes, *choice.split(), *settings["overrides"].split())
    info = CorpusInfo(dict.fromkeys(MODALITIES, 16), ("one", "other"), speaker_slots=2, class_counts=(1, 1))
    torch.manual_seed(0)
    return build_model(plain(compose(overrides)), info).train()


def dialogues_of(length: int, settings: Mapping[str, Any]) -> ConversationBatch:
    """As many dialogues of this length as make up the utterances that are asked for, at least one."""
    lengths = (length,) * max(1, settings["utterances"] // length)
    rows = sum(lengths)
    return ConversationBatch(
        features={modality: torch.randn(rows, 16) for modality in MODALITIES},
        speakers=torch.randint(2, (rows,)),
        labels=torch.zeros(rows, dtype=torch.int64),
        lengths=lengths,
    )


def _seconds(model: EmotionModel, batch: ConversationBatch) -> float:
    """Of one pass; a prepared batch is a new one, as in training, that knows nothing of its structure yet."""
    model.zero_grad()
    started = time.perf_counter()
    rows = model.encode(model.prepared(batch))
    torch.stack([x_ND.sum() for x_ND in rows.values()]).sum().backward()
    return time.perf_counter() - started


def exponent(costs: Sequence[LengthCost], utterances: int) -> float | None:
    """p of seconds per dialogue ∝ length^p, fitted to the longer half of the lengths; None: there are too few.

    Args:
        costs: of a stage.
        utterances: those that every measurement was asked for.
    """
    longer = [cost for cost in costs[len(costs) // 2 :] if cost.length <= utterances]
    if len(longer) < 2:
        return None
    per_dialogue = [log(cost.seconds / (utterances // cost.length)) for cost in longer]
    return float(np.polyfit([log(cost.length) for cost in longer], per_dialogue, 1)[0])
