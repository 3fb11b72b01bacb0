"""One GPU for each process of a sweep, where there are several."""

import fcntl
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

import torch

_held: list[TextIO] = []
"""The lock of this process' GPU, which the kernel frees when the process ends in whatever way."""


def claim_gpu() -> None:
    """Let this process see one GPU alone: the first that no other sweep process of this machine has.

    When all are taken, processes share them. Nothing happens with fewer than two, and in a process that has used its
    GPU already.
    """
    gpus = visible_gpus()
    if len(gpus) > 1 and not torch.cuda.is_initialized():
        os.environ["CUDA_VISIBLE_DEVICES"] = _free(gpus) or gpus[os.getpid() % len(gpus)]


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as ``CUDA_VISIBLE_DEVICES`` names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return [str(index) for index in range(torch.cuda.device_count())]
    return [name for name in named.split(",") if name]


def _free(gpus: Sequence[str]) -> str | None:
    """The first GPU that nobody has, held from now on."""
    locks = Path(tempfile.gettempdir()) / f"merc-gpus-{os.getuid()}"
    locks.mkdir(exist_ok=True)
    for gpu in gpus:
        file = (locks / f"{gpu}.lock").open("w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
        else:
            _held.append(file)
            return gpu
    return None
