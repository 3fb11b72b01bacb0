"""What training from a feature store costs, whatever the size of the store."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from merc.bench.machine import own_memory, resident
from merc.bench.subjects import Setting, bare_training
from merc.data.conversation import Conversations
from merc.data.corpora import CORPORA
from merc.data.store import write_store
from merc.data.synthetic import generate
from merc.memory import keep_freed_memory


@dataclass(frozen=True)
class SizeCost:
    """Training on a store of some size.

    Attributes:
        times: the published number of dialogues.
        utterances: of the store.
        features: bytes of its features.
        ready: seconds until the store is read, verified and divided.
        training: utterances per second of training steps.
        reading: utterances per second of a whole pass over the training part, without training.
        own: most bytes of memory that belong to the process alone; None: the system does not tell.
        resident: most bytes of memory, with the pages of the store that the system may take back at any time.
    """

    times: int
    utterances: int
    features: int
    ready: float
    training: float
    reading: float
    own: int | None
    resident: int


def write_repeated(path: Path, times: int, settings: Mapping[str, Any]) -> None:
    """Write a store of generated conversations, repeated so many times; they are never in memory all together.

    Args:
        path: the folder to create; its parent gets a file for each modality.
        times: how often.
        settings: ``sizes`` of conf/bench_scale.yaml.
    """
    once = generate(CORPORA[settings["corpus"]], dims=settings["dims"])
    tables = {m: _repeated_on_disk(x, times, path.parent / f"{m}.raw") for m, x in once.features.items()}
    whole = Conversations(
        features=tables,
        speakers=once.speakers.repeat(times),
        labels=once.labels.repeat(times),
        lengths=once.lengths * times,
        dialogue_ids=tuple(f"{i}_{name}" for i in range(times) for name in once.dialogue_ids),
        utterance_ids=tuple(f"{i}_{name}" for i in range(times) for name in once.utterance_ids),
        splits=once.splits * times,
        label_names=once.label_names,
    )
    write_store(path, whole, corpus=None, sources={})
    for modality in tables:
        (path.parent / f"{modality}.raw").unlink()


def _repeated_on_disk(x_ND: Tensor, times: int, file: Path) -> Tensor:
    table = torch.from_file(str(file), shared=True, size=times * x_ND.numel(), dtype=x_ND.dtype)
    table.view(times, *x_ND.shape).copy_(x_ND)
    return table.view(-1, x_ND.shape[1])


def size_cost(path: Path, times: int, settings: Mapping[str, Any]) -> SizeCost:
    """Train some steps from a store, then read all of its training part.

    Args:
        path: the store.
        times: what it was made with.
        settings: ``sizes`` of conf/bench_scale.yaml.
    """
    keep_freed_memory()
    data = ("data=custom", f"data.store={path}", f"data.modalities=[{','.join(settings['dims'])}]", "trainer=cpu")
    started = time.perf_counter()
    setting = Setting.of((*data, *settings["overrides"].split()))
    ready = time.perf_counter() - started
    peak = _Peak()
    training = _training(setting, settings["steps"], peak)
    started, count = time.perf_counter(), 0
    for batch in setting.batches("train"):
        count += batch.rows
        peak.look()
    parts = setting.data.parts.values()
    utterances = sum(len(part.labels) for part in parts)
    return SizeCost(
        times=times,
        utterances=utterances,
        features=4 * utterances * sum(setting.data.info.dims.values()),
        ready=ready,
        training=training,
        reading=count / (time.perf_counter() - started),
        own=peak.own,
        resident=peak.resident,
    )


class _Peak:
    own: int | None = None
    resident: int = 0

    def look(self) -> None:
        own = own_memory()
        self.own = own if self.own is None or own is None else max(self.own, own)
        self.resident = max(self.resident, resident())


def _training(setting: Setting, steps: int, peak: _Peak) -> float:
    """Utterances per second, behind a step that warms up."""
    first, *batches = islice(cycle(setting.batches("train")), steps + 1)
    train_on = bare_training(setting)
    train_on([first])
    started = time.perf_counter()
    train_on(batches)
    peak.look()
    return sum(batch.rows for batch in batches) / (time.perf_counter() - started)
