"""From samples to ratios, and whether they are what they should be."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any

from merc.bench.interleave import Samples
from merc.bench.subjects import Sample

GB = 1e9

PRODUCTS = {"fp32": "fp32", "high": "fp32", "bf16": "bf16", "medium": "bf16"}
"""How the product computes, ``high`` and ``medium`` being choices of ``matmul_precision``, and what the floor does."""


@dataclass(frozen=True)
class Group:
    """Everything measured of one model on one corpus.

    Attributes:
        corpus: its name.
        model: choice of ``model=…``.
        samples: by subject.
        start_up: seconds to the first training step and to the end of the imports, per round.
        resident: bytes of the largest resident set of a run.
        data: bytes of the features.
    """

    corpus: str
    model: str
    samples: Mapping[str, Samples]
    start_up: Sequence[tuple[float, float]]
    resident: int
    data: int


@dataclass(frozen=True)
class Ratio:
    """A measured quantity with its target.

    Attributes:
        corpus: its name.
        model: choice of ``model=…``.
        quantity: what it is.
        value: the median over the rounds.
        low: first quartile.
        high: third quartile.
        unit: ``×``, ``%``, ``GB`` or ``s``.
        target: the largest value that is good; None: there is none.
    """

    corpus: str
    model: str
    quantity: str
    value: float
    low: float
    high: float
    unit: str
    target: float | None

    @property
    def reached(self) -> bool | None:
        """Whether the target is reached; None without one."""
        return None if self.target is None else self.value <= self.target


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, first and third quartile."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, _, high = quantiles(values, n=4, method="inclusive")
    return median(values), low, high


def ratios(group: Group, targets: Mapping[str, Any]) -> Iterator[Ratio]:
    """The ratios of a group; times are compared round by round.

    Args:
        group: the measurements.
        targets: see conf/bench.yaml.
    """

    def ratio(quantity: str, values: Sequence[float], unit: str, target: float | None) -> Ratio:
        return Ratio(group.corpus, group.model, quantity, *spread(values), unit, target)

    def compare(one: str, other: str, part: str) -> list[float]:
        return _by_round(group, one, other, lambda a, b: a[part] / b[part])

    for precision, products in PRODUCTS.items():
        run, floor = f"product {precision}", f"floor {products}"
        if run not in group.samples:  # bfloat16, where the processor has none
            continue
        training, evaluation = targets[f"training_{products}"], targets["evaluation"]
        if precision == "high":  # its floor multiplies exactly: no match
            training = evaluation = None
        yield ratio(f"training {precision} / floor", compare(run, floor, "train"), "×", training)
        yield ratio(f"evaluation {precision} / floor", compare(run, floor, "evaluate"), "×", evaluation)
    yield ratio("training fp32 / own floor", compare("product fp32", "own floor fp32", "train"), "×", None)
    overhead = [100 * (value - 1) for value in compare("product fp32", "loop fp32", "train")]
    yield ratio("framework beyond a bare loop", overhead, "%", 100 * targets["overhead"])
    if "balancing adaptive" in group.samples:
        balancing = [100 * (value - 1) for value in compare("balancing adaptive", "balancing none", "train")]
        yield ratio("adaptive balancing beyond none", balancing, "%", 100 * targets["balancing"])
    resident = targets["resident"].get(group.model.removesuffix("_released"))
    yield ratio("peak memory beyond the data", [(group.resident - group.data) / GB], "GB", resident)
    start_up = [total - imports for total, imports in group.start_up]
    yield ratio("start-up beyond imports", start_up, "s", targets["start_up"])
    if "reference fp32" in group.samples:
        yield ratio("plain reference / training fp32", compare("reference fp32", "product fp32", "train"), "×", None)


def _by_round(group: Group, one: str, other: str, compare: Callable[[Sample, Sample], float]) -> list[float]:
    pairs = zip(group.samples[one].rounds, group.samples[other].rounds, strict=True)
    return [compare(a, b) for a, b in pairs]
