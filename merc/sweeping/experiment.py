"""What an experiment is: the ``experiment`` node of a configuration, checked."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from merc.errors import MercError, nearest

KINDS = ("table", "lines", "bars", "heatmap", "confusion", "corpora", "costs", "robustness")
"""How an experiment can be reported."""


@dataclass(frozen=True)
class Experiment:
    """A table or figure: the runs behind it and how they are reported.

    Args:
        name: path below experiments/, without the ending.
        title: of the table or figure.
        kind: one of :data:`KINDS`.
        source: where it is published.
        seeds: every variant is trained with each.
        variants: name → overrides of the command line, in the order of the rows.
        reference: the variant that the others are tested against; None: no tests.
        columns: measures to report.
        axes: x, y, … → ``label`` and ``values`` (variant → value on that axis).
        published: corpus → row → column → percent as printed.
        remarks: faults of the source that the reader must know.
        smoke: ``seeds`` and the names of the ``variants`` that ``trainer=smoke`` reduces the experiment to.
    """

    name: str
    title: str
    kind: str
    source: str = ""
    seeds: Sequence[int] = (1,)
    variants: Mapping[str, Sequence[str]] = field(default_factory=dict)
    reference: str | None = None
    columns: Sequence[str] = ()
    axes: Mapping[str, Any] = field(default_factory=dict)
    published: Mapping[str, Any] = field(default_factory=dict)
    remarks: Sequence[Any] = ()
    smoke: Mapping[str, Any] = field(default_factory=dict)

    def only(self, names: Sequence[str]) -> "Experiment":
        """The experiment with these variants alone.

        Raises:
            MercError: one of them is none of its own.
        """
        _refuse_unknown(f"Experiment {self.name}: variants names", names, self.variants)
        kept = {name: overrides for name, overrides in self.variants.items() if name in names}
        return replace(self, variants=kept)

    def reduced(self) -> "Experiment":
        """The experiment as ``trainer=smoke`` runs it."""
        names = self.smoke.get("variants", list(self.variants))
        return replace(self.only(names), seeds=self.smoke.get("seeds", self.seeds))


def read_experiment(node: Mapping[str, Any], choice: str) -> Experiment:
    """The experiment that a plain ``experiment`` node describes.

    Args:
        node: plain dicts, lists and scalars.
        choice: what was chosen with ``experiment=…``.

    Raises:
        MercError: a key is unknown, absent or of another kind, or names a variant that there is none.
    """
    where = f"Experiment {choice}"
    _refuse_unknown(f"{where}: there is no key", node, _CHECKS)
    for key in ("name", "title", "kind"):
        if not node.get(key):
            raise MercError(f"{where}: give it a {key}.")
    for key, value in node.items():
        check, needed = _CHECKS[key]
        if not check(value):
            raise MercError(f"{where}: {key} must be {needed}, not {value!r}.")
    if node["name"] != choice:
        raise MercError(f"{where}: its name is '{node['name']}'. Name it like its file: {choice}.")
    experiment = Experiment(**node)
    for key, names in _named_variants(experiment):
        _refuse_unknown(f"{where}: {key} names no variant", names, experiment.variants)
    return experiment


def _named_variants(experiment: Experiment) -> list[tuple[str, Iterable[str]]]:
    """Each place that names variants, with the names."""
    axes = [(f"axes.{name}", axis.get("values", {})) for name, axis in experiment.axes.items()]
    reference = [] if experiment.reference is None else [experiment.reference]
    return [("reference", reference), ("smoke.variants", experiment.smoke.get("variants", [])), *axes]


def _refuse_unknown(message: str, names: Iterable[str], known: Iterable[str]) -> None:
    for name in names:
        if name not in (valid := list(known)):
            raise MercError(f"{message} '{name}'.{nearest(str(name), valid)}")


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, str) for entry in value)


def _seeds(value: Any) -> bool:
    return isinstance(value, list) and value != [] and all(type(entry) is int and entry >= 0 for entry in value)


def _axes(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(axis, dict) and isinstance(axis.get("values", {}), dict) for axis in value.values()
    )


def _published(value: Any) -> bool:
    rows = [row for corpus in _values(value) for row in _values(corpus)]
    cells = [cell for row in rows for cell in _values(row)]
    return all(isinstance(cell, int | float | None) and not isinstance(cell, bool) for cell in cells)


def _values(node: Any) -> list[Any]:
    """The values of a mapping; of anything else, what makes it no mapping of numbers."""
    return list(node.values()) if isinstance(node, dict) else ["no mapping"]


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
    "seeds": (_seeds, "a list of whole numbers"),
    "reference": (lambda value: value is None or _text(value), "the name of a variant, or null"),
    "columns": (_texts, "a list of measures"),
    "axes": (_axes, "a mapping of axes, each with a label and values: variant → value"),
    "variants": (
        lambda value: isinstance(value, dict) and all(map(_text, value)) and all(map(_texts, value.values())),
        "a mapping: name (a text, maybe in quotes) → list of overrides",
    ),
    "published": (_published, "a mapping: corpus → row → column → number"),
    "remarks": (lambda value: isinstance(value, list), "a list"),
    "smoke": (_smoke, "a mapping with seeds and variants alone"),
}
