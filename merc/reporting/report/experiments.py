"""What an experiment wants to show, and what its paper printed: the ``experiment`` node of its file."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import yaml

from merc.errors import MercError, nearest

PACKAGE = "merc.conf.experiment"
KINDS = ("table", "lines", "bars", "heatmap", "confusion", "corpora", "costs", "robustness")


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
    """A table or figure of a paper.

    Args:
        name: as on the command line, such as ``amb_dsgdn/table4_modalities``.
        title: headline of its section.
        source: paper and number of the table or figure.
        kind: how it is reported, one of :data:`KINDS`.
        columns: measures and costs, in order; ``per_class_f1`` stands for the F1 of every class.
        reference: the variant that the others are tested against; None: no tests.
        axes: ``x``, ``y`` and ``series`` of a figure, as far as it has them.
        published: corpus → row → column → the number as printed, scores in percent.
        remarks: faults of the paper.
    """

    name: str
    title: str
    source: str
    kind: str
    columns: tuple[str, ...]
    reference: str | None
    axes: Mapping[str, Axis]
    published: Mapping[str, Mapping[str, Mapping[str, float]]]
    remarks: tuple[str, ...]


def read_experiment(name: str, config_dir: Path | None = None) -> Experiment:
    """The specification of an experiment.

    Args:
        name: of the experiment.
        config_dir: a folder with an ``experiment/`` of the user's own, which comes first.

    Raises:
        MercError: there is no such experiment, or its file is no experiment.
    """
    for folder in _folders(config_dir):
        file = folder.joinpath(f"{name}.yaml")
        if file.is_file():
            return _parse(name, file)
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


def _parse(name: str, file: Traversable) -> Experiment:
    try:
        node = yaml.safe_load(file.read_text(encoding="utf-8"))["experiment"]
        kind = node["kind"]
        if kind not in KINDS:
            raise MercError(f"{file}: kind={kind} is none of {', '.join(KINDS)}.{nearest(str(kind), KINDS)}")
        return Experiment(
            name=name,
            title=node["title"],
            source=node["source"],
            kind=kind,
            columns=tuple(node["columns"]),
            reference=node.get("reference"),
            axes={key: Axis(axis["label"], axis["values"]) for key, axis in (node.get("axes") or {}).items()},
            published={
                corpus: {str(row): _flat(cells) for row, cells in rows.items()}
                for corpus, rows in (node.get("published") or {}).items()
            },
            remarks=tuple(map(_remark, node.get("remarks") or ())),
        )
    except (KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        reason = f"it has no key {error}" if isinstance(error, KeyError) else error
        raise MercError(f"{file} is no experiment: {reason}. docs/reports.md shows what belongs there.") from error


def _flat(cells: Mapping[str, Any]) -> dict[str, float]:
    """``per_class_f1: {joy: 60}`` → ``f1/joy: 60``; the columns of whole splits stay."""
    flat: dict[str, float] = {}
    for column, value in cells.items():
        if isinstance(value, Mapping):
            flat |= {f"{column.removeprefix('per_class_')}/{label}": number for label, number in value.items()}
        else:
            flat[column] = value
    return flat


def _remark(entry: str | Mapping[str, Any]) -> str:
    return entry if isinstance(entry, str) else "; ".join(f"{key}: {text}" for key, text in entry.items())
