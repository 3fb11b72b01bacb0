"""What libraries in C read once, when they are loaded: chosen before anything else."""

import os
import time

CHOSEN = "MERC_SPINCOUNT"
"""Environment variable with what a process of merc chose for itself: its child processes choose again."""


def choose() -> None:
    """All of it, where the user has not chosen."""
    _choose_how_threads_wait()
    # oneDNN compiles a kernel for every shape, several hundred KiB each, and keeps the last ones. Training batches come
    # in some twenty numbers of rows (merc.models.emotion_model.missing_rows), with some forty products each.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "1024")


def _choose_how_threads_wait() -> None:
    # Read when torch loads. Its threads wait for each other thousands of times a step. Left alone they spin for as long
    # as it takes, which makes everything ten times slower as soon as something else needs a core; told to sleep at
    # once, they lose a third of a step to being woken. A thousand turns are a few microseconds, enough for the next
    # operator on some machines; twenty thousand, enough on all, are for those who have the cores to themselves.
    inherited = CHOSEN in os.environ and os.environ[CHOSEN] == os.environ.get("GOMP_SPINCOUNT")
    if "OMP_WAIT_POLICY" in os.environ and not inherited:
        return
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    if inherited or "GOMP_SPINCOUNT" not in os.environ:
        os.environ["GOMP_SPINCOUNT"] = os.environ[CHOSEN] = "20000" if _spare_cores() else "1000"


def _spare_cores() -> bool:
    """Whether less than half of the cores have something else to do just now; False where the system is mute."""
    try:
        looks = sorted(_running_threads() for _ in range(5))
    except (OSError, ValueError, IndexError):
        return False
    others = looks[2] - 1  # a look catches what runs for an instant, the middle of several does not
    return 2 * others < (os.cpu_count() or 1)


def _running_threads() -> int:
    """Threads of the whole machine that run or wait for a core, this one among them."""
    time.sleep(0.002)
    with open("/proc/loadavg", encoding="ascii") as file:
        return int(file.read().split()[3].split("/")[0])
