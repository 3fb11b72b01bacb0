"""``python -m merc.sweep status``: how far the sweeps of experiments are."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.live import Live

from merc.errors import MercError, nearest
from merc.reporting.tables import show
from merc.sweeping.overview import read_sweeps, show_sweeps

USAGE = """How far sweeps are: jobs done, running, failed and waiting, the best so far, the time that is left.

  python -m merc.sweep status                                    every sweep below runs/
  python -m merc.sweep status amb_dsgdn/table4_modalities        those of one experiment
  python -m merc.sweep status run_root=runs/smoke watch=true     of another folder, refreshed until they end
"""
_PAUSE = 2.0
"""Seconds between two looks with ``watch=true``."""


@dataclass(frozen=True)
class Request:
    """What to show.

    Args:
        names: of experiments; none: all.
        run_root: folder of the run folders.
        watch: look again until all jobs have ended.
    """

    names: Sequence[str]
    run_root: Path = Path("runs")
    watch: bool = False


def parse(arguments: Sequence[str]) -> Request:
    """The request behind the arguments of ``status``.

    Raises:
        MercError: a key or a value is unknown.
    """
    settings = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    for key in settings:
        if key not in ("run_root", "watch"):
            raise MercError(f"status takes no '{key}', but run_root and watch.{nearest(key, ('run_root', 'watch'))}")
    watch = settings.get("watch", "false")
    if watch not in ("true", "false"):
        raise MercError(f"watch={watch} is not true or false.")
    names = [argument for argument in arguments if "=" not in argument]
    return Request(names, Path(settings.get("run_root", "runs")), watch == "true")


def status(request: Request) -> None:
    """Print the table of the sweeps.

    Raises:
        MercError: there is no such sweep.
    """
    if request.watch:
        _watch(request)
    else:
        show(show_sweeps(read_sweeps(request.run_root, request.names)))


def _watch(request: Request) -> None:
    sweeps = read_sweeps(request.run_root, request.names)
    with Live(show_sweeps(sweeps), console=Console(), auto_refresh=False) as live:
        while not all(sweep.ended for sweep in sweeps):
            time.sleep(_PAUSE)
            sweeps = read_sweeps(request.run_root, request.names)
            live.update(show_sweeps(sweeps), refresh=True)


def main() -> None:
    """The command."""
    if sys.argv[1:] in (["--help"], ["-h"], ["help"]):
        print(USAGE, end="")
        return
    try:
        if sys.argv[1:2] != ["status"]:
            raise MercError("Say what to do: python -m merc.sweep status. --help explains it.")
        status(parse(sys.argv[2:]))
    except MercError as error:
        sys.exit(f"Error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
