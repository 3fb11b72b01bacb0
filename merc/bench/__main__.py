"""``python -m merc.bench``: every ratio of the models' speed on this machine, from one run."""

import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from omegaconf import DictConfig

from merc import cli
from merc.bench import processes, subjects
from merc.bench.interleave import Subject, interleave
from merc.bench.ratios import PRODUCTS, Group, Ratio
from merc.bench.reference import REFERENCES
from merc.bench.results import publish
from merc.config import compose, plain
from merc.data.corpora import CORPORA
from merc.errors import MercError, check_names
from merc.models.__main__ import model_names
from merc.models.precision import multiplies_bfloat16
from merc.reporting.environment import describe_environment

PRECISIONS = {
    "fp32": ("trainer.precision=32-true",),
    "bf16": ("trainer.precision=bf16-mixed",),
    "high": ("trainer.precision=32-true", "matmul_precision=high"),
    "medium": ("trainer.precision=32-true", "matmul_precision=medium"),
}
COMMON = ("data.split=merged", "trainer=cpu")


def main() -> None:
    """The command."""
    cli.run(bench, "bench")


def bench(cfg: DictConfig) -> list[Ratio]:
    """Measure what ``cfg`` names, write and print it.

    Args:
        cfg: the composed configuration, see conf/bench.yaml.

    Raises:
        MercError: an unknown model or corpus, a run that fails, or a folder that cannot be written.
    """
    settings = plain(cfg)
    check_names("models", settings["models"], model_names())
    check_names("corpora", settings["corpora"], CORPORA)
    if settings["rounds"] < 1:
        raise MercError(f"rounds={settings['rounds']}: give a number of at least 1.")
    groups = []
    with TemporaryDirectory() as folder:
        for corpus in settings["corpora"]:
            store = Path(folder) / corpus
            processes.prepare(corpus, settings["size"], store)
            groups += [_measure(model, corpus, store, settings) for model in settings["models"]]
    return publish(groups, settings, describe_environment())


def _measure(model: str, corpus: str, store: Path, settings: Mapping[str, Any]) -> Group:
    overrides = (f"model={model}", *COMMON, *settings["overrides"].split())
    stored = (*overrides, f"data={corpus}", f"data.store={store}", "trainer.max_epochs=2")

    def note(text: str) -> None:
        print(f"{model} on {corpus}: {text}", file=sys.stderr, flush=True)

    generated = (*overrides, f"data=synthetic_{corpus}", f"data.size={settings['size']}")
    patience = (settings["others_at_most"], settings["retries"])
    samples = interleave(subjects_of(model, generated, settings), settings["rounds"], *patience, note)
    note("start-up and memory")
    return Group(
        corpus=corpus,
        model=model,
        samples=samples,
        start_up=[processes.start_up(stored, *patience) for _ in range(settings["rounds"])],
        resident=processes.peak(stored),
        data=processes.data_bytes(store),
    )


def subjects_of(model: str, overrides: tuple[str, ...], settings: Mapping[str, Any]) -> dict[str, Subject]:
    """What is measured of a model: name → subject.

    Args:
        model: choice of ``model=…``.
        overrides: of its training run.
        settings: see conf/bench.yaml.
    """

    def run(subject: Any, precision: str, *more: str, **arguments: Any) -> Subject:
        return partial(subject, (*overrides, *PRECISIONS[precision], *more), **arguments)

    there = PRODUCTS if multiplies_bfloat16(torch.device("cpu")) else {"fp32": "fp32"}
    chosen = {f"floor {precision}": run(subjects.floor, precision) for precision in dict.fromkeys(there.values())}
    chosen |= {f"product {precision}": run(subjects.product, precision) for precision in there}
    chosen["own floor fp32"] = run(subjects.floor, "fp32", own=True)
    chosen["loop fp32"] = run(subjects.loop, "fp32")
    chosen["stages fp32"] = run(subjects.stages, "fp32")
    if compose(overrides).balancing.policy is not None:
        chosen["balancing adaptive"] = run(subjects.product, "fp32", "hyperparameters.warmup_epochs=0")
        chosen["balancing none"] = run(subjects.product, "fp32", "balancing=none")
    if model in REFERENCES:
        share = {"name": model, "share": settings["reference_batches"]}
        chosen["reference fp32"] = run(subjects.reference, "fp32", **share)
    return chosen


if __name__ == "__main__":
    main()
