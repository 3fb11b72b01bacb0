"""What a source lacked: rows and values that are missing, and feature rows that no utterance uses."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from rich.console import Group, RenderableType
from rich.table import Table

EXAMPLES = 10
"""At most so many ids or columns are named."""


@dataclass(frozen=True)
class Gap:
    """What one modality lacks in one split.

    Attributes:
        modality: name of the modality.
        split: one of ``merc.data.conversation.SPLITS``.
        utterances: utterances of the split.
        absent_rows: utterances without any features.
        absent_examples: ids of the first of them.
        rows_with_nan: utterances that have features, some of them NaN or infinite.
        nan_values: NaN or infinite values in those rows.
        nan_columns: feature name → such values in that column; empty where the source names no columns.
        nan_examples: ids of the first utterances with such values; empty in stores of earlier versions.
    """

    modality: str
    split: str
    utterances: int
    absent_rows: int
    absent_examples: tuple[str, ...]
    rows_with_nan: int
    nan_values: int
    nan_columns: Mapping[str, int]
    nan_examples: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether nothing is missing."""
        return self.absent_rows == 0 and self.nan_values == 0


@dataclass(frozen=True)
class Surplus:
    """Rows of a feature file that belong to no utterance of any split.

    Attributes:
        modality: name of the modality; ``all`` where a file holds every modality.
        file: the feature file.
        rows: how many.
        examples: ids of the first of them.
    """

    modality: str
    file: str
    rows: int
    examples: tuple[str, ...]


@dataclass(frozen=True)
class Completeness:
    """The gaps of every modality and split, how they were filled, and the rows left over.

    Attributes:
        policy: ``error``, ``mean`` or ``zero``.
        gaps: one entry per modality and split, the complete ones too.
        surplus: one entry per feature file with rows left over.
    """

    policy: str
    gaps: tuple[Gap, ...]
    surplus: tuple[Surplus, ...]

    @property
    def complete(self) -> bool:
        """Whether nothing was missing."""
        return all(gap.complete for gap in self.gaps)

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`to_dict`."""
        gaps = (Gap(**{name: _frozen(entry) for name, entry in gap.items()}) for gap in value["gaps"])
        surplus = (Surplus(**{**left, "examples": tuple(left["examples"])}) for left in value["surplus"])
        return cls(value["policy"], tuple(gaps), tuple(surplus))

    def render(self) -> RenderableType:
        """What is missing and what is left over, for the terminal."""
        details = [line for gap in self.gaps for line in _details(gap)]
        unused = [
            f"Not used: {left.rows:,} rows of {left.file} that belong to no utterance of any split: "
            f"{shortened(left.examples, left.rows)}"
            for left in self.surplus
        ]
        return Group("No features are missing." if self.complete else self._table(), *details, *unused)

    def _table(self) -> Table:
        missing = Table("modality", "split", title=f"Missing features (missing={self.policy})", title_justify="left")
        for heading in ("utterances", "no row", "rows with NaN", "NaN values"):
            missing.add_column(heading, justify="right")
        for gap in self.gaps:
            counts = (gap.utterances, gap.absent_rows, gap.rows_with_nan, gap.nan_values)
            missing.add_row(gap.modality, gap.split, *(f"{count:,}" for count in counts))
        return missing


def _frozen(entry: Any) -> Any:
    return tuple(entry) if isinstance(entry, list) else entry


def _details(gap: Gap) -> Iterator[str]:
    if gap.absent_rows:
        yield f"No row, {gap.modality}, {gap.split}: {shortened(gap.absent_examples, gap.absent_rows)}"
    if gap.nan_examples:
        yield f"NaN, {gap.modality}, {gap.split}: {shortened(gap.nan_examples, gap.rows_with_nan)}"
    if gap.nan_columns:
        columns = [f"{name} {count:,}" for name, count in gap.nan_columns.items()]
        yield f"NaN, {gap.modality}, {gap.split}, by column: {shortened(columns[:EXAMPLES], len(columns))}"


def shortened(examples: Sequence[str], total: int) -> str:
    """The first names of so many, and whether there are more."""
    return ", ".join(examples) + (" …" if total > len(examples) else "")
