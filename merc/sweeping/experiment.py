"""What an experiment is: the ``experiment`` node of its file, checked; read without Hydra."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from yaml import YAMLError

from merc.errors import MercError, check_choice, check_names, nearest
from merc.reporting.report.columns import COUNTS, check_columns
from merc.reporting.tables import SUMMARY

PACKAGE = "merc.conf.experiment"
KINDS = ("table", "lines", "bars", "heatmap", "confusion", "corpora", "costs", "robustness")
"""How an experiment can be reported."""
REQUIRED = ("name", "title", "source", "kind", "columns", "variants")


@dataclass(frozen=True)
class Axis:
    """One axis of a figure.

    Args:
        label: what stands beside it.
        values: variant → its place there, a number or a name.
    """

    label: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Experiment:
    """A table or figure: the runs behind it and how they are reported.

    Args:
        name: path below experiments/, without the ending.
        title: of the table or figure.
        source: paper, and number of the table or figure there.
        kind: one of :data:`KINDS`.
        columns: measures and costs, in order; ``per_class_f1`` stands for the F1 of every class; for
            ``corpora`` what is counted.
        variants: name → overrides of the command line, in the order of the rows.
        seeds: every variant is trained with each.
        reference: the variant that the others are tested against; None: no tests.
        axes: ``x``, ``y`` and ``series`` of a figure, as far as it has them.
        published: corpus → row → column → as printed: scores in percent, costs in the units of costs.json.
        remarks: faults of the source that the reader must know.
        smoke: ``seeds`` and the names of the ``variants`` that ``trainer=smoke`` reduces the experiment to.
    """

    name: str
    title: str
    source: str
    kind: str
    columns: Sequence[str]
    variants: Mapping[str, Sequence[str]]
    seeds: Sequence[int] = (1,)
    reference: str | None = None
    axes: Mapping[str, Axis] = field(default_factory=dict)
    published: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)
    remarks: Sequence[str] = ()
    smoke: Mapping[str, Any] = field(default_factory=dict)

    def only(self, names: Sequence[str]) -> "Experiment":
        """The experiment with these variants alone.

        Raises:
            MercError: one of them is none of its own.
        """
        check_names(f"Experiment {self.name}: variants", names, self.variants)
        kept = {name: overrides for name, overrides in self.variants.items() if name in names}
        return replace(self, variants=kept)

    def reduced(self) -> "Experiment":
        """The experiment as ``trainer=smoke`` runs it."""
        names = self.smoke.get("variants", list(self.variants))
        return replace(self.only(names), seeds=self.smoke.get("seeds", self.seeds))


def read_experiment(name: str, config_dir: Path | None = None) -> Experiment:
    """The experiment in a file.

    Args:
        name: of the experiment.
        config_dir: a folder with an ``experiment/`` of the user's own, which comes first.

    Raises:
        MercError: there is no such file, or what it says is no experiment.
    """
    for folder in _folders(config_dir):
        file = folder.joinpath(f"{name}.yaml")
        if file.is_file():
            return parse_experiment(_node(file), name)
    raise MercError(
        f"There is no experiment '{name}'.{nearest(name, experiment_names(config_dir))} "
        "If it is one of your own, say where: config_dir=FOLDER, which holds experiment/."
    )


def experiment_names(config_dir: Path | None = None) -> list[str]:
    """Every experiment that has a file, sorted."""
    return sorted({name for folder in _folders(config_dir) for name in _names(folder)})


def _folders(config_dir: Path | None) -> Iterator[Traversable]:
    if config_dir is not None:
        yield config_dir / "experiment"
    yield files(PACKAGE)


def _names(folder: Traversable, prefix: str = "") -> Iterator[str]:
    for entry in folder.iterdir() if folder.is_dir() else ():
        if entry.is_dir():
            yield from _names(entry, f"{prefix}{entry.name}/")
        elif entry.name.endswith(".yaml"):
            yield prefix + entry.name.removesuffix(".yaml")


def _node(file: Traversable) -> dict[str, Any]:
    try:
        content = OmegaConf.to_container(OmegaConf.create(file.read_text(encoding="utf-8")))
    except YAMLError as error:
        raise MercError(f"{file} cannot be read: {' '.join(str(error).split())}") from error
    node = content.get("experiment") if isinstance(content, dict) else None
    if not isinstance(node, dict):
        raise MercError(f"{file} has no node 'experiment'. docs/experiments.md shows what belongs there.")
    return node


def parse_experiment(node: Mapping[str, Any], choice: str) -> Experiment:
    """The experiment that a plain ``experiment`` node describes.

    Args:
        node: plain dicts, lists and scalars.
        choice: what was chosen with ``experiment=…``.

    Raises:
        MercError: a key is unknown, absent or of another kind, names a variant or column that there is none, or leaves
            out a variant that a figure needs.
    """
    where = f"Experiment {choice}"
    check_names(where, map(str, node), _CHECKS)
    for key in REQUIRED:
        if not node.get(key):
            raise MercError(f"{where}: it says nothing under '{key}'. docs/experiments.md shows what belongs there.")
    for key, value in node.items():
        check, needed = _CHECKS[key]
        if not check(value):
            raise MercError(f"{where}: {key} must be {needed}, not {value!r}.")
    if node["name"] != choice:
        raise MercError(f"{where}: its name is '{node['name']}'. Name it like its file: {choice}.")
    axes = {name: Axis(**axis) for name, axis in node.get("axes", {}).items()}
    experiment = Experiment(**{**node, "axes": axes})
    for key, names in _named_variants(experiment):
        check_names(f"{where}: {key}", names, experiment.variants)
    _check_columns(f"{where}: columns", experiment)
    _check_axes(where, experiment)
    return experiment


def _named_variants(experiment: Experiment) -> list[tuple[str, Iterable[str]]]:
    """Each place that names variants, with the names."""
    axes = [(f"axes.{name}", axis.values) for name, axis in experiment.axes.items()]
    reference = [] if experiment.reference is None else [experiment.reference]
    return [("reference", reference), ("smoke.variants", experiment.smoke.get("variants", [])), *axes]


def _check_columns(key: str, experiment: Experiment) -> None:
    if experiment.kind == "corpora":
        check_names(key, experiment.columns, COUNTS)
        return
    check_columns(key, experiment.columns)
    # Disturbed features have scores alone, and one of them is shown.
    if experiment.kind == "robustness" and "weighted_f1" not in experiment.columns:
        check_choice(f"{key}[0]", experiment.columns[0], SUMMARY)


def _check_axes(where: str, experiment: Experiment) -> None:
    axes = experiment.axes
    if experiment.kind == "heatmap" and not {"x", "y"} <= axes.keys():
        raise MercError(f"{where}: a heatmap needs axes.x and axes.y.")
    if "series" not in axes:
        return
    placed = axes["x"].values if "x" in axes else experiment.variants
    if missing := [name for name in placed if name not in axes["series"].values]:
        raise MercError(
            f"{where}: axes.series leaves out {', '.join(missing)}. Say under its values which line each is on."
        )


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_text, value))


def _mapping(value: Any, check: Callable[[Any], bool]) -> bool:
    """Whether it is a mapping from texts to what passes the check."""
    return isinstance(value, dict) and all(map(_text, value)) and all(map(check, value.values()))


def _seeds(value: Any) -> bool:
    return isinstance(value, list) and value != [] and all(type(entry) is int and entry >= 0 for entry in value)


def _axis(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"label", "values"} and _places(value["values"])


def _places(value: Any) -> bool:
    """Whether it puts variants into an order: at numbers, or at names."""
    return _mapping(value, _number) or _mapping(value, _text)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _rows(value: Any) -> bool:
    return _mapping(value, lambda columns: _mapping(columns, _number))


def _smoke(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() <= {"seeds", "variants"}
        and _seeds(value.get("seeds", [1]))
        and _texts(value.get("variants", []))
    )


_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "name": (_text, "a text"),
    "title": (_text, "a text"),
    "source": (_text, "a text"),
    "kind": (lambda value: value in KINDS, f"one of {', '.join(KINDS)}"),
    "columns": (_texts, "a list of measures"),
    "variants": (
        lambda value: _mapping(value, _texts),
        "a mapping: name (a text, maybe in quotes) → list of overrides",
    ),
    "seeds": (_seeds, "a list of whole numbers"),
    "reference": (lambda value: value is None or _text(value), "the name of a variant, or null"),
    "axes": (
        lambda value: _mapping(value, _axis) and value.keys() <= {"x", "y", "series"},
        "a mapping of x, y and series, each with a label and values: variant → place, all numbers or all texts",
    ),
    "published": (lambda value: _mapping(value, _rows), "a mapping: corpus → row → column → number"),
    "remarks": (_texts, "a list of texts"),
    "smoke": (_smoke, "a mapping with seeds and variants alone"),
}
