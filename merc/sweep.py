"""``python -m merc.sweep status``: how far the sweeps of experiments are.

python -m merc.sweep status                                     every sweep below runs/
python -m merc.sweep status amb_dsgdn/table4_modalities redifu  of this experiment, and all of redifu/
python -m merc.sweep status run_root=runs/smoke watch=true      of another folder, refreshed until they end
"""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live

from merc.arguments import run
from merc.errors import MercError
from merc.sweeping.overview import read_progress, show_sweeps

_LOG_WIDTH = 120
"""Of the table where neither a terminal nor ``COLUMNS`` gives one."""

_PAUSE = 2.0
"""Seconds between two looks with ``watch=true``."""


def status(names: Sequence[str], run_root: Path, watch: bool = False) -> None:
    """Print the table of the sweeps.

    Args:
        names: experiments, or folders of experiments; none: all.
        run_root: folder of the run folders.
        watch: look again until all jobs have ended.

    Raises:
        MercError: there is no such sweep.
    """
    if watch:
        _watch(names, run_root)
    else:
        _console().print(show_sweeps(read_progress(run_root, names)))


def _console() -> Console:
    """As wide as the terminal or ``COLUMNS`` says; text in brackets is text, no markup."""
    console = Console(markup=False, emoji=False)
    if not (console.is_terminal or os.environ.get("COLUMNS", "").isdigit()):
        console.width = _LOG_WIDTH
    return console


def _watch(names: Sequence[str], run_root: Path) -> None:
    sweeps = read_progress(run_root, names)
    with Live(show_sweeps(sweeps), console=_console(), auto_refresh=False) as live:
        while not all(sweep.ended for sweep in sweeps):
            time.sleep(_PAUSE)
            sweeps = read_progress(run_root, names)
            live.update(show_sweeps(sweeps), refresh=True)


def main() -> None:
    """The command."""
    run(_status, __doc__ or "", "sweep")


def _status(names: list[str], settings: dict[str, Any]) -> None:
    if names[:1] != ["status"]:
        raise MercError("Say what to do: python -m merc.sweep status. --help explains it.")
    status(names[1:], Path(settings["run_root"]), settings["watch"])


if __name__ == "__main__":
    main()
