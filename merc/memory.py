"""What is kept in memory, and where."""

import ctypes
import sys

import torch

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h of glibc
_KEPT = 2**31 - 1


def keep_freed_memory() -> None:
    """Let glibc keep what is freed instead of handing it back to the system; elsewhere nothing happens.

    A training step frees its activations and the next one needs as much again. Memory fresh from the system costs a
    page fault for every 4 KiB of it, on virtual machines up to two seconds per GiB.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, _KEPT)


def has_room(device: torch.device, size: int) -> bool:
    """Whether data may stay on a device: a GPU of which they take a quarter of the free memory at most.

    Args:
        device: where models are trained.
        size: bytes of the data.
    """
    return device.type == "cuda" and 4 * size <= torch.cuda.mem_get_info(device)[0]
