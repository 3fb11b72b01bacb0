"""A factory of run folders, manifests and experiments as training and sweeps leave them, without training."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from sklearn.metrics import accuracy_score, f1_score, precision_recall_fscore_support, precision_score

from merc.reporting.report.sections import Sampling, Section
from merc.reporting.report.tables import Table, section_tables
from merc.reporting.report.write import read_sections

CLASSES = ("neutral", "joy", "anger")


PUBLISHED = {
    "meld": {
        "all": {"weighted_f1": 66.18, "f1/joy": 64.59},
        "DialogueRNN": {"weighted_f1": 57.95, "wa_acc": 60.25},
    },
    "iemocap": {"all": {"weighted_f1": 75.64}},
}


class Lab:
    """A run root with runs, sweeps and experiments.

    Args:
        root: where everything lies.
        dialogues: of the test split.
        length: utterances of each dialogue.
    """

    def __init__(self, root: Path, dialogues: int = 40, length: int = 6) -> None:
        self.runs = root / "runs"
        self.config_dir = root / "own"
        self.classes = CLASSES
        rng = np.random.default_rng(0)
        self.dialogue = np.repeat(np.arange(dialogues), length)
        self.labels = rng.choice(len(CLASSES), dialogues * length, p=(0.5, 0.3, 0.2))

    def predict(self, skill: float, seed: int) -> np.ndarray[Any, Any]:
        """Predictions that are right with a probability."""
        rng = np.random.default_rng([seed, int(1000 * skill)])
        guesses = rng.integers(0, len(self.classes), len(self.labels))
        return np.where(rng.random(len(self.labels)) < skill, self.labels, guesses)

    def run(
        self,
        path: str,
        skill: float = 0.5,
        seed: int = 1,
        state: str = "finished",
        merged: bool = False,
        **files: dict[str, Any],
    ) -> Path:
        """A run folder; ``files`` are further JSON files, such as ``costs``."""
        folder = self.runs / path
        folder.mkdir(parents=True, exist_ok=True)
        status = {"state": state, "error": "It broke." if state == "failed" else None, "epoch": 3, "epochs": 10}
        self._json(folder / "status.json", status)
        self._history(folder / "metrics.csv", skill)
        for name, content in files.items():
            self._json(folder / f"{name}.json", content)
        if state != "finished":
            return folder
        predictions = self.predict(skill, seed)
        metrics = {
            "selected": self.scores(predictions) | {"epoch": 2},
            "last": self.scores(self.predict(skill - 0.02, seed)) | {"epoch": 3},
            "test_best": self.scores(self.predict(skill + 0.03, seed)) | {"epoch": 1},
        }
        if merged:
            del metrics["selected"]
        self._json(folder / "metrics.json", metrics)
        self.predictions(folder / "predictions.parquet", predictions)
        return folder

    def scores(self, predictions: np.ndarray[Any, Any]) -> dict[str, Any]:
        """The scores of metrics.json, by scikit-learn."""
        truth, ids = self.labels, range(len(self.classes))
        each = zip(*precision_recall_fscore_support(truth, predictions, labels=ids, zero_division=0), strict=True)
        return {
            "accuracy": accuracy_score(truth, predictions),
            "weighted_precision": precision_score(truth, predictions, average="weighted", zero_division=0),
            "weighted_f1": f1_score(truth, predictions, average="weighted", zero_division=0),
            "macro_f1": f1_score(truth, predictions, labels=ids, average="macro", zero_division=0),
            "per_class": {
                name: {"precision": p, "recall": r, "f1": f, "support": int(n)}
                for name, (p, r, f, n) in zip(self.classes, each, strict=True)
            },
        }

    def predictions(self, path: Path, predictions: np.ndarray[Any, Any]) -> None:
        """A predictions.parquet with the columns that training writes, and a few validation rows before the test's."""
        labels = np.concatenate([self.labels[:6], self.labels])
        predicted = np.concatenate([1 - (predictions[:6] > 0), predictions])
        names = [*[f"validation_{index}" for index in self.dialogue[:6]], *[f"test_{i}" for i in self.dialogue]]
        columns: dict[str, Any] = {
            "split": ["validation"] * 6 + ["test"] * len(self.labels),
            "dialogue": names,
            "utterance": [f"{name}_{index}" for index, name in enumerate(names)],
            "speaker": np.zeros(len(names), int),
            "label": [self.classes[index] for index in labels],
            "prediction": [self.classes[index] for index in predicted],
            **{f"probability_{name}": np.full(len(names), 0.5) for name in self.classes},
            "text_prediction": [self.classes[index] for index in predicted],
        }
        pq.write_table(pa.table(columns), path)

    def sweep(
        self,
        experiment: str,
        jobs: list[dict[str, Any]],
        data: str = "meld",
        corpus: str = "meld",
        name: str = "meld-0123abcd",
        overrides: tuple[str, ...] = (),
    ) -> None:
        """A manifest."""
        manifest = {
            "format": 1,
            "experiment": experiment,
            "data": data,
            "corpus": corpus,
            "overrides": list(overrides),
            "jobs": jobs,
        }
        self._json(self.runs / "sweeps" / experiment / f"{name}.json", manifest)

    def job(self, variant: str, seed: int, run: str, *overrides: str) -> dict[str, Any]:
        """An entry of a manifest."""
        return {"variant": variant, "seed": seed, "overrides": [*overrides, f"seed={seed}"], "run": run}

    def experiment(self, name: str, **changes: Any) -> None:
        """The file of an experiment of the user's own."""
        node = {
            "name": name,
            "title": "Combinations of modalities",
            "source": "A paper (arXiv:0000.00000), Table 4",
            "kind": "table",
            "seeds": [1, 2, 3],
            "reference": "all",
            "columns": ["accuracy", "weighted_f1"],
            "variants": {"text": [], "all": []},
        } | changes
        path = self.config_dir / "experiment" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("# @package _global_\n" + yaml.safe_dump({"experiment": node}, allow_unicode=True))

    def grid(
        self, experiment: str, skills: dict[str, float], seeds: tuple[int, ...] = (1, 2, 3), **changes: Any
    ) -> None:
        """A whole experiment: variants of some skill, every run finished."""
        reference = "all" if "all" in skills else None
        variants = {name: [f"variant={name}"] for name in skills}
        self.experiment(experiment, **{"variants": variants, "reference": reference} | changes)
        jobs = []
        for variant, skill in skills.items():
            for seed in seeds:
                path = f"model-meld-{variant}/seed={seed}"
                self.run(path, skill, seed)
                jobs.append(self.job(variant, seed, path, f"variant={variant}"))
        self.sweep(experiment, jobs)

    def _history(self, path: Path, skill: float) -> None:
        rows = [
            {
                "epoch": epoch,
                "train/loss": 2 - 0.1 * epoch,
                "validation/weighted_f1": skill + 0.01 * epoch,
                "test/weighted_f1": skill + 0.02 * epoch,
                "balancing/score_text": 0.1 * epoch,
                "balancing/q_text": 0.05 * epoch,
                "seconds": 1.0,
            }
            for epoch in (1, 2, 3)
        ]
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)

    @staticmethod
    def _json(path: Path, content: Any) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))


def sections_of(lab: Lab, *names: str, resamples: int = 200) -> list[Section]:
    return read_sections(lab.runs, names, lab.config_dir, Sampling(resamples=resamples))


def section_of(lab: Lab, *names: str) -> Section:
    (section,) = sections_of(lab, *names)
    return section


def table_of(section: Section, name: str = "scores") -> Table:
    return next(table for table in section_tables(section) if table.name == name)


def robustness(base: float) -> dict[str, object]:
    def row(noise: float, modalities: list[str], drop: list[str], score: float) -> dict[str, object]:
        scores = {"weighted_f1": score, "accuracy": score}
        return {"noise": noise, "modalities": modalities, "drop": drop, "split": "test", "draws": 1, "scores": scores}

    rows = [row(noise, ["text", "audio"], [], base - noise / 10) for noise in (0.0, 0.5)]
    rows += [row(noise, ["audio"], [], base - noise / 100) for noise in (0.0, 0.5)]
    rows += [row(0.0, ["audio"], ["text"], base - 0.3), {**row(0.9, ["text"], [], 0.0), "split": "validation"}]
    return {"format": 1, "rows": rows}
