"""How far sweeps are: read from manifests and run folders, whoever runs the jobs."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Literal

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from merc.reporting.run_folder import RunFolder
from merc.sweeping.manifest import Job, Manifest, read_sweeps


class State(StrEnum):
    """Of a job."""

    DONE = "done"
    RUNNING = "running"
    FAILED = "failed"
    WAITING = "waiting"


@dataclass(frozen=True)
class Progress:
    """How far a job is.

    Args:
        job: of the manifest.
        state: of the job.
        share: of its epochs that are done, 0 to 1.
        seconds: that the run has taken, up to its last epoch while it goes on.
        error: why it failed.
        score: test weighted F1 at the epoch that counts, 0 to 1; None before the end.
    """

    job: Job
    state: State
    share: float
    seconds: float
    error: str = ""
    score: float | None = None


@dataclass(frozen=True)
class SweepProgress:
    """How far a sweep is.

    Args:
        manifest: of the sweep.
        jobs: in the order of the manifest.
    """

    manifest: Manifest
    jobs: Sequence[Progress]

    def having(self, state: State) -> list[Progress]:
        """The jobs in a state."""
        return [job for job in self.jobs if job.state is state]

    @property
    def ended(self) -> bool:
        """Whether every job is done or failed."""
        return not (self.having(State.RUNNING) or self.having(State.WAITING))

    @property
    def best(self) -> Progress | None:
        """The finished job with the highest score."""
        return max(self.having(State.DONE), key=lambda job: job.score or 0.0, default=None)

    @property
    def seconds_left(self) -> float | None:
        """Until running and waiting jobs are done at the pace of the finished ones; None before the first is.

        As many as run now are taken to run at a time, or one.
        """
        done, running = self.having(State.DONE), self.having(State.RUNNING)
        if not done:
            return None
        # Variants that share their runs do the work once.
        ahead = {job.job.run: 1 - job.share for job in [*running, *self.having(State.WAITING)]}
        mean = sum(job.seconds for job in done) / len(done)
        return mean * sum(ahead.values()) / max(len(running), 1)


def read_progress(run_root: Path, names: Sequence[str] = ()) -> list[SweepProgress]:
    """How far sweeps are.

    Args:
        run_root: the folder of the run folders.
        names: experiments, or folders of experiments; none: all.

    Raises:
        MercError: there is no sweep, none of such an experiment, or a manifest cannot be read.
    """
    sweeps = read_sweeps(run_root, names)
    return [SweepProgress(sweep, [_progress(job, run_root) for job in sweep.jobs]) for sweep in sweeps]


def _progress(job: Job, run_root: Path) -> Progress:
    folder = RunFolder(run_root / job.run)
    status = folder.read_status()
    state = _state(folder, status.get("state"))
    share = status.get("epoch", 0) / status.get("epochs", 1)
    error = status.get("error") or ""
    score = _score(folder) if state is State.DONE else None
    return Progress(job, state, share, status.get("seconds", 0.0), error if state is State.FAILED else "", score)


def _state(folder: RunFolder, written: str | None) -> State:
    """What the status says; a run that no process holds any more waits for the sweep to be started again."""
    if written == "finished":
        return State.DONE
    if written is not None and folder.locked:
        return State.RUNNING
    return State.FAILED if written == "failed" else State.WAITING


def _score(folder: RunFolder) -> float:
    metrics = json.loads(folder.metrics.read_text(encoding="utf-8"))
    return float(metrics.get("selected", metrics["last"])["weighted_f1"])


@dataclass(frozen=True)
class Overview:
    """A row per sweep, or lines where the table would not fit; below, the jobs that run and those that failed.

    Args:
        sweeps: in the order in which they are shown.
    """

    sweeps: Sequence[SweepProgress]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """As a table if names and counts fit in one line beside the headings of the rest."""
        needed = Measurement.get(console, options.update(width=_UNLIMITED), _table(self.sweeps, folding=False)).minimum
        if needed + _TO_SPARE <= options.max_width:
            yield _table(self.sweeps)
        else:
            yield from (_paragraph(sweep) for sweep in self.sweeps)
        yield from _lines(self.sweeps)


_UNLIMITED = 10_000
_TO_SPARE = 4
"""Width that the columns that fold get at least, beside that of their headings."""


def show_sweeps(sweeps: Sequence[SweepProgress]) -> RenderableType:
    """How far sweeps are, for a console of any width: nothing is cut off."""
    return Overview(sweeps)


def _table(sweeps: Sequence[SweepProgress], folding: bool = True) -> Table:
    """A row per sweep; names and counts stay in one line.

    Args:
        sweeps: in the order of the rows.
        folding: fill the columns that may take several lines, too.
    """
    table = Table()
    for column in HEADINGS:
        table.add_column(column, justify=_side(column), no_wrap=column not in FOLDING, overflow="fold")
    for sweep in sweeps:
        row = dict(zip(HEADINGS, _row(sweep), strict=True))
        table.add_row(*(row if folding else row | dict.fromkeys(FOLDING, "")).values())
    return table


FOLDING = SETTINGS, BEST, LEFT = "settings", "best weighted F1", "time left"
HEADINGS = ("experiment", "data", SETTINGS, *map(str, State), BEST, LEFT)


def _side(column: str) -> Literal["left", "right"]:
    return "left" if column in HEADINGS[:3] else "right"


def _paragraph(sweep: SweepProgress) -> Text:
    """What the table says of a sweep, for narrow terminals."""
    row = dict(zip(HEADINGS, _row(sweep), strict=True))
    counts = ", ".join(f"{row[state]} {state}" for state in State)
    found = f"{BEST} {row[BEST]}, {LEFT} {row[LEFT]}"
    identity = " ".join(filter(None, (row[column] for column in HEADINGS[:3])))
    return Text(f"{identity}\n  {counts}\n  {found}", overflow="fold")


def _row(sweep: SweepProgress) -> list[str]:
    counts = Counter(job.state for job in sweep.jobs)
    best = sweep.best
    score = f"{100 * (best.score or 0):.2f} ({best.job.variant}, seed {best.job.seed})" if best else "–"
    identity = [sweep.manifest.experiment, sweep.manifest.data, " ".join(sweep.manifest.overrides)]
    return [*identity, *[str(counts[state]) for state in State], score, _time_left(sweep)]


def _time_left(sweep: SweepProgress) -> str:
    if sweep.ended or sweep.seconds_left is None:
        return "–"
    return str(timedelta(seconds=round(sweep.seconds_left)))


def _lines(sweeps: Sequence[SweepProgress]) -> Iterable[Text]:
    for sweep in sweeps:
        for job in [*sweep.having(State.RUNNING), *sweep.having(State.FAILED)]:
            detail = job.error or f"{100 * job.share:.0f} %"
            where = f"{sweep.manifest.experiment}, {job.job.variant}, seed {job.job.seed} ({job.job.run})"
            yield Text(f"{job.state}: {where}: {detail}", overflow="fold")
