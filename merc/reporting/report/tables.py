"""The tables of a section, before they become Markdown, LaTeX, CSV or HTML."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from merc.reporting import statistics
from merc.reporting.report.runs import EPOCHS
from merc.reporting.report.sections import Row, Section, Tested, is_score, mean
from merc.reporting.tables import CHOSEN_BY

NAMES = {
    "accuracy": "accuracy",
    "weighted_precision": "weighted precision",
    "weighted_f1": "weighted F1",
    "macro_f1": "macro F1",
    "parameters": "parameters (M)",
    "flops_per_utterance": "MFLOP per utterance",
    "train_seconds_per_epoch": "training (s per epoch)",
    "train_batch_seconds": "training (ms per batch)",
    "train_utterances_per_second": "training (utterances/s)",
    "inference_seconds_per_utterance": "inference (ms per utterance)",
    "inference_utterances_per_second": "inference (utterances/s)",
}
UNITS = {
    "parameters": 1e-6,
    "flops_per_utterance": 1e-6,
    "train_batch_seconds": 1e3,
    "inference_seconds_per_utterance": 1e3,
}
"""Factor of what is shown in another unit than it is stored in; published numbers are in the unit shown."""


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
    """Every table of a section that has something to show, the paper's own form first."""
    if section.experiment.kind == "corpora":
        return [corpora_table(section)]
    tables = [scores_table(section)]
    if section.experiment.kind == "robustness":
        tables += robustness_tables(section)
    if section.summary and section.has_optimism():
        tables.append(epochs_table(section))
    if section.summary and any(row.intervals for row in section.rows):
        tables.append(tests_table(section))
    return tables


def scores_table(section: Section) -> Table:
    """Mean ± sd over seeds of every column, with the published number beside it."""
    printed = {column for cells in section.published.values() for column in cells}
    columns, headers = section.columns, ["variant", "seeds"]
    for column in columns:
        headers += [column_name(column)] + (["published"] if column in printed else [])
    rows = []
    for row in section.rows:
        cells = [Cell(_row_name(section, row)), _seeds(row)]
        for column in columns:
            cells.append(_mean_cell(row.values(column), column, _mark(section, row, column)))
            cells += [_published(section, row.variant, column)] if column in printed else []
        rows.append(cells)
    for name in section.only_published:
        cells = [Cell(f"{name} (published only)"), Cell("")]
        for column in columns:
            cells += [Cell("")] + ([_published(section, name, column)] if column in printed else [])
        rows.append(cells)
    theirs = set(range(len(section.rows), len(rows)))
    title = f"Test scores in percent, {_chosen(section)}" if any(map(is_score, columns)) else "Costs"
    return Table("scores", title, headers, rows, theirs, [*_score_notes(section), *state_notes(section)])


def column_name(column: str) -> str:
    """A column as a reader knows it: ``f1/joy`` → ``joy F1``."""
    if "/" not in column:
        return NAMES.get(column, column.replace("_", " "))
    measure, label = column.split("/", 1)
    return f"{label} {'F1' if measure == 'f1' else measure}"


def _row_name(section: Section, row: Row) -> str:
    return f"{row.name} (reference)" if row is section.reference else row.name


def _seeds(row: Row) -> Cell:
    done, planned = len(row.finished), len(row.runs)
    return Cell(str(done) if done == planned else f"{done} of {planned}", done)


def _mean_cell(values: Sequence[float], column: str, mark: str = "") -> Cell:
    if not values:
        return Cell("")
    factor = UNITS.get(column, 1.0)
    average, sd = (factor * number for number in statistics.mean_and_sd(values))
    # Costs like the parameters are the same for every seed.
    spread = "" if math.isnan(sd) or (sd == 0 and not is_score(column)) else f" ± {_number(sd, column)}"
    return Cell(f"{_number(average, column)}{spread}{mark}", average)


def _number(value: float, column: str) -> str:
    if is_score(column):
        return f"{value:.2f}"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _published(section: Section, row: str, column: str) -> Cell:
    value = section.published.get(row, {}).get(column)
    return Cell("") if value is None else Cell(f"{value:g}" if not is_score(column) else f"{value:.2f}", float(value))


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
    if any(len(row.finished) > 1 for row in section.rows):
        yield "Mean ± standard deviation over seeds."
    if section.tests:
        assert section.reference is not None
        yield (
            f"* These runs differ from those of {section.reference.name} by more than the choice of test dialogues "
            "explains; ** so do the variants, by more than the choice of seeds explains too (Holm-adjusted p ≤ 0.05)."
        )
    if section.untested:
        yield f"Not tested, for want of the same seeds or test utterances: {', '.join(section.untested)}."
    if any(is_score(column) for cells in section.published.values() for column in cells):
        yield "Published numbers are as printed; their epoch was chosen on the test split (compare test_best)."


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
    headers = ["variant"]
    for column in section.summary:
        headers += [f"{column_name(column)}: {epoch}" for epoch in EPOCHS] + ["optimism"]
    rows = []
    for row in section.rows:
        cells = [Cell(_row_name(section, row))]
        for column in section.summary:
            cells += [_mean_cell(row.values(column, epoch), column) for epoch in EPOCHS]
            cells.append(signed_cell(_optimism(row, column)))
        rows.append(cells)
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
    """The main measure under growing noise, one row for each variant and set of disturbed modalities."""
    levels = sorted({float(entry["noise"]) for row in section.rows for entry in robustness_of(row)})
    if not levels:
        return []
    rows = []
    for row in section.rows:
        for disturbed in disturbances(row):
            cells = [Cell(_row_name(section, row)), Cell(disturbed)]
            for level in levels:
                cells.append(_mean_cell(noisy_values(row, disturbed, level, section.main), section.main))
            rows.append(cells)
    headers = ["variant", "disturbed", *[f"{level:g} σ" for level in levels]]
    title = f"{column_name(section.main)} in percent under noise"
    note = "Gaussian noise on the test features, in standard deviations of each feature."
    return [Table("robustness", title[0].upper() + title[1:], headers, rows, notes=[note])]


def robustness_of(row: Row) -> list[dict[str, Any]]:
    """The robustness rows of the test split of every finished seed."""
    runs = row.finished.values()
    return [entry for run in runs for entry in run.robustness if entry.get("split", "test") == "test"]


def disturbance(entry: dict[str, Any]) -> str:
    """What was done to the features, in words: the noisy modalities, and those left out."""
    noisy, dropped = _joined(entry["modalities"]), _joined(entry.get("drop") or [])
    return f"{noisy}, without {dropped}" if dropped else noisy


def disturbances(row: Row) -> list[str]:
    """The disturbances that a row was evaluated under, in order."""
    return list(dict.fromkeys(map(disturbance, robustness_of(row))))


def noisy_values(row: Row, disturbed: str, level: float, measure: str) -> list[float]:
    """The score in percent of every seed under one disturbance."""
    entries = [e for e in robustness_of(row) if disturbance(e) == disturbed and float(e["noise"]) == level]
    return [100 * float(entry["scores"][measure]) for entry in entries if measure in entry["scores"]]


def _joined(names: Any) -> str:
    return "+".join(map(str, names)) if isinstance(names, list) else str(names)


def corpora_table(section: Section) -> Table:
    """Dialogues, utterances and utterances per class of each split, with the published number beside each."""
    splits = next((run.corpus for row in section.rows for run in row.finished.values() if run.corpus), {})
    counts = {split: {**numbers, **numbers["classes"]} for split, numbers in splits.items()}
    columns = ["dialogues", "utterances", *section.classes]
    printed = {column for cells in section.published.values() for column in cells}
    headers = ["split"]
    for column in columns:
        headers += [column] + (["published"] if column in printed else [])
    rows = []
    for split in [*counts, *(name for name in section.published if name not in counts)]:
        cells = [Cell(split if split in counts else f"{split} (published only)")]
        for column in columns:
            cells.append(_count(counts.get(split, {}).get(column)))
            cells += [_count(section.published.get(split, {}).get(column))] if column in printed else []
        rows.append(cells)
    theirs = set(range(len(counts), len(rows)))
    return Table("corpora", "Dialogues, utterances and classes", headers, rows, theirs, state_notes(section))


def _count(number: float | None) -> Cell:
    return Cell("") if number is None else Cell(f"{number:,.0f}".replace(",", "\u202f"), float(number))
