"""The tables of a section, before they become Markdown, LaTeX, CSV or HTML."""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from merc.reporting import statistics
from merc.reporting.report.columns import COSTS, COUNTS, column_name, is_score
from merc.reporting.report.runs import EPOCHS
from merc.reporting.report.sections import Row, Section, Tested, mean
from merc.reporting.tables import CHOSEN_BY

BESIDE = 4
"""Up to so many columns have the published number beside them."""


@dataclass(frozen=True)
class Cell:
    """What stands in a table.

    Args:
        text: as shown; empty: nothing to say.
        value: what to sort by; None: the text.
    """

    text: str
    value: float | None = None


@dataclass(frozen=True)
class Table:
    """A table with a name in each row.

    Args:
        name: of its file.
        title: what it shows.
        columns: headers, the first being that of the names.
        rows: cells, one for each column.
        theirs: indices of the rows that are published only.
        notes: lines below.
    """

    name: str
    title: str
    columns: list[str]
    rows: list[list[Cell]]
    theirs: set[int] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)


def section_tables(section: Section) -> list[Table]:
    """Every table of a section that has something to show, the paper's own form first with what is missing below."""
    first, *others = _tables(section)
    return [replace(first, notes=[*first.notes, *state_notes(section)]), *others]


def _tables(section: Section) -> Iterator[Table]:
    if section.experiment.kind == "corpora":
        yield corpora_table(section)
        return
    if section.experiment.kind == "robustness":
        yield from robustness_tables(section)
    yield scores_table(section)
    if section.printed_besides:
        yield published_table(section)
    if section.summary and any(row.values(section.main) for row in section.rows):
        yield epochs_table(section)
    if section.summary and any(row.intervals for row in section.rows):
        yield tests_table(section)


def scores_table(section: Section) -> Table:
    """Mean ± sd over seeds of every column, the published numbers beside them, or below where that is wide."""
    columns = section.columns
    printed = {column for cells in section.published.values() for column in cells}
    beside = printed if len(columns) <= BESIDE else set()
    headers = ["variant", "seeds"]
    for column in columns:
        headers += [column_name(column)] + (["published"] if column in beside else [])
    rows, theirs = [], set()
    for row in section.rows:
        cells = [Cell(_row_name(section, row)), _seeds(row)]
        for column in columns:
            cells.append(_ours(section, row, column))
            cells += [_published(section, row.name, column)] if column in beside else []
        rows.append(cells)
        if not beside and row.name in section.published:
            theirs.add(len(rows))
            rows.append(_published_row(section, row.name, f"{row.name} (published)", beside))
    for name in section.only_published:
        theirs.add(len(rows))
        rows.append(_published_row(section, name, f"{name} (published only)", beside))
    title = f"Test scores in percent, {_chosen(section)}" if any(map(is_score, columns)) else "Costs"
    return Table("scores", title, headers, rows, theirs, list(_score_notes(section)))


def _published_row(section: Section, name: str, label: str, beside: Collection[str]) -> list[Cell]:
    cells = [Cell(label), Cell("")]
    for column in section.columns:
        cells += [Cell("")] if column in beside else []
        cells.append(_published(section, name, column))
    return cells


def _ours(section: Section, row: Row, column: str) -> Cell:
    """Mean ± sd, with the mark of a test, or for costs with the ratio to the reference."""
    values, reference = row.values(column), section.reference
    if is_score(column) or not values or reference is None or reference is row or not reference.values(column):
        return _mean_cell(values, column, _mark(section, row, column))
    return _mean_cell(values, column, f" (×{mean(values) / mean(reference.values(column)):.2f})")


def _row_name(section: Section, row: Row) -> str:
    return f"{row.name} (reference)" if row is section.reference else row.name


def _seeds(row: Row) -> Cell:
    done, planned = len(row.finished), len(row.runs)
    return Cell(str(done) if done == planned else f"{done} of {planned}", done)


def _mean_cell(values: Sequence[float], column: str, mark: str = "") -> Cell:
    if not values:
        return Cell("")
    average, sd = statistics.mean_and_sd(values)
    # Costs like the parameters are the same for every seed.
    spread = "" if math.isnan(sd) or (sd == 0 and not is_score(column)) else f" ± {_number(sd, column)}"
    return Cell(f"{_number(average, column)}{spread}{mark}", average)


def _number(value: float, column: str) -> str:
    text = f"{value:.2f}" if is_score(column) else f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return text.replace("-", "−")


def _published(section: Section, row: str, column: str) -> Cell:
    value = section.published.get(row, {}).get(column)
    if value is None:
        return Cell("")
    text = f"{value:.12g}" if column in COSTS else f"{value:.2f}"
    return Cell(text.replace("-", "−"), value)


def _mark(section: Section, row: Row, column: str) -> str:
    tested = section.tests.get(column, {}).get(row.name)
    if tested is None:
        return ""
    if tested.p_variants <= 0.05:
        return " **"
    return " *" if tested.p_runs <= 0.05 else ""


def _chosen(section: Section) -> str:
    headlines = {row.headline for row in section.rows if row.finished}
    if headlines == {"last"}:
        return "last epoch"
    return "epoch chosen by validation" + (", else the last" if "last" in headlines else "")


def _score_notes(section: Section) -> Iterator[str]:
    if mixed := [row.name for row in section.rows if row.mixes_features]:
        yield f"The seeds of {', '.join(mixed)} were trained on different feature stores: their mean is of no variant."
    if any(len(row.finished) > 1 for row in section.rows):
        yield "Mean ± standard deviation over seeds."
    if section.reference is not None and any(
        _mark(section, row, column) for row in section.rows for column in section.tests
    ):
        yield (
            f"* These runs differ from those of {section.reference.name} by more than the choice of test dialogues "
            "explains; ** so do the variants, by more than the choice of seeds explains too (Holm-adjusted p ≤ 0.05)."
        )
    if section.summary and section.untested:
        yield f"Not tested, for want of the same seeds or test utterances: {', '.join(section.untested)}."
    if any(is_score(column) for cells in section.published.values() for column in cells):
        yield "Published numbers are as printed; their epoch was chosen on the test split (compare test_best)."
    if section.published and section.sweep.data != section.sweep.corpus:
        yield f"Ours are on {section.sweep.data}, the published numbers on {section.sweep.corpus}: they do not compare."


def published_table(section: Section) -> Table:
    """What the paper prints besides the columns of the experiment: a row for each measure, with its classes."""
    besides = section.printed_besides
    measures = dict.fromkeys(column.split("/")[0] for column in besides)
    labels = [label for label in section.classes if any(column.endswith(f"/{label}") for column in besides)]
    rows = []
    for name in section.published:
        for measure in measures:
            columns = [measure, *(f"{measure}/{label}" for label in labels)]
            shown = [_published(section, name, column if column in besides else "") for column in columns]
            if any(cell.text for cell in shown):
                rows.append([Cell(name), Cell(column_name(measure)), *shown])
    headers = ["method", "measure", "whole split", *labels]
    title = "What the paper prints besides"
    return Table("published", title, headers, rows, set(range(len(rows))))


def state_notes(section: Section) -> list[str]:
    """What is missing: a line for each kind of state, and one for each failed run."""
    notes = []
    by_state: dict[str, list[str]] = {}
    for row, seed, run in section.states():
        job = f"{row.name} seed {seed}"
        if run.state == "failed":
            notes.append(f"Failed: {job}: {run.status.get('error')}")
        elif run.state == "running":
            progress = f" (epoch {run.status['epoch']} of {run.status['epochs']})" if "epoch" in run.status else ""
            by_state.setdefault("Running or interrupted", []).append(job + progress)
        else:
            by_state.setdefault("Not begun", []).append(job)
    return notes + [f"{state}: {', '.join(jobs)}." for state, jobs in by_state.items()]


def epochs_table(section: Section) -> Table:
    """The three epochs side by side; how much better the best test epoch looks is the optimism of choosing by it."""
    headers = ["variant", "measure", *EPOCHS, "optimism"]
    rows = [
        [
            Cell(_row_name(section, row)),
            Cell(column_name(column)),
            *(_mean_cell(row.values(column, epoch), column) for epoch in EPOCHS),
            signed_cell(_optimism(row, column)),
        ]
        for column in section.summary
        for row in section.rows
    ]
    chosen = "; ".join(f"{epoch}: chosen by {how}" for epoch, how in CHOSEN_BY.items())
    note = f"{chosen}. Optimism: test_best minus selected (minus last where nothing is selected), in points."
    return Table("epochs", "What the choice of the epoch is worth", headers, rows, notes=[note])


def _optimism(row: Row, column: str) -> float:
    return mean(row.values(column, "test_best")) - mean(row.values(column))


def signed_cell(value: float) -> Cell:
    """A difference in points, with its sign; empty for NaN."""
    return Cell("") if math.isnan(value) else Cell(_with_sign(value), value)


def _with_sign(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def tests_table(section: Section) -> Table:
    """Intervals of the scores, and the tests against the reference."""
    headers = ["variant", "measure", "score", "interval"]
    if section.tests:
        headers += ["difference", "interval of the difference", "p (these runs)", "p (the variants)", "effect (g)"]
    rows = []
    for column in section.summary:
        for row in section.rows:
            if column not in row.intervals:
                continue
            cells = [
                Cell(_row_name(section, row)),
                Cell(column_name(column)),
                _mean_cell(row.values(column), column),
                range_cell(*row.intervals[column]),
            ]
            rows.append(cells + (_test_cells(section.tests[column].get(row.name)) if section.tests else []))
    return Table("tests", "Uncertainty and significance", headers, rows, notes=list(_test_notes(section)))


def _test_notes(section: Section) -> Iterator[str]:
    sampling = section.rows[0].sampling
    yield (
        f"Intervals: {100 * sampling.level:g} %, bootstrap of {sampling.resamples} resamples of the test dialogues, "
        "of the mean over seeds."
    )
    if section.tests:
        assert section.reference is not None
        yield (
            f"Differences from {section.reference.name} in points, on the seeds of both. p: paired approximate "
            f"randomisation of whole dialogues, {sampling.resamples} rounds, two-sided, Holm-adjusted over the "
            "variants of a measure; for these runs, and with the chance of the seeds for the variants. Effect: "
            "Hedges' g over seeds."
        )


def _test_cells(tested: Tested | None) -> list[Cell]:
    if tested is None:
        return [Cell("")] * 5
    return [
        signed_cell(tested.difference),
        range_cell(tested.low, tested.high, signed=True),
        p_cell(tested.p_runs),
        p_cell(tested.p_variants),
        signed_cell(tested.effect),
    ]


def range_cell(low: float, high: float, signed: bool = False) -> Cell:
    """An interval, sorted by its lower end; empty for NaN."""
    if math.isnan(low):
        return Cell("")
    return Cell(f"{_with_sign(low)} … {_with_sign(high)}" if signed else f"{low:.2f} … {high:.2f}", low)


def p_cell(p: float) -> Cell:
    """A p-value; empty for NaN."""
    if math.isnan(p):
        return Cell("")
    return Cell(f"{p:.3f}" if p >= 0.001 else "< 0.001", p)


def robustness_tables(section: Section) -> list[Table]:
    """The main measure under growing noise, and without some of the modalities, as far as either was evaluated."""
    return [table for table in (_noise_table(section), _missing_table(section)) if table.rows]


def _noise_table(section: Section) -> Table:
    levels = sorted({entry["noise"] for row in section.rows for entry in robustness_of(row)})
    rows = []
    for row in section.rows:
        for noisy in noises(row):
            cells = [Cell(_row_name(section, row)), Cell(noisy)]
            values = noise_curve(row, noisy, section.main)
            rows.append(cells + [_mean_cell(values.get(level, []), section.main) for level in levels])
    headers = ["variant", "noise on", *[f"{level:g} σ" for level in levels]]
    note = "Gaussian noise on the test features, in standard deviations of each feature dimension of the training part."
    return Table("noise", f"Under noise: {column_name(section.main)} in percent", headers, rows, notes=[note])


def _missing_table(section: Section) -> Table:
    sets = list(dict.fromkeys(name for row in section.rows for name in missing_scores(row, section.main)))
    rows = []
    for row in section.rows:
        values = missing_scores(row, section.main)
        cells = [_mean_cell(values.get(name, []), section.main) for name in sets]
        rows += [[Cell(_row_name(section, row)), *cells]] if values else []
    headers = ["variant", *(f"without {name}" if name else "nothing missing" for name in sets)]
    title = f"Without some modalities: {column_name(section.main)} in percent"
    return Table("missing", title, headers, rows, notes=["Missing features are the mean of the training part."])


def robustness_of(row: Row) -> list[dict[str, Any]]:
    """The robustness rows of the test split of every finished seed."""
    runs = row.finished.values()
    return [entry for run in runs for entry in run.robustness if entry["split"] == "test"]


def noises(row: Row) -> list[str]:
    """What got noise, in words, of everything that did at any level."""
    return list(dict.fromkeys(_noise_name(entry) for entry in robustness_of(row) if entry["noise"]))


def noise_curve(row: Row, noisy: str, measure: str) -> dict[float, list[float]]:
    """Level of noise → the score in percent of every seed, with the noise on what :func:`noises` names.

    All curves of the same missing modalities start at the one row without noise; older files have it once for each.
    """
    missing = [entry["drop"] for entry in robustness_of(row) if entry["noise"] and _noise_name(entry) == noisy]
    curve: dict[float, dict[int, float]] = {}
    for seed, run in row.finished.items():
        for entry in run.robustness:
            on_it = _noise_name(entry) == noisy if entry["noise"] else entry["drop"] in missing
            if entry["split"] == "test" and on_it:
                curve.setdefault(entry["noise"], {})[seed] = 100 * entry["scores"][measure]
    return {level: list(curve[level].values()) for level in sorted(curve)}


def missing_scores(row: Row, measure: str) -> dict[str, list[float]]:
    """Missing modalities, in words, → the score in percent of every seed; empty if nothing was missing."""
    scores: dict[str, dict[int, float]] = {}
    for seed, run in row.finished.items():
        for entry in run.robustness:
            if entry["split"] == "test" and not entry["noise"]:
                scores.setdefault(_joined(entry["drop"]), {})[seed] = 100 * entry["scores"][measure]
    return {name: list(by_seed.values()) for name, by_seed in scores.items()} if any(scores) else {}


def _noise_name(entry: Mapping[str, Any]) -> str:
    without = f", without {_joined(entry['drop'])}" if entry["drop"] else ""
    return _joined(entry["modalities"]) + without


def _joined(names: Sequence[str]) -> str:
    return "+".join(names)


def corpora_table(section: Section) -> Table:
    """Dialogues, utterances and utterances per class of each split, the published numbers below ours."""
    splits = next((run.corpus for row in section.rows for run in row.finished.values() if run.corpus), {})
    counts = {
        split: {**numbers, **numbers["classes"], "classes": len(numbers["classes"])}
        for split, numbers in splits.items()
    }
    counted = [name for name in COUNTS if any(name in each for each in (*counts.values(), *section.published.values()))]
    columns = [*counted, *section.classes]
    rows, theirs = [], set()
    for split in dict.fromkeys([*counts, *section.published]):
        if split in counts:
            rows.append([Cell(split), *(_count(counts[split].get(column)) for column in columns)])
        if split in section.published:
            theirs.add(len(rows))
            printed = section.published[split]
            rows.append([Cell(f"{split} (published)"), *(_count(printed.get(column)) for column in columns)])
    title = "Dialogues, utterances and utterances of each class"
    return Table("corpora", title, ["split", *columns], rows, theirs)


def _count(number: float | None) -> Cell:
    return Cell("") if number is None else Cell(f"{number:,.0f}".replace(",", "\u202f"), float(number))
