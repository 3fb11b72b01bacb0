"""``python -m merc.bench.scale``: how cost grows with the length of dialogues and with the size of the data."""

import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from omegaconf import DictConfig
from rich.console import Group

from merc import cli
from merc.bench.lengths import LengthCost, exponent, length_costs
from merc.bench.results import Grid, machine_line
from merc.bench.sizes import SizeCost, size_cost, write_repeated
from merc.config import plain
from merc.data.corpora import CORPORA
from merc.errors import MercError, check_names
from merc.files import write_json, write_text
from merc.reporting.environment import describe_environment
from merc.reporting.report.figures import legend, panels_of, series_look, styled, write_figure
from merc.reporting.tables import show

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

P = ParamSpec("P")
T = TypeVar("T")
ByLength = dict[str, list[LengthCost]]


def main() -> None:
    """The command."""
    cli.run(bench, "bench_scale")


def bench(cfg: DictConfig) -> None:
    """Measure what ``cfg`` names, write and print it.

    Args:
        cfg: the composed configuration, see conf/bench_scale.yaml.

    Raises:
        MercError: a number that cannot be, an unknown corpus, a stage that cannot be built, figures without
            matplotlib, or a folder that cannot be written.
    """
    settings = plain(cfg)
    _refuse_mistakes(settings)
    by_length: ByLength = {}
    for name in settings["lengths"]["measure"] or settings["lengths"]["stages"]:
        _note(f"{name}: dialogues of {min(settings['lengths']['of_dialogues'])} utterances and more")
        choice = settings["lengths"]["stages"][name]
        by_length[name] = _in_process(length_costs, choice, settings["lengths"], settings["rounds"])
    by_size = [_size(times, settings["sizes"]) for times in sorted(settings["sizes"]["of_data"])]
    _publish(by_length, by_size, settings)


def _refuse_mistakes(settings: Mapping[str, Any]) -> None:
    lengths, sizes = settings["lengths"], settings["sizes"]
    numbers = {
        "rounds": [settings["rounds"]],
        "lengths.of_dialogues": lengths["of_dialogues"],
        "lengths.utterances": [lengths["utterances"]],
        "sizes.of_data": sizes["of_data"],
        "sizes.steps": [sizes["steps"]],
    }
    for key, values in numbers.items():
        if not values or not all(isinstance(value, int) and value >= 1 for value in values):
            raise MercError(f"{key}={values}: give whole numbers of at least 1.")
    check_names("lengths.measure", lengths["measure"] or [], lengths["stages"])
    check_names("sizes.corpus", [sizes["corpus"]], CORPORA)
    if settings["figures"]:
        styled()  # says so now if it cannot


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _in_process(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """The result of a function in a process of its own, whose memory nobody else has touched."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *args, **kwargs).result()


def _size(times: int, settings: Mapping[str, Any]) -> SizeCost:
    _note(f"{times} times the dialogues of {settings['corpus']}")
    with TemporaryDirectory() as folder:
        store = Path(folder) / "store"
        _in_process(write_repeated, store, times, settings)
        return _in_process(size_cost, store, times, settings)


def _publish(by_length: ByLength, by_size: Sequence[SizeCost], settings: Mapping[str, Any]) -> None:
    out, environment = Path(settings["out"]), describe_environment()
    grids = [*_length_grids(by_length, settings["lengths"]), _size_grid(by_size)]
    write_json(
        out / "scale.json",
        {
            "environment": environment,
            "settings": dict(settings),
            "lengths": {name: [asdict(cost) for cost in costs] for name, costs in by_length.items()},
            "sizes": [asdict(cost) for cost in by_size],
        },
    )
    remarks = [machine_line(environment), *_remarks(settings)]
    write_text(out / "scale.md", "\n".join(["# How cost grows\n", *remarks, "", *(g.markdown() for g in grids)]))
    written = [out / "scale.json", out / "scale.md"]
    if settings["figures"]:
        with styled():
            write_figure(_figure(by_length, by_size), out / "scale")
        written.append(out / "scale.png")
    show(Group(*(grid.rich() for grid in grids), *remarks, f"Written: {', '.join(map(str, written))}"))


def _remarks(settings: Mapping[str, Any]) -> list[str]:
    lengths, sizes = settings["lengths"], settings["sizes"]
    return [
        f"By length: {lengths['utterances']:,} utterances in dialogues of equal length, rows of "
        f"{lengths['hidden_dim']} numbers, two modalities, window {lengths['window']}. The growth is p in seconds per "
        "dialogue ∝ length^p, fitted to the longer half of the lengths. Memory is the peak beyond what was there "
        "before.",
        f"By size: generated data in the shape of {sizes['corpus']}, from a feature store on disk. Own memory belongs "
        "to the process alone; the resident set also counts pages of the store, which the system may take back.",
    ]


def _length_grids(by_length: ByLength, settings: Mapping[str, Any]) -> list[Grid]:
    lengths = sorted({cost.length for costs in by_length.values() for cost in costs})
    seconds, memory = [], []
    for name, costs in by_length.items():
        at = {cost.length: cost for cost in costs}
        growth = exponent(costs, settings["utterances"])
        shown = "" if growth is None else f"{growth:.2f}"
        seconds.append([name, shown, *(f"{at[n].seconds:.2f}" if n in at else "" for n in lengths)])
        memory.append([name, *(f"{at[n].memory / 1e6:.0f}" if n in at else "" for n in lengths)])
    header = [f"{n:,}" for n in lengths]
    return [
        Grid("Seconds of a forward and backward pass, by dialogue length", ["stage", "growth", *header], seconds, 1),
        Grid("Memory in MB, by dialogue length", ["stage", *header], memory, 1),
    ]


def _size_grid(by_size: Sequence[SizeCost]) -> Grid:
    header = ["data", "utterances", "features (MB)", "ready (s)", "training (1/s)", "reading (1/s)"]
    rows = [
        [
            f"{cost.times} ×",
            f"{cost.utterances:,}",
            f"{cost.features / 1e6:,.0f}",
            f"{cost.ready:.1f}",
            f"{cost.training:,.0f}",
            f"{cost.reading:,.0f}",
            "" if cost.own is None else f"{cost.own / 1e6:,.0f}",
            f"{cost.resident / 1e6:,.0f}",
        ]
        for cost in by_size
    ]
    return Grid("Training from a store, by data size", [*header, "own memory (MB)", "resident (MB)"], rows, 1)


def _figure(by_length: ByLength, by_size: Sequence[SizeCost]) -> "Figure":
    figure, (seconds, memory, by_data) = panels_of(3, width=3.6)
    for index, (name, costs) in enumerate(by_length.items()):
        lengths = [cost.length for cost in costs]
        seconds.plot(lengths, [cost.seconds for cost in costs], label=name, **series_look(index))
        memory.plot(lengths, [cost.memory / 1e6 for cost in costs], label=name, **series_look(index))
    _logarithmic(seconds, "utterances per dialogue", "seconds, all utterances")
    _logarithmic(memory, "utterances per dialogue", "memory (MB)")
    features = [cost.features / 1e6 for cost in by_size]
    for index, (label, values) in enumerate(
        {
            "features on disk": features,
            "resident": [cost.resident / 1e6 for cost in by_size],
            "own memory": [float("nan") if cost.own is None else cost.own / 1e6 for cost in by_size],
        }.items()
    ):
        by_data.plot([cost.times for cost in by_size], values, label=label, **series_look(index))
    _logarithmic(by_data, "times the corpus", "MB")
    by_data.legend()
    legend(figure, [seconds, memory])
    return figure


def _logarithmic(panel: "Axes", x: str, y: str) -> None:
    panel.set_xscale("log", base=2)
    panel.set_yscale("log")
    panel.set_xlabel(x)
    panel.set_ylabel(y)


if __name__ == "__main__":
    # Other processes find the functions of an importable module, not those of __main__.
    from merc.bench.scale import main

    main()
