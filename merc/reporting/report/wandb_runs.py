"""The aggregate of every variant at Weights & Biases, and the tables and figures of every experiment."""

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from merc.errors import MercError
from merc.reporting import statistics
from merc.reporting.report.columns import is_score
from merc.reporting.report.runs import EPOCHS
from merc.reporting.report.sections import Row, Section
from merc.reporting.report.tables import section_tables
from merc.reporting.wandb_account import run_group, tag, wandb_mode


def log_sections(
    sections: Sequence[Section], out: Path, project: str, entity: str | None = None, mode: str = "auto"
) -> None:
    """Log one run for every variant with results, and one for every section with its tables and figures.

    The runs are the same each time, so that the next report brings them up to date.

    Args:
        sections: what to log.
        out: folder of the report, which holds the figures; offline runs are written to it as well.
        project: project of the runs.
        entity: team; None: the account's own.
        mode: online, offline, disabled, or auto.

    Raises:
        MercError: the service refuses a run or cannot be reached.
    """
    place = {"project": project, "entity": entity, "mode": wandb_mode(mode), "dir": out}
    for section in sections:
        for row in section.rows:
            if row.finished:
                with _run(section, row.name, "aggregate", place) as run:
                    _log_variant(run, section, row)
        with _run(section, "report", "report", place) as run:
            _log_report(run, section, out / section.key)


@contextmanager
def _run(section: Section, name: str, job_type: str, place: dict[str, Any]) -> Iterator[Any]:
    import wandb

    sweep = section.sweep
    try:
        run = wandb.init(
            id=hashlib.sha256(f"{section.key} {job_type} {name}".encode()).hexdigest()[:12],
            name=f"{section.key} {name}",
            group=run_group(sweep, name),
            job_type=job_type,
            tags=[tag(sweep.experiment)],
            resume="allow",
            config={
                "experiment": sweep.experiment,
                "variant": name,
                "data": sweep.data,
                "corpus": {"name": sweep.corpus},
                "overrides": list(sweep.overrides),
            },
            settings=wandb.Settings(silent=True, console="off"),
            **place,
        )
    except wandb.errors.Error as error:
        raise MercError(f"Weights & Biases refuses the run: {error} Set wandb_mode=offline to log locally.") from error
    with run:
        yield run


def _log_variant(run: Any, section: Section, row: Row) -> None:
    import wandb

    run.summary.update(variant_summary(section, row))
    columns = [column for column in section.columns if is_score(column)]
    seeds: list[list[Any]] = [
        [seed, *(each.score(row.headline, column) for column in columns)] for seed, each in row.finished.items()
    ]
    names: list[str | int] = ["seed", *columns]
    run.log({"seeds": wandb.Table(columns=names, data=seeds)})


def variant_summary(section: Section, row: Row) -> dict[str, float]:
    """Means and standard deviations over seeds as fractions, named as training names its own, and the tests."""
    summary: dict[str, float] = {}
    for column in (column for column in section.columns if is_score(column)):
        for epoch in EPOCHS:
            values = [value / 100 for value in row.values(column, epoch)]
            if values:
                mean, sd = statistics.mean_and_sd(values)
                summary |= {f"{epoch}/test/{column}": mean, f"{epoch}/test/{column}/sd": sd}
        tested = section.tests.get(column, {}).get(row.name)
        if tested is not None:
            summary[f"difference/{column}"] = tested.difference / 100
            summary |= {f"p_runs/{column}": tested.p_runs, f"p_variants/{column}": tested.p_variants}
    return {name: value for name, value in summary.items() if not math.isnan(value)}


def _log_report(run: Any, section: Section, folder: Path) -> None:
    import wandb

    for table in section_tables(section):
        data = [[cell.text for cell in row] for row in table.rows]
        run.log({f"tables/{table.name}": wandb.Table(columns=_distinct(table.columns), data=data)})
    for path in sorted(folder.glob("*.png")):
        run.log({f"figures/{path.stem}": wandb.Image(str(path))})


def _distinct(columns: Sequence[str]) -> list[str | int]:
    """``published`` stands behind several columns; here it takes the name of the one before it."""
    return [
        f"{columns[index - 1]}, {name}" if name in columns[:index] or columns.count(name) > 1 else name
        for index, name in enumerate(columns)
    ]
