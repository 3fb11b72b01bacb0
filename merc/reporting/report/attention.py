"""What two runs attend to in one dialogue: heatmaps, their differences, and the numbers behind them."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from merc.errors import MercError
from merc.reporting.statistics import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from merc.reporting.attention import DialogueAttention
    from merc.reporting.report.compare import Pair

SHOWN = 8
"""Most heads of a layer that are drawn; attention.csv holds all."""
TICKS = 16
"""Most utterances that are named on an axis."""
MEAN = "mean of the heads"


def attention_pair(pair: "Pair", dialogue: str, plugins: Sequence[str] = ()) -> "AttentionPair":
    """The attention of two runs in a dialogue.

    Args:
        pair: the runs.
        dialogue: its id.
        plugins: packages of the user's from which parts of the models or the data may come.

    Raises:
        MercError: a run has no such dialogue or no checkpoint, the two dialogues of that name are not the same, or
            neither model has attention.
    """
    from merc.reporting.attention import read_attention  # torch, which no other report needs

    first, second = (read_attention(run.folder, dialogue, plugins) for run in (pair.first, pair.second))
    if not first.same_dialogue(second):
        raise MercError(
            f"The dialogue '{dialogue}' of the first run is not that of the second: other utterances, speakers or "
            "labels. Compare runs on the same data; generated conversations follow the seed unless data.seed is set."
        )
    if not first.layers and not second.layers:
        raise MercError("Neither model has attention in its denoisers or graphs: there is nothing to show.")
    return AttentionPair(pair.names, dialogue, first, second)


@dataclass(frozen=True)
class AttentionPair:
    """The attention of two runs in the same dialogue.

    Args:
        names: of the runs.
        dialogue: id of the dialogue.
        first: attention of the first run.
        second: of the second.
    """

    names: tuple[str, str]
    dialogue: str
    first: "DialogueAttention"
    second: "DialogueAttention"

    @property
    def title(self) -> str:
        return f"Attention in {self.dialogue}"

    @property
    def origin(self) -> str:
        return (
            "Rows are the utterances that receive, columns those that they receive from; in brackets, the number of "
            "the speaker. The models are as in evaluation. The difference is the first run minus the second. "
            "attention.csv holds every weight."
        )

    @cached_property
    def layers(self) -> dict[str, str]:
        """Layer → the name of its figure, for the layers of either run."""
        names = dict.fromkeys([*self.first.layers, *self.second.layers])
        return {layer: f"attention-{layer.replace(' ', '-')}" for layer in names}

    @property
    def captions(self) -> dict[str, str]:
        """Name of a figure → its caption."""
        return {name: f"{layer[0].upper()}{layer[1:]}{self._omitted(layer)}." for layer, name in self.layers.items()}

    def _omitted(self, layer: str) -> str:
        heads = max(_heads(run.layers.get(layer, {})) for run in (self.first, self.second))
        return "" if heads <= SHOWN else f", the first {SHOWN} of {heads} heads and their mean over all"

    def maps(self, layer: str) -> dict[str, tuple[Array | None, Array | None]]:
        """Head → its (L, L) attention in both runs, None where there is no such head; first the mean of several."""
        both = [_with_mean(run.layers.get(layer, {})) for run in (self.first, self.second)]
        names = [name for name in dict.fromkeys([*both[0], *both[1]]) if name not in (MEAN, "output")]
        ordered = [MEAN, *names[:SHOWN], "output"]
        return {name: (both[0].get(name), both[1].get(name)) for name in ordered if name in both[0] or name in both[1]}

    def figures(self) -> "dict[str, Figure]":
        """Name → a figure for each layer.

        Raises:
            MercError: matplotlib is not installed.
        """
        from merc.reporting.report.figures import styled

        with styled():
            return {name: self._figure(layer) for layer, name in self.layers.items()}

    def _figure(self, layer: str) -> "Figure":
        """A row of panels for each head, a column for each run that has the layer, and one for their difference."""
        from merc.reporting.report.figures import panels_of

        maps = self.maps(layer)
        runs = [(name, {head: both[index] for head, both in maps.items()}) for index, name in enumerate(self.names)]
        apart = {head: None if one is None or two is None else one - two for head, (one, two) in maps.items()}
        shown = [(name, column) for name, column in runs if _is_there(column)]
        reach = max(_reach(column) for _, column in shown)
        signed = any(values is not None and values.min() < 0 for _, column in shown for values in column.values())
        looks = [(name, column, reach, signed) for name, column in shown]
        if _is_there(apart):
            looks.append(("difference", apart, _reach(apart), True))
        # Beside the panels, room for the names of the utterances.
        figure, panels = panels_of(len(looks) * len(maps), 2.3 + 1.2 / len(looks), height=2.3, across=len(looks))
        for index, (name, column, limit, both_signs) in enumerate(looks):
            below = panels[index :: len(looks)]
            for panel, values in zip(below, column.values(), strict=True):
                _draw(panel, values, limit, both_signs)
            below[0].set_title(name.replace("/", "\n"), fontsize=7)
        for panel, head in zip(panels[:: len(looks)], maps, strict=True):
            panel.set_ylabel(head)
        self._name_utterances(panels, len(looks))
        _scales(figure, panels, len(looks), len(shown))
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # the layout of so many panels takes a second: once, not for every format
        return figure

    def _name_utterances(self, panels: "Sequence[Axes]", columns: int) -> None:
        """Names left of the panels of the first column and below those of the last row."""
        speakers = self.first.speakers
        names = [f"{name} [{speaker + 1}]" for name, speaker in zip(self.first.utterances, speakers, strict=True)]
        places = range(0, len(names), -(-len(names) // TICKS))
        shown = [names[place] for place in places]
        for panel in panels:
            panel.set(xticks=[], yticks=[])
        for panel in panels[::columns]:
            panel.set_yticks(places, shown, fontsize=5)
        for panel in panels[-columns:]:
            panel.set_xticks(places, shown, fontsize=5, rotation=90)

    def csv(self) -> str:
        """Every weight that is not 0: run, layer, head, receiving utterance, source utterance, weight."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["run", "layer", "head", "receiver", "source", "weight"])
        for run, attention in zip(self.names, (self.first, self.second), strict=True):
            for layer, heads in attention.layers.items():
                for head, weights in heads.items():
                    for receiver, source in np.argwhere(weights).tolist():
                        there = (attention.utterances[receiver], attention.utterances[source])
                        writer.writerow([run, layer, head, *there, f"{weights[receiver, source]:.6g}"])
        return text.getvalue()


def _heads(maps: Mapping[str, Array]) -> int:
    return len(maps.keys() - {"output"})


def _with_mean(maps: Mapping[str, Array]) -> dict[str, Array]:
    heads = [values for name, values in maps.items() if name != "output"]
    return {**maps, MEAN: np.mean(heads, axis=0)} if len(heads) > 1 else dict(maps)


def _is_there(column: Mapping[str, Array | None]) -> bool:
    return any(values is not None for values in column.values())


def _reach(column: Mapping[str, Array | None]) -> float:
    return max(float(np.abs(values).max()) for values in column.values() if values is not None)


def _draw(panel: "Axes", values: Array | None, reach: float, signed: bool) -> None:
    """A map in colours that are the same for all panels of a column; an empty panel where there is none."""
    panel.grid(False)
    if values is None:
        panel.set_axis_off()
        return
    low, colours = (-reach, "RdBu_r") if signed else (0.0, "Blues")
    panel.imshow(values, cmap=colours, vmin=low, vmax=reach, interpolation="nearest")


def _scales(figure: "Figure", panels: "Sequence[Axes]", columns: int, runs: int) -> None:
    """A colour bar for all runs and one for the difference, as far as there is one."""
    fraction = 0.1 * columns / len(panels)
    for group in (range(runs), range(runs, columns)):
        below = [panel for index, panel in enumerate(panels) if index % columns in group]
        if below:
            image = next(panel.images[0] for panel in below if panel.images)
            figure.colorbar(image, ax=below, location="bottom", aspect=15 * len(group), fraction=fraction, pad=0.01)
