"""Experiment framework for multimodal emotion recognition in conversation (MERC)."""

import os

__version__ = "0.1.0"


def _spare_cores() -> bool:
    """Whether less than half of the cores have something else to do at this moment; False where the system is mute."""
    try:
        with open("/proc/loadavg", encoding="ascii") as file:
            running = int(file.read().split()[3].split("/")[0])
    except OSError:
        return False
    return 2 * (running - 1) < (os.cpu_count() or 1)


# Read when torch loads. Its threads wait for each other thousands of times a step. Left alone they spin for as long as
# it takes, which makes everything ten times slower as soon as something else needs a core; told to sleep at once, they
# lose a third of a step to being woken. A thousand turns are a few microseconds, enough for the next operator on some
# machines; twenty thousand, enough on all, are for those who have the cores to themselves when they start.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ.setdefault("GOMP_SPINCOUNT", "20000" if _spare_cores() else "1000")

# oneDNN compiles a kernel for every shape, several hundred KiB each, and keeps the last ones. Training batches come in
# some twenty different numbers of rows (merc.models.emotion_model.missing_rows), with some forty products each.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "1024")
