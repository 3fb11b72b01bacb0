"""``python -m merc.bench.gpu``: what seeds at once and recorded steps gain on a GPU."""

import csv
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from io import StringIO
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from omegaconf import DictConfig

from merc import cli
from merc.bench.results import Grid, machine_line
from merc.config import compose, plain
from merc.data.corpora import CORPORA
from merc.errors import MercError, check_names
from merc.files import write_json, write_text
from merc.reporting.environment import describe_environment
from merc.reporting.run_folder import RunFolder
from merc.reporting.tables import show
from merc.stacking import train_together

RECORDING = 2
"""Epochs behind which the sizes of most batches have been recorded."""


@dataclass(frozen=True)
class RunCost:
    """A training of some seeds at once.

    Attributes:
        model: choice of ``model=``.
        corpus: whose published shape the data has.
        precision: a key of ``precisions``.
        mode: of ``compile``; ``null``: operator by operator.
        seeds: trained at once.
        epoch: seconds of the median epoch with its evaluation, behind the first two.
        first: seconds of the first one.
        whole: seconds of everything between the configuration and complete run folders.
        memory: most bytes of the GPU's memory that tensors took; 0 without one.
    """

    model: str
    corpus: str
    precision: str
    mode: str
    seeds: int
    epoch: float
    first: float
    whole: float
    memory: int


def main() -> None:
    """The command."""
    cli.run(bench, "bench_gpu")


def bench(cfg: DictConfig) -> list[RunCost]:
    """Measure what ``cfg`` names, write and print it.

    Args:
        cfg: the composed configuration, see conf/bench_gpu.yaml.

    Raises:
        MercError: a number that cannot be, an unknown corpus or precision, a run that fails, or a folder that cannot be
            written.
    """
    settings = plain(cfg)
    check_names("corpora", settings["corpora"], CORPORA)
    check_names("measure", settings["measure"], settings["precisions"])
    if settings["epochs"] <= RECORDING:
        raise MercError(f"epochs={settings['epochs']}: give more than {RECORDING}, since those only warm up.")
    lists = (settings[key] for key in ("models", "corpora", "measure", "modes", "seeds"))
    # This process is a command whose configuration is another.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        costs = [pool.submit(_cost, settings, *choice).result() for choice in product(*lists)]
    _publish(costs, settings)
    return costs


def _cost(settings: Mapping[str, Any], model: str, corpus: str, precision: str, mode: str, seeds: int) -> RunCost:
    print(f"{model} on {corpus}, {precision}, compile={mode}: {seeds} at once", file=sys.stderr, flush=True)
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    with TemporaryDirectory() as folder:
        overrides = [
            f"model={model}",
            f"data=synthetic_{corpus}",
            "data.split=merged",
            f"data.size={settings['size']}",
            f"compile={mode}",
            f"trainer.max_epochs={settings['epochs']}",
            "trainer.enable_progress_bar=false",
            f"run_root={folder}",
            f"seed=[{','.join(map(str, range(1, seeds + 1)))}]",
        ]
        started = time.perf_counter()
        own = f"{settings['precisions'][precision]} {settings['overrides']}".split()
        with redirect_stdout(StringIO()):  # their scores
            errors = train_together(compose([*overrides, *own]))
        whole = time.perf_counter() - started
        for error in errors:
            if error is not None:
                raise error
        seconds = _seconds(next(Path(folder).glob("*/seed=1")))
    memory = torch.cuda.max_memory_allocated() if on_gpu else 0
    return RunCost(model, corpus, precision, mode, seeds, median(seconds[RECORDING:]), seconds[0], whole, memory)


def _seconds(path: Path) -> list[float]:
    with RunFolder(path).history.open(encoding="utf-8") as file:
        return [float(row["seconds"]) for row in csv.DictReader(file)]


def _publish(costs: Sequence[RunCost], settings: Mapping[str, Any]) -> None:
    out, environment = Path(settings["out"]), describe_environment()
    grid = _grid(costs)
    remarks = [
        machine_line(environment) + f" GPUs: {', '.join(environment['hardware']['gpus']) or 'none'}.",
        f"Epochs with their evaluation, as metrics.csv has them: the median behind the first {RECORDING} of "
        f"{settings['epochs']}. Relative to the same without further seeds, and to one seed operator by operator.",
    ]
    write_json(
        out / "gpu.json",
        {"environment": environment, "settings": dict(settings), "costs": [asdict(cost) for cost in costs]},
    )
    write_text(out / "gpu.md", "\n".join(["# On a GPU\n", *remarks, "", grid.markdown()]))
    show(grid.rich())
    print(*remarks, f"Written: {out / 'gpu.json'}, {out / 'gpu.md'}", sep="\n")


def _grid(costs: Sequence[RunCost]) -> Grid:
    of = {(c.model, c.corpus, c.precision, c.mode, c.seeds): c for c in costs}

    def relative(cost: RunCost, mode: str) -> str:
        base = of.get((cost.model, cost.corpus, cost.precision, mode, 1))
        return "" if base is None or base is cost else f"{cost.epoch / base.epoch:.2f}"

    rows = [
        [
            f"{c.model} on {c.corpus}",
            c.precision,
            c.mode,
            str(c.seeds),
            f"{c.epoch:.3f}",
            relative(c, c.mode),
            relative(c, "null"),
            f"{c.first:.2f}",
            f"{c.whole:.1f}",
            f"{c.memory / 1e9:.1f}" if c.memory else "",
        ]
        for c in costs
    ]
    header = ["model", "precision", "compile", "seeds", "epoch (s)", "to one seed", "to one, compile=null"]
    return Grid("Seeds at once", [*header, "first epoch (s)", "whole run (s)", "GPU memory (GB)"], rows, 3)


if __name__ == "__main__":
    # Other processes find the functions of an importable module, not those of __main__.
    from merc.bench.gpu import main

    main()
