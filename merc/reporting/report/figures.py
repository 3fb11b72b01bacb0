"""Figures of a section in the form of the papers: bars, lines, heatmaps, confusion matrices, curves under noise."""

import io
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from merc.errors import MercError
from merc.files import atomic_file
from merc.reporting import statistics
from merc.reporting.report.columns import column_name, is_score
from merc.reporting.report.sections import Section, mean
from merc.reporting.report.tables import missing_scores, noise_curve, noises
from merc.reporting.statistics import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart by colour-blind readers; without the yellow, which a white page swallows.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f")
MARKERS = "osD^vPX"
INK = "#2b2b2a"
"""Colour of text and axes, replaced by that of the page where a figure stands in one."""
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "grid.color": INK,
    "axes.axisbelow": True,
    "lines.markersize": 4,
    "errorbar.capsize": 2.5,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "svg.hashsalt": "merc",
    "pdf.fonttype": 42,  # TrueType: publishers refuse Type 3
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
}


def section_figures(section: Section) -> dict[str, "Figure"]:
    """Name → figure: that of the experiment's kind, and the differences from the reference. Empty without results.

    Raises:
        MercError: matplotlib is not installed.
    """
    draw = _DRAWINGS.get(section.experiment.kind)
    with styled():
        figures = {section.experiment.kind: draw(section)} if draw is not None else {}
        figures["differences"] = differences_figure(section)
    return {name: figure for name, figure in figures.items() if figure is not None}


def styled() -> Any:
    """The context in which figures are drawn and written.

    Raises:
        MercError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ModuleNotFoundError as error:
        raise MercError(
            "Figures need matplotlib. Install it: pip install 'merc[report]', or leave them out: figures=false."
        ) from error
    return matplotlib.rc_context(STYLE)


def write_figure(figure: "Figure", path: Path) -> None:
    """Write a figure as ``path``.png and ``path``.pdf, the same bytes for the same figure."""
    with styled():
        for suffix, metadata in ((".png", {"Software": None}), (".pdf", {"CreationDate": None, "Producer": None})):
            with atomic_file(path.with_name(path.name + suffix)) as temporary:
                figure.savefig(temporary, format=suffix[1:], dpi=200, metadata=metadata)


def inline_svg(figure: "Figure", description: str) -> str:
    """A figure as an ``<svg>`` element for a page, in the page's own text colour and on its background.

    Args:
        figure: what to draw.
        description: for those who cannot see it; it must not hold ``"<>&``.
    """
    text = io.StringIO()
    with styled():
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    width = "wide" if figure.get_figwidth() > 6 else "narrow"
    return svg.replace("<svg ", f'<svg class="{width}" role="img" aria-label="{description}" ', 1)


def lines_figure(section: Section) -> "Figure | None":
    """A panel for each measure, the variants along a numeric axis, a line for each series, with sd over seeds."""
    x, series = section.experiment.axes.get("x"), section.experiment.axes.get("series")
    rows = [row for row in section.rows if row.values(section.main) and (x is None or row.name in x.values)]
    if not rows:
        return None
    of_row = {row.name: f"{series.label} {series.values[row.name]}" if series else "ours" for row in rows}
    columns = section.summary or [section.main]
    figure, panels = panels_of(len(columns), width=4.2 if len(columns) == 1 else 3.2)
    for panel, column in zip(panels, columns, strict=True):
        for index, name in enumerate(dict.fromkeys(of_row.values())):
            mine = [row for row in rows if of_row[row.name] == name]
            places = [x.values[row.name] for row in mine] if x else [row.name for row in mine]
            _line(panel, places, [row.values(column) for row in mine], index, name)
            printed = [section.published.get(row.name, {}).get(column) for row in mine]
            points = [(place, value) for place, value in zip(places, printed, strict=True) if value is not None]
            if points:
                look: dict[str, Any] = {
                    "marker": MARKERS[index % 7],
                    "color": _colour(index),
                    "mfc": "none",
                    "linestyle": "--",
                }
                panel.plot(
                    *zip(*points, strict=True), **look, label="published" if series is None else f"{name}, published"
                )
        if x is not None:
            panel.set_xticks(sorted({x.values[row.name] for row in rows}))
            panel.set_xlabel(x.label)
        panel.set_ylabel(_axis_name(column))
    legend(figure, panels)
    return figure


def bars_figure(section: Section) -> "Figure | None":
    """Bars with sd for each variant, a group of bars for each measure; published numbers as diamonds."""
    rows = [row for row in section.rows if row.values(section.main)]
    if not rows:
        return None
    columns = section.summary or [section.main]
    figure, panels = panels_of(len(columns), width=max(2.4, 0.55 * len(rows) + 1))
    for panel, column in zip(panels, columns, strict=True):
        means, spreads = _means_and_sds([row.values(column) for row in rows])
        places = np.arange(len(rows))
        panel.bar(places, means, yerr=spreads, color=_colour(0), ecolor=INK, alpha=0.85, label="ours")
        printed = [section.published.get(row.name, {}).get(column, math.nan) for row in rows]
        if not all(map(math.isnan, printed)):
            panel.plot(places, printed, "D", color=_colour(1), mec=INK, label="published")
        panel.set_xticks(places, [row.name for row in rows], rotation=30, ha="right")
        panel.set_ylabel(_axis_name(column))
        panel.set_ylim(bottom=_floor([*means - np.nan_to_num(spreads), *printed]))
    legend(figure, panels)
    return figure


def _axis_name(column: str) -> str:
    return f"{column_name(column)} (%)" if is_score(column) else column_name(column)


def _floor(values: Sequence[float]) -> float:
    """Where the axis of a bar chart begins: at 0, unless the bars would then hide what sets them apart."""
    known = [value for value in values if not math.isnan(value)]
    lowest, highest = min(known), max(known)
    return 0.0 if highest - lowest > lowest / 2 else max(0.0, lowest - 0.5 * (highest - lowest) - 1)


def heatmap_figure(section: Section) -> "Figure | None":
    """The main measure over two axes: the mean over seeds in each cell, and the published numbers in a second panel."""
    x, y = section.experiment.axes["x"], section.experiment.axes["y"]
    ours = {row.name: mean(row.values(section.main)) for row in section.rows}
    printed = {name: cells.get(section.main, math.nan) for name, cells in section.published.items()}
    grids = {"ours": ours, "published": printed}
    known = {
        title: {name: value for name, value in grid.items() if name in x.values and name in y.values and value == value}
        for title, grid in grids.items()
    }
    if not known["ours"]:
        return None
    names = dict.fromkeys(name for grid in known.values() for name in grid)
    across, down = (sorted({axis.values[name] for name in names}) for axis in (x, y))
    shown = {title: grid for title, grid in known.items() if grid}
    figure, panels = panels_of(len(shown), width=0.75 * len(across) + 1.4, height=0.55 * len(down) + 1.3)
    for panel, (title, grid) in zip(panels, shown.items(), strict=True):
        values = np.full((len(down), len(across)), math.nan)
        for name, value in grid.items():
            values[down.index(y.values[name]), across.index(x.values[name])] = value
        _grid(panel, values, list(map(str, across)), list(map(str, down)), digits=2)
        panel.set_xlabel(x.label)
        panel.set_ylabel(y.label)
        panel.set_title(f"{title}: {_axis_name(section.main)}", fontsize=8)
    return figure


def confusion_figure(section: Section) -> "Figure | None":
    """The confusion matrix of each variant over all seeds, each row in percent of its class."""
    rows = [row for row in section.rows if row.tested]
    if not rows:
        return None
    side = 0.42 * len(section.classes) + 1.2
    figure, panels = panels_of(len(rows), width=side, height=side)
    for panel, row in zip(panels, rows, strict=True):
        classes = list(next(iter(row.tested.values())).classes)
        counts = sum(test.confusions.sum(0) for test in row.tested.values())
        draw_confusion(panel, np.asarray(counts), classes)
        panel.set_title(row.name, fontsize=9)
    return figure


def draw_confusion(panel: "Axes", counts_CC: Array, classes: Sequence[str]) -> None:
    """A confusion matrix, rows the labels, in percent of each."""
    shares = 100 * counts_CC / counts_CC.sum(1, keepdims=True).clip(1)
    _grid(panel, shares, classes, classes, digits=0, limits=(0, 100))
    panel.set_xlabel("prediction")
    panel.set_ylabel("label")


def robustness_figure(section: Section) -> "Figure | None":
    """The main measure of each variant: a panel for each kind of noise, and one without some of the modalities."""
    noisy = list(dict.fromkeys(name for row in section.rows for name in noises(row)))
    missing = {row.name: missing_scores(row, section.main) for row in section.rows}
    sets = list(dict.fromkeys(name for values in missing.values() for name in values))
    if not noisy and not sets:
        return None
    figure, panels = panels_of(len(noisy) + bool(sets))
    for panel, name in zip(panels, noisy, strict=False):
        for index, row in enumerate(section.rows):
            curve = noise_curve(row, name, section.main)
            if curve:
                _line(panel, list(curve), list(curve.values()), index, row.name)
        panel.set_title(f"noise on {name}", fontsize=9)
        panel.set_xlabel("noise (σ)")
        panel.set_ylabel(_axis_name(section.main))
    if sets:
        _missing_panel(panels[-1], section, missing, sets)
    legend(figure, panels)
    return figure


def _missing_panel(
    panel: "Axes", section: Section, missing: dict[str, dict[str, list[float]]], sets: list[str]
) -> None:
    for index, (name, values) in enumerate(missing.items()):
        if values:
            places = np.arange(len(sets)) + 0.12 * (index - (len(missing) - 1) / 2)
            _line(panel, places.tolist(), [values.get(each, []) for each in sets], index, name, linestyle="none")
    panel.set_xticks(range(len(sets)), [each or "nothing" for each in sets], rotation=30, ha="right")
    panel.set_title("missing modalities", fontsize=9)
    panel.set_ylabel(_axis_name(section.main))


def differences_figure(section: Section) -> "Figure | None":
    """How far each variant is from the reference in the main measure, with the interval over dialogues."""
    tests = section.tests.get(section.main)
    if not tests or section.reference is None:
        return None
    figure, (panel,) = panels_of(1, width=5.2, height=0.26 * len(tests) + 0.9)
    for place, tested in enumerate(tests.values()):
        ends = [[tested.difference - tested.low], [tested.high - tested.difference]]
        colour = _colour(0) if tested.p_runs <= 0.05 else _colour(6)
        panel.errorbar(tested.difference, place, xerr=np.abs(ends), fmt="o", color=colour)
    panel.axvline(0, color=INK, linewidth=0.8)
    panel.set_yticks(range(len(tests)), list(tests))
    panel.set_ylim(len(tests) - 0.5, -0.5)
    panel.set_xlabel(f"{column_name(section.main)}: difference from {section.reference.name} (points)")
    return figure


_DRAWINGS: dict[str, Callable[[Section], "Figure | None"]] = {
    "lines": lines_figure,
    "bars": bars_figure,
    "heatmap": heatmap_figure,
    "confusion": confusion_figure,
    "robustness": robustness_figure,
}


def panels_of(count: int, width: float = 3.2, height: float = 2.6, across: int = 3) -> "tuple[Figure, list[Axes]]":
    """A figure with so many panels, up to ``across`` in a row, each of a size in inches."""
    from matplotlib.figure import Figure

    across = min(count, across)
    down = math.ceil(count / across)
    figure = Figure(figsize=(width * across, height * down))
    axes = figure.subplots(down, across, squeeze=False).ravel().tolist()
    for unused in axes[count:]:
        unused.set_visible(False)
    return figure, axes[:count]


def _line(
    panel: "Axes",
    places: Sequence[Any],
    values: Sequence[Sequence[float]],
    index: int,
    name: str,
    linestyle: str = "solid",
) -> None:
    means, spreads = _means_and_sds(values)
    look: dict[str, Any] = {"marker": MARKERS[index % 7], "color": _colour(index), "linestyle": linestyle}
    panel.errorbar(places, means, yerr=spreads, label=name, **look)


def _means_and_sds(values: Sequence[Sequence[float]]) -> tuple[Array, Array]:
    pairs = np.array([statistics.mean_and_sd(numbers) if numbers else (math.nan, math.nan) for numbers in values])
    return pairs[:, 0], pairs[:, 1]


def _grid(
    panel: "Axes",
    values: Array,
    across: Sequence[str],
    down: Sequence[str],
    digits: int,
    limits: tuple[float, float] | None = None,
) -> None:
    """A coloured grid with its numbers; NaN stays empty."""
    low, high = limits or (np.nanmin(values), np.nanmax(values))
    panel.imshow(values, cmap="Blues", vmin=low, vmax=high, aspect="auto")
    for (y, x), value in np.ndenumerate(values):
        if not math.isnan(value):
            ink = "white" if value > low + 0.6 * (high - low) else "black"
            panel.text(x, y, f"{value:.{digits}f}", ha="center", va="center", color=ink, fontsize=7)
    panel.set_xticks(range(len(across)), across)
    panel.set_yticks(range(len(down)), down)
    if max(map(len, across)) > 4:
        panel.tick_params(axis="x", rotation=30)
    panel.grid(False)


def legend(figure: "Figure", panels: "Sequence[Axes]") -> None:
    """One legend below the panels, with what any of them shows."""
    there: dict[str, Any] = {}
    for panel in panels:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            there.setdefault(label, handle)
    if len(there) > 1:
        figure.legend(
            list(there.values()), list(there), loc="outside lower center", ncols=min(len(there), 2 * len(panels))
        )


def series_look(index: int) -> dict[str, Any]:
    """Marker, colour and dashes of a line; they repeat only far beyond what one panel can show."""
    return {
        "marker": MARKERS[index % len(MARKERS)],
        "color": _colour(index),
        "linestyle": ("solid", "dashed", "dotted")[index // len(COLOURS) % 3],
    }


def _colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]
