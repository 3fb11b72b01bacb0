"""costs.json and corpus.json: against arithmetic, and against naive counts."""

import csv
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from merc.config import compose, instantiate
from merc.models.lightning_module import EmotionRecognition
from merc.reporting.corpus import describe_corpus
from merc.reporting.costs import _training
from merc.reporting.run_folder import RunFolder
from merc.train import train

DIMS = {"text": 16, "audio": 12, "visual": 8}
SMALL = (
    "data=synthetic_meld", "data.size=0.05", *(f"data.dims.{m}={d}" for m, d in DIMS.items()), "trainer=cpu",
    "hyperparameters.hidden_dim=16", "hyperparameters.batch_size=8",
)  # fmt: skip
WIDTH, CLASSES = 16, 7


def run(path: Path, *overrides: str) -> dict[str, Any]:
    train(compose([*SMALL, f"run_dir={path}", *overrides]))
    costs: dict[str, Any] = json.loads(RunFolder(path).costs.read_text())
    return costs


def test_costs_of_a_model_of_linear_maps(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    plain = ["denoiser=none", "graph=none", "balancing=none", "matmul_precision=high"]
    costs = run(tmp_path, *plain, "trainer.max_epochs=2", "trainer.precision=bf16-mixed")
    maps = [*((dim, WIDTH) for dim in DIMS.values()), *((WIDTH, CLASSES) for _ in DIMS)]
    assert costs["parameters"] == sum((inputs + 1) * outputs for inputs, outputs in maps)
    assert costs["flops_per_utterance"] == pytest.approx(sum(2 * inputs * outputs for inputs, outputs in maps))
    assert costs["inference_utterances_per_second"] * costs["inference_seconds_per_utterance"] == pytest.approx(1)
    expected = costs["flops_per_utterance"] * costs["inference_utterances_per_second"]
    assert costs["inference_flops_per_second"] == pytest.approx(expected)
    assert (costs["device"], costs["precision"], costs["threads"]) == ("cpu", "bf16-mixed", torch.get_num_threads())
    assert costs["matmul_precision"] == "high"
    with folder.history.open() as file:
        seconds = [float(row["seconds"]) for row in csv.DictReader(file)]
    assert costs["train_seconds"] == pytest.approx(sum(seconds))
    utterances = json.loads(folder.corpus.read_text())["splits"]["train"]["utterances"]
    assert costs["train_utterances_per_second"] == pytest.approx(utterances / costs["train_seconds_per_epoch"])


def test_parameters_are_those_of_the_checkpoint(tmp_path: Path) -> None:
    costs = run(tmp_path, "trainer.max_epochs=1")
    module = EmotionRecognition.from_checkpoint(RunFolder(tmp_path).last)
    assert costs["parameters"] == sum(len(tensor.flatten()) for tensor in module.model.state_dict().values())


def test_evaluation_is_no_part_of_an_epoch_of_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    validate, clock, wait, waited = EmotionRecognition.validation_step, time.perf_counter, 1000.0, 0.0

    def slow(*arguments: Any, **more: Any) -> None:
        nonlocal waited
        waited += wait
        validate(*arguments, **more)

    monkeypatch.setattr(EmotionRecognition, "validation_step", slow)
    monkeypatch.setattr(time, "perf_counter", lambda: clock() + waited)
    costs = run(tmp_path, "trainer.max_epochs=2")
    # One batch of validation, one of test, each epoch.
    assert costs["train_seconds"] > 2 * (costs["train_seconds_per_epoch"] + wait)
    assert costs["train_seconds_per_epoch"] < 2 * wait


def test_training_is_that_of_the_median_epoch() -> None:
    pairs = [(10.0, 1.0), (3.0, 1.0), (5.0, 2.5)]  # seconds, of which evaluation: 9, 2 and 2.5 of training
    history = [{"epoch": i, "values": {"seconds": s}, "evaluation_seconds": e} for i, (s, e) in enumerate(pairs)]
    assert _training(history, batches=5, utterances_per_batch=40.0) == pytest.approx(
        {
            "train_seconds": 18.0,
            "train_seconds_per_epoch": 2.5,
            "train_batch_seconds": 0.5,
            "train_utterances_per_second": 80.0,
        }
    )


@pytest.mark.parametrize("split", ["official", "merged"])
def test_corpus_is_counted(split: str) -> None:
    data = instantiate(compose(["data=synthetic_meld", "data.size=0.05", f"data.split={split}"]).data)
    data.setup()
    found = describe_corpus(data)
    together = {"train+validation": [part for name, part in data.parts.items() if name != "test"]}
    alone = {name: [part] for name, part in data.parts.items() if split == "official" or name == "test"}
    assert found.keys() == {**together, **alone}.keys()
    for name, parts in {**together, **alone}.items():
        conversations = [part.batch([i]) for part in parts for i in range(len(part.lengths))]
        labels = Counter(parts[0].label_names[label] for batch in conversations for label in batch.labels.tolist())
        assert found[name] == {
            "dialogues": len(conversations),
            "utterances": sum(labels.values()),
            "speakers": max(len(set(batch.speakers.tolist())) for batch in conversations),
            "classes": {label: labels[label] for label in parts[0].label_names},
        }
