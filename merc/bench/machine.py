"""What else the machine did, and how much memory a process took."""

import ctypes
import os
import resource
import time
from contextlib import suppress
from pathlib import Path
from typing import Self

IDLE_FIELDS = (3, 4)  # idle and iowait, of the first line of /proc/stat
GUEST_FIELDS = 2  # the last two fields are contained in the first two


class Idleness:
    """How busy other processes keep the machine's cores while a block runs; child processes that ended count as own.

    Attributes:
        others: share of all cores' time that other processes had, 0 … 1; None where the system does not tell.
    """

    others: float | None = None

    def __enter__(self) -> Self:
        self._started = (time.perf_counter(), _own_seconds(), _busy_seconds())
        return self

    def __exit__(self, *exception: object) -> None:
        started, own_before, busy_before = self._started
        busy = _busy_seconds()
        if busy is None or busy_before is None:
            return
        own = _own_seconds() - own_before
        available = (time.perf_counter() - started) * (os.cpu_count() or 1)
        self.others = min(1.0, max(0.0, (busy - busy_before - own) / available))  # ticks are coarse


def _own_seconds() -> float:
    times = os.times()
    return time.process_time() + times.children_user + times.children_system


def _busy_seconds() -> float | None:
    """Seconds that all cores together have been busy since the machine started."""
    try:
        fields = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0].split()[1:]
    except OSError:
        return None
    ticks = [int(field) for i, field in enumerate(fields[:-GUEST_FIELDS]) if i not in IDLE_FIELDS]
    return sum(ticks) / os.sysconf("SC_CLK_TCK")


def peak_resident() -> int:
    """Bytes of this process' largest resident set so far, or since :func:`forget_peak`."""
    # Unlike getrusage, this forgets what the process was before it became this program.
    peak = _status("VmHWM")
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss if peak is None else peak


def forget_peak() -> None:
    """Free what is unused and let the peak begin anew, where the system allows it; elsewhere the peak stays."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc
    if trim is not None:
        trim(0)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def resident() -> int:
    """Bytes of this process' resident set; its peak where the system tells no more."""
    return _status("VmRSS") or peak_resident()


def own_memory() -> int | None:
    """Bytes of the resident set that belong to this process alone, not to files; None: the system does not tell."""
    return _status("RssAnon")


def _status(field: str) -> int | None:
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:")), None)
