"""The progress bar of sources."""

import sys
from collections.abc import Iterable
from typing import TypeVar

from rich.console import Console
from rich.progress import track

T = TypeVar("T")


def progress(items: Iterable[T], title: str, total: int) -> Iterable[T]:
    """The same items, with a progress bar on the terminal when there are many."""
    hidden = total < 1000 or not sys.stderr.isatty()
    return track(items, title, total=total, console=Console(stderr=True), transient=True, disable=hidden)
