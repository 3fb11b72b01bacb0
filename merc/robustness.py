"""What is left of a model's scores when features are noisy or missing at test time; nothing is trained for it.

The AMB-DSGDN paper adds Gaussian noise to the test features, in multiples of the "overall feature standard deviation"
(Sec. 6.5). Here the standard deviation is that of each feature dimension on the training part: dimensions of published
features differ by orders of magnitude, and one deviation for all of them would drown some and spare others. A modality
that is missing is replaced by its mean on the training part, the least that a model can be told of it; zeros would be
that mean only for standardised features, and elsewhere a message of their own.
"""

import fcntl
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from merc.data.conversation import Conversations, Features
from merc.data.datamodule import ConversationDataModule
from merc.errors import MercError, check_names
from merc.files import write_json
from merc.metrics import confusion_matrix, scores_from_confusion
from merc.models.lightning_module import EmotionRecognition
from merc.reporting.history import REPORTED
from merc.reporting.predictions import predict

FORMAT = 1
LEVELS = tuple(level / 10 for level in range(8))
"""Noise of AMB-DSGDN's Fig. 7, in standard deviations."""

Row = dict[str, Any]
Statistics = Mapping[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Disturbance:
    """What is done to the features of a split.

    Args:
        noise: standard deviation of the noise, in those of each feature dimension.
        modalities: those that are noisy; none without noise.
        drop: those that are missing.
    """

    noise: float
    modalities: tuple[str, ...]
    drop: tuple[str, ...] = ()


def disturbances(
    modalities: Sequence[str],
    noise: Sequence[float] | None,
    noisy: Sequence[str] | None = None,
    drop: Sequence[str] | None = None,
) -> list[Disturbance]:
    """Every disturbance that is asked for, each once: features without noise are the same whose noise that would be.

    Args:
        modalities: of the model, in order.
        noise: levels; None: no noise.
        noisy: the modalities that get noise, together; None: all together, then each alone.
        drop: the modalities that are missing throughout; None: none.

    Raises:
        MercError: one of them is no list, a level is no finite number from 0 on, a modality is not the model's, or none
            would be left.
    """
    for key, values in (("noise", noise), ("noisy", noisy), ("drop", drop)):
        if values is not None and not isinstance(values, list | tuple):
            raise MercError(f"{key}={values} is not a list, which is needed there: {key}=[{values}].")
    for level in noise or ():
        if isinstance(level, bool) or not isinstance(level, int | float) or not 0 <= level < math.inf:
            raise MercError(f"noise={level}: give finite numbers of at least 0, in standard deviations: noise=[0,0.1].")
    check_names("noisy", map(str, noisy or ()), modalities)
    check_names("drop", map(str, drop or ()), modalities)
    left = [m for m in modalities if m not in (drop or ())]
    if not left:
        raise MercError(f"drop=[{','.join(drop or ())}] leaves the model nothing to look at. Keep one modality.")
    chosen = [tuple(left), *((m,) for m in left)] if noisy is None else [tuple(m for m in left if m in noisy)]
    if not chosen[0]:
        raise MercError("Every modality of noisy=[…] is also in drop=[…]: missing features have no noise.")
    sets = list(dict.fromkeys(chosen))
    missing = tuple(m for m in modalities if m in (drop or ()))
    levels = [float(level) for level in noise or (0.0,)]
    asked = (Disturbance(level, names if level else (), missing) for names in sets for level in levels)
    return list(dict.fromkeys(asked))


def every_missing_set(modalities: Sequence[str]) -> list[Disturbance]:
    """Each set of modalities missing once, but the set of all."""
    sets = [drop for size in range(1, len(modalities)) for drop in combinations(modalities, size)]
    return [Disturbance(0.0, (), drop) for drop in sets]


def measure(
    module: EmotionRecognition,
    data: ConversationDataModule,
    split: str,
    asked: Sequence[Disturbance],
    draws: int,
    precision: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> list[Row]:
    """The scores of a split under disturbances, as the rows of robustness.json.

    The noise of a modality in a draw is the same at all levels, up to its size, and for all models that get the same
    features of it: what differs between two rows is not the luck of the draw.

    Args:
        module: on the device where to compute.
        data: set up; its part ``train`` gives means and standard deviations.
        split: the part to disturb.
        asked: the disturbances.
        draws: of the noise; their scores are averaged.
        precision: makes the context in which the model computes, such as autocast.
    """
    statistics = training_statistics(data.parts["train"])

    def scored(disturbance: Disturbance, draw: int) -> dict[str, Any]:
        part = disturb(data.parts[split], disturbance, statistics, draw)
        return _scores(module, part, data.evaluation_batch_size, precision())

    rows = []
    for disturbance in asked:
        repeats = draws if disturbance.noise else 1
        scores = _mean([scored(disturbance, draw) for draw in range(repeats)])
        rows.append({**_plain(disturbance), "split": split, "draws": repeats, "scores": scores})
    return rows


def _plain(disturbance: Disturbance) -> Row:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(disturbance).items()}


def training_statistics(train: Conversations) -> Statistics:
    """Modality → (D_m,) mean and standard deviation of its features."""
    features = Features.of(train.features)
    moments = {modality: features.moments(modality) for modality in features}
    return {modality: (mean.float(), deviation.float()) for modality, (mean, deviation) in moments.items()}


def disturb(part: Conversations, disturbance: Disturbance, statistics: Statistics, draw: int) -> Conversations:
    """The conversations with disturbed features.

    Args:
        part: with (N, D_m) features per modality.
        disturbance: what to do.
        statistics: modality → (D_m,) mean and standard deviation.
        draw: which noise; the same number draws the same.
    """
    features = dict(part.features)
    for modality, rows in part.features.items():
        mean, deviation = statistics[modality]
        if modality in disturbance.drop:
            features[modality] = mean.expand_as(rows)
        elif modality in disturbance.modalities and disturbance.noise:
            features[modality] = rows + disturbance.noise * deviation * _noise(rows, draw, modality)
    return replace(part, features=features)


def _noise(rows: Tensor, draw: int, modality: str) -> Tensor:
    """Standard normal numbers in the shape of ``rows``, a function of draw and modality, whatever others there are."""
    seed = int(np.random.SeedSequence([draw, *modality.encode()]).generate_state(1)[0])
    return torch.randn(rows.shape, generator=torch.Generator().manual_seed(seed))


def _scores(
    module: EmotionRecognition, part: Conversations, batch_size: int, precision: AbstractContextManager[Any]
) -> dict[str, Any]:
    """The reported scores of a part, in batches as its loader has them."""
    dialogues = range(len(part.lengths))
    batches = (part.batch(dialogues[start : start + batch_size]) for start in dialogues[::batch_size])
    predicted_N = predict(module, batches, precision).fused.argmax(-1)
    confusion_CC = confusion_matrix(predicted_N, part.labels, len(part.label_names))
    scores = scores_from_confusion(confusion_CC, part.label_names)
    return {name: scores[name] for name in REPORTED}


def _mean(values: Sequence[Any]) -> Any:
    """The mean of numbers, or of each number in dictionaries of the same keys; counts are the same in all."""
    first = values[0]
    if isinstance(first, Mapping):
        return {key: _mean([value[key] for value in values]) for key in first}
    return first if isinstance(first, int) else fmean(values)


def record(path: Path, rows: Sequence[Row]) -> None:
    """Write rows to a robustness.json; those there stay, but for the ones of the same disturbance and split.

    Processes that write to the same file wait for each other, so that none loses the rows of another.

    Raises:
        MercError: the file cannot be read or written.
    """
    with _locked(path):
        merged = {_identity(row): row for row in (*_recorded(path), *rows)}
        write_json(path, {"format": FORMAT, "rows": list(merged.values())})


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_name(f".{path.stem}.lock").open("w")
    except OSError as error:
        raise MercError(f"Cannot write {path}: {error.strerror}. Choose another folder with out=….") from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _recorded(path: Path) -> list[Row]:
    try:
        rows: list[Row] = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    except (ValueError, KeyError, TypeError) as error:
        raise MercError(f"{path} is damaged. Delete it, and run the same command again.") from error
    return rows


def _identity(row: Row) -> tuple[Any, ...]:
    """What the scores of a row depend on; older files name modalities without noise as well."""
    return row["noise"], tuple(row["modalities"]) if row["noise"] else (), tuple(row["drop"]), row["split"]
