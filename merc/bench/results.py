"""Writing and printing what was measured."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Group as Several
from rich.table import Table

from merc.bench.ratios import Group, Ratio, ratios, spread
from merc.bench.subjects import EVALUATION, Sample
from merc.files import write_json, write_text
from merc.kernels.library import loaded
from merc.reporting.tables import show

VERDICTS = {True: "yes", False: "no", None: ""}


@dataclass(frozen=True)
class Grid:
    """A table, for the terminal and for Markdown.

    Attributes:
        title: above it.
        header: of the columns.
        rows: the cells.
        words: how many of the first columns hold words; the others hold numbers.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: int = 2

    def rich(self) -> Table:
        """For the terminal."""
        table = Table(title=self.title, title_justify="left")
        for i, column in enumerate(self.header):
            table.add_column(column, justify="left" if i < self.words else "right")
        for row in self.rows:
            table.add_row(*row)
        return table

    def markdown(self) -> str:
        """For a file."""
        rule = ["---" if i < self.words else "---:" for i in range(len(self.header))]
        lines = [f"| {' | '.join(cells)} |" for cells in (self.header, rule, *self.rows)]
        return f"## {self.title}\n\n" + "\n".join(lines) + "\n"


def publish(groups: Sequence[Group], settings: Mapping[str, Any], environment: Mapping[str, Any]) -> list[Ratio]:
    """Write performance.json and performance.md into ``settings["out"]`` and print the tables.

    Args:
        groups: the measurements.
        settings: of the benchmark, see conf/bench.yaml.
        environment: of the machine.

    Raises:
        MercError: the folder cannot be written.
    """
    out = Path(settings["out"])
    all_ratios = [ratio for group in groups for ratio in ratios(group, settings["targets"])]
    grids = [_ratios(all_ratios), *(grid for group in groups for grid in _details(group))]
    write_json(
        out / "performance.json",
        {
            "environment": dict(environment),
            "settings": dict(settings),
            "ratios": [{**asdict(ratio), "reached": ratio.reached} for ratio in all_ratios],
            "measurements": [asdict(group) for group in groups],
        },
    )
    remarks = [machine_line(environment), *_remarks(groups, settings)]
    write_text(out / "performance.md", "\n".join(["# Performance\n", *remarks, "", *(g.markdown() for g in grids)]))
    show(Several(*(grid.rich() for grid in grids), *remarks, f"Written: {out}/performance.json, {out}/performance.md"))
    return all_ratios


def machine_line(environment: Mapping[str, Any]) -> str:
    """Hardware, versions and commit."""
    hardware, versions, git = environment["hardware"], environment["versions"], environment["git"]
    commit = f", commit {git['commit'][:12]}{' with changes' if git['dirty'] else ''}" if git else ""
    return (
        f"{hardware['cpu']}, {hardware['cores']} cores, {hardware['threads']} threads, {hardware['memory_gib']} GiB; "
        f"Python {versions['python']}, torch {versions['torch']}, lightning {versions['lightning']}{commit}."
    )


def _remarks(groups: Sequence[Group], settings: Mapping[str, Any]) -> Iterator[str]:
    samples = [s for group in groups for s in group.samples.values()]
    yield (
        f"Medians and quartiles over {settings['rounds']} rounds, all subjects of a model in turns. Other processes "
        f"had more than {settings['others_at_most']:.0%} of the cores during {sum(s.rejected for s in samples)} "
        f"samples, which were thrown away, and during {sum(s.busy for s in samples)} more, which had to be kept."
    )
    if any(share is None for s in samples for share in s.others):
        yield "This system does not tell what other processes do: no sample could be thrown away for that."
    if any("product bf16" not in group.samples for group in groups):
        yield (
            "This processor cannot multiply bfloat16, so that there is nothing to gain from it or from less exact "
            "products: only single precision was measured."
        )
    if not loaded():
        yield "merc's own operators were not there (python -m merc.kernels says why): PyTorch's computed everything."
    yield (
        f"The plain reference was timed on {settings['reference_batches']} batches of each split and scaled to the "
        "padded rows of the whole split; it goes without balancing."
    )
    if settings["size"] != 1:
        yield f"The data had {settings['size']:g} times the published number of dialogues."
    if settings["overrides"]:
        yield f"Overrides of all runs: {settings['overrides']}."


def _ratios(measured: Sequence[Ratio]) -> Grid:
    rows = [
        [
            f"{r.model} on {r.corpus}",
            r.quantity,
            f"{r.value:.2f} {r.unit}",
            f"{r.low:.2f}–{r.high:.2f}",
            "" if r.target is None else f"≤ {r.target:g} {r.unit}",
            VERDICTS[r.reached],
        ]
        for r in measured
    ]
    return Grid("Ratios", ("model", "quantity", "median", "quartiles", "target", "reached"), rows)


def _details(group: Group) -> Iterator[Grid]:
    name = f"{group.model} on {group.corpus}"
    timed = [
        [subject, part, *_spread([sample[part] for sample in samples.rounds]), str(samples.rejected), str(samples.busy)]
        for subject, samples in group.samples.items()
        if subject != "stages fp32"
        for part in samples.rounds[0]
    ]
    yield Grid(f"Seconds per epoch: {name}", ("subject", "part", "median", "quartiles", "rejected", "busy"), timed)
    rounds = group.samples["stages fp32"].rounds
    training = {stage: spread([sample.get(stage, 0.0) for sample in rounds]) for stage in _training_stages(rounds)}
    total = sum(value for value, _, _ in training.values())
    rows = [
        [stage, f"{value:.3f}", f"{low:.3f}–{high:.3f}", f"{value / total:.0%}"]
        for stage, (value, low, high) in training.items()
    ]
    yield Grid(f"Where training time goes: {name}", ("stage", "seconds", "quartiles", "share"), rows, words=1)


def _training_stages(rounds: Sequence[Sample]) -> list[str]:
    stages = dict.fromkeys(stage for sample in rounds for stage in sample)
    return [stage for stage in stages if stage != "write" and not stage.startswith(EVALUATION)]


def _spread(values: Sequence[float]) -> tuple[str, str]:
    value, low, high = spread(values)
    return f"{value:.3f}", f"{low:.3f}–{high:.3f}"
